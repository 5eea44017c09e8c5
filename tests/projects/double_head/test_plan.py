"""What is built and asked for: effective weights, sources of scores and boxes, config errors."""

import pytest

from clsloc.errors import UserError
from double_head import HeadPlan, effective_weights
from double_head.plan import resolve_test_sources

NODE = "MODEL.DOUBLE_HEAD."
VANILLA = ["fc_cls", "conv_reg"]
EXT = ["fc_cls", "fc_reg", "conv_cls", "conv_reg"]


@pytest.fixture
def plan(make_cfg):
    def make(**keys):
        return HeadPlan.from_config(make_cfg(overrides={NODE + k: v for k, v in keys.items()}))

    return make


def test_effective_weights_by_hand():
    assert effective_weights(2.0, 2.5, 0.7, 0.8) == pytest.approx((1.4, 0.6, 0.5, 2.0))
    assert effective_weights(2.0, 2.5, 1.0, 1.0) == (2.0, 0.0, 0.0, 2.5)


def test_only_what_is_trained_is_built(plan):
    assert plan().loss_weights == {"fc_cls": 2.0, "conv_reg": 2.5}
    assert plan().towers == ("fc", "conv")
    ext = plan(LAMBDA_FC=0.7, LAMBDA_CONV=0.8)
    assert list(ext.loss_weights) == EXT
    assert list(ext.loss_weights.values()) == pytest.approx([1.4, 0.6, 0.5, 2.0])


def test_loss_weights_replace_omega_and_lambda(plan):
    made = plan(LOSS_WEIGHTS=[0, 1.0, 3, 0.0], LAMBDA_FC=0.7)
    assert made.loss_weights == {"fc_reg": 1.0, "conv_cls": 3}
    assert (made.score, made.box) == ("conv", "fc")


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        (VANILLA, ("fc", "conv")),
        (EXT, ("complementary", "conv")),
        (["fc_cls", "fc_reg"], ("fc", "fc")),
        (["conv_cls", "conv_reg"], ("conv", "conv")),
        (["fc_reg", "conv_cls"], ("conv", "fc")),
        (["fc_cls", "conv_cls", "fc_reg"], ("complementary", "fc")),
    ],
)
def test_sources_by_default(trained, expected):
    assert resolve_test_sources(trained, "auto", "auto") == expected


def test_laziness_needs_scores_that_do_not_need_the_box_tower(plan):
    assert plan().scores_without_box_tower
    assert plan(LOSS_WEIGHTS=[1.0, 1.0, 0.0, 0.0], SEPARATE_TOWERS=True).scores_without_box_tower
    assert not plan(LOSS_WEIGHTS=[1.0, 1.0, 0.0, 0.0]).scores_without_box_tower
    ext = {"LAMBDA_FC": 0.7, "LAMBDA_CONV": 0.8}
    assert not plan(**ext).scores_without_box_tower
    assert plan(**ext, TEST_SCORE="fc").scores_without_box_tower


def test_towers_that_only_regress(plan):
    assert plan().tower_only_regresses("conv_reg")
    assert not plan().tower_only_regresses("fc_cls")
    assert not plan(LAMBDA_CONV=0.8).tower_only_regresses("conv_reg")
    separate = plan(LOSS_WEIGHTS=[1.0, 1.0, 0.0, 0.0], SEPARATE_TOWERS=True)
    assert separate.tower_only_regresses("fc_reg")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"TEST_SCORE": "conv"}, ["TEST_SCORE", "'conv'", "conv_cls"]),
        ({"TEST_SCORE": "complementary"}, ["TEST_SCORE", "conv_cls"]),
        ({"TEST_BOX": "fc"}, ["TEST_BOX", "'fc'", "fc_reg"]),
        ({"TEST_SCORE": "none"}, ["TEST_SCORE", "'none'", "complementary"]),
        ({"TEST_BOX": "max"}, ["TEST_BOX", "'max'"]),
        ({"LAMBDA_FC": 1.5}, ["LAMBDA_FC", "1.5", "[0, 1]"]),
        ({"LAMBDA_CONV": -0.1}, ["LAMBDA_CONV", "-0.1"]),
        ({"LOSS_WEIGHTS": [1.0, 2.0]}, ["LOSS_WEIGHTS", "[1.0, 2.0]"]),
        ({"LOSS_WEIGHTS": [1.0, 1.0, -1.0, 1.0]}, ["LOSS_WEIGHTS", "-1.0"]),
        ({"LOSS_WEIGHTS": ["a", 1.0, 1.0, 1.0]}, ["LOSS_WEIGHTS", "'a'"]),
        ({"LOSS_WEIGHTS": [1.0, 0.0, 1.0, 0.0]}, ["reg", "LOSS_WEIGHTS"]),
        ({"LOSS_WEIGHTS": [0.0, 1.0, 0.0, 1.0]}, ["classifies", "LOSS_WEIGHTS"]),
        ({"OMEGA_FC": 0.0}, ["classifies", "OMEGA"]),
        ({"SEPARATE_TOWERS": True}, ["SEPARATE_TOWERS", "fc_cls, conv_reg"]),
        ({"CONV_ROI_SCALE": 0.0}, ["CONV_ROI_SCALE", "0.0"]),
        ({"FC_ROI_SCALE": -1.0}, ["FC_ROI_SCALE", "-1.0"]),
        ({"NORM": "LN"}, ["NORM", "'LN'", "GN"]),
        ({"NUM_BLOCKS": 0, "LOSS_WEIGHTS": [1.0, 0.0, 0.0, 1.0]}, ["NUM_BLOCKS", "conv_reg"]),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(plan, keys, words):
    with pytest.raises(UserError) as error:
        plan(**keys)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({NODE + "NUM_BLOCKS": 4}, "4 blocks"),
        ({NODE + "NUM_BLOCKS": 1}, "1 blocks"),
        ({NODE + "NUM_BLOCKS": -1}, "-1"),
        ({NODE + "NONLOCAL.GROUPS": 3}, "3 groups"),
        ({NODE + "NONLOCAL.NORMALIZE": "sum"}, "'sum'"),
        ({NODE + "NONLOCAL.ZERO_INIT": "all"}, "'all'"),
        ({"MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": True}, "TRAIN_ON_PRED_BOXES"),
        ({"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "giou"}, "'giou'"),
        ({"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 2.0}, "BBOX_REG_LOSS_WEIGHT 2.0"),
        ({"MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True}, "USE_SIGMOID_CE"),
        ({"MODEL.ROI_BOX_HEAD.USE_FED_LOSS": True}, "USE_FED_LOSS"),
    ],
)
def test_models_that_cannot_be_built(build_on_meta, overrides, words):
    with pytest.raises(UserError, match=words):
        build_on_meta(overrides=overrides)


def test_even_depth_is_fine_without_nonlocal_blocks(build_on_meta):
    keys = {NODE + "NUM_BLOCKS": 4, NODE + "NONLOCAL.ENABLED": False}
    assert len(build_on_meta(overrides=keys).roi_heads.box_head["conv"].blocks) == 4
