"""Every shipped config builds, and has the size that arithmetic says."""

from pathlib import Path

import pytest
import torch
import yaml

from clsloc.errors import UserError
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from iou_uniform.plan import stage_samplers_from_config

PROJECT = Path(__file__).parents[3] / "projects" / "iou_uniform"
CONFIGS = PROJECT / "configs"
NAMES = sorted(
    str(path.relative_to(CONFIGS).with_suffix(""))
    for path in CONFIGS.rglob("*.yaml")
    if not path.name.startswith("Base-")
)
WHOLE_MODELS = {
    "faster_R_50_FPN_1x": 41_699_936,
    "faster_iou_uniform_R_50_FPN_1x": 55_272_741,
    "faster_iou_uniform_R_101_FPN_1x": 74_212_645,
    "cascade_R_50_FPN_1x": 69_341_646,
    "cascade_iou_uniform_R_50_FPN_1x": 111_031_761,
    "cascade_iou_uniform_R_101_FPN_1x": 129_971_665,
    "voc/faster_R_50_FPN": 41_392_436,
    "voc/faster_iou_uniform_R_50_FPN": 55_211_241,
    "voc/faster_iou_uniform_R_101_FPN": 74_151_145,
    "voc/cascade_R_50_FPN": 69_157_146,
    "voc/cascade_iou_uniform_R_50_FPN": 110_847_261,
    "voc/cascade_iou_uniform_R_101_FPN": 129_787_165,
    "ablations/table4_uniform": 55_210_216,
    "ablations/split_control": 55_210_216,
    # The same layers; the box is read from the other tower.
    "ablations/table6_rpn_efo": 55_211_241,
}
FULL = "voc/faster_iou_uniform_R_50_FPN"
ONES = (1.0, 1.0, 1.0, 1.0)
# Rows of tables 4 to 7: what they override in the full method.
ROWS = {
    "ablations/table4_uniform": {"WITH_IOU": False, "EFO": False, "INTERVAL_WEIGHTS": ONES},
    "ablations/table4_uniform_iou_efo": {"INTERVAL_WEIGHTS": ONES},
    "ablations/table5_equal": {"NUM_MODE": "match_rpn", "MATCH_FACTOR": 1.0},
    "ablations/table5_double": {"NUM_MODE": "match_rpn", "MATCH_FACTOR": 2.0},
    "ablations/split_control": {
        "WITH_IOU": False,
        "EFO": False,
        "REG_SAMPLES": "rpn",
        "INTERVAL_WEIGHTS": ONES,
    },
    "ablations/paperw": {"INTERVAL_WEIGHTS": (1.0, 1.5, 3.0, 3.0)},
} | {
    f"ablations/table6_{source}_{efo}": {
        "REG_BRANCH": "shared_with_cls",
        "REG_SAMPLES": "rpn",
        "IOU_SAMPLES": samples,
        "EFO": efo == "efo",
        "INTERVAL_WEIGHTS": ONES,
    }
    for source, samples in (("rpn", "rpn"), ("gen", "uniform"))
    for efo in ("efo", "noefo")
}
TABLE_7 = {(4, 0.0025), (8, 0.005), (8, 0.01), (8, 0.015)}


def count(module, trainable=False):
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


class StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"{node.start_mark}: {twice} stands twice"
        return super().construct_mapping(node, deep)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_builds_with_its_size_and_writes_to_a_folder_of_its_name(
    name, build_on_meta, make_cfg
):
    with open(CONFIGS / f"{name}.yaml", encoding="utf-8") as file:
        yaml.load(file, StrictLoader)
    assert make_cfg(name).OUTPUT_DIR == f"output/iou_uniform/{name}"
    model = build_on_meta(name)
    assert count(model) == WHOLE_MODELS.get(name, count(model)) > 10**6
    if name == "faster_iou_uniform_R_50_FPN_1x":
        assert count(model) - count(model, trainable=True) == 222_400


def test_every_size_is_that_of_a_config():
    assert set(WHOLE_MODELS) <= set(NAMES)


def test_size_of_the_branches(build_on_meta):
    heads = build_on_meta().roi_heads
    predictors = heads.box_predictor.predictors
    sizes = {name: count(layer) for name, layer in predictors.items()}
    assert sizes == {"cls": 83_025, "reg": 4_100, "iou": 1_025}
    assert {name: count(tower) for name, tower in heads.box_head.items()} == {
        "cls": 13_895_680,
        "loc": 13_895_680,
    }
    assert count(heads.box_head["loc"]) + sizes["reg"] + sizes["iou"] == 13_900_805


@pytest.mark.parametrize("name", ROWS)
def test_ablations_are_the_full_method_and_what_their_row_says(name, make_cfg):
    cfg, full = make_cfg(name), make_cfg(FULL)
    expected = dict(full.MODEL.IOU_UNIFORM) | ROWS[name]
    found = dict(cfg.MODEL.IOU_UNIFORM)
    assert {key: _tuples(value) for key, value in found.items()} == {
        key: _tuples(value) for key, value in expected.items()
    }
    for each in (cfg, full):
        each.defrost()
        each.OUTPUT_DIR = ""
        del each.MODEL["IOU_UNIFORM"]
    assert cfg == full


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("batch, rate", sorted(TABLE_7))
def test_rows_of_table_7_are_overrides(batch, rate, make_cfg):
    overrides = {"SOLVER.IMS_PER_BATCH": batch, "SOLVER.BASE_LR": rate}
    cfg = make_cfg("ablations/table4_uniform_iou_efo", overrides)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (batch, rate)


@pytest.mark.parametrize(
    "overrides",
    [
        {"DATASETS.TEST": "('coco_2017_test-dev',)"},
        {"SOLVER.BASE_LR": 0.01},
        {"MODEL.IOU_UNIFORM.MAX_ROUNDS": 1},
        {"MODEL.IOU_UNIFORM.INTERVAL_WEIGHTS": "(1.0, 1.5, 3.0, 3.0)"},
    ],
    ids=["table_3", "rate_of_the_text", "rounds_of_the_code", "weights_of_the_text"],
)
@pytest.mark.parametrize("name", ["faster", "cascade"])
def test_other_rows_build_from_overrides(name, overrides, build_on_meta):
    build_on_meta(f"{name}_iou_uniform_R_50_FPN_1x", overrides)


def test_nested_tuples_can_be_overridden(make_cfg, tmp_path, build_on_meta):
    keys = {
        "MODEL.IOU_UNIFORM.INTERVALS": "((0.5, 0.75), (0.75, 1.0))",
        "MODEL.IOU_UNIFORM.OFFSETS": "(0.5, 0.1)",
        "MODEL.IOU_UNIFORM.SCALES": "[[0.5, 2.0], [0.8, 1.2]]",
    }
    (sampler,) = build_on_meta(overrides=keys).roi_heads.samplers
    assert sampler.intervals == ((0.5, 0.75), (0.75, 1.0))
    assert sampler.quota == 32
    path = tmp_path / "two.yaml"
    path.write_text(
        f'_BASE_: "{CONFIGS}/faster_iou_uniform_R_50_FPN_1x.yaml"\nMODEL:\n  IOU_UNIFORM:\n'
        "    INTERVALS: [[0.5, 0.75], [0.75, 1.0]]\n"
        "    OFFSETS: [0.5, 0.1]\n    SCALES: [[0.5, 2.0], [0.8, 1.2]]\n"
    )
    (sampler,) = build_on_meta(path.with_suffix("")).roi_heads.samplers
    assert sampler.intervals == ((0.5, 0.75), (0.75, 1.0))


def test_stages_have_their_own_intervals_weights_and_thresholds(build_on_meta):
    heads = build_on_meta("cascade_iou_uniform_R_50_FPN_1x").roi_heads
    assert [s.intervals[0][0] for s in heads.samplers] == [0.5, 0.6, 0.7]
    assert [s.quota for s in heads.samplers] == [16, 16, 20]
    assert [s.samples_per_gt for s in heads.samplers] == [64, 64, 60]
    assert heads.stage_loss_weights == [1.0, 0.5, 0.25]
    assert [m.thresholds[1] for m in heads.proposal_matchers] == [0.5, 0.6, 0.7]
    weights = [p.box2box_transform.weights for p in heads.box_predictor]
    assert weights == [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"WITH_IOU": False}, "EFO"),
        ({"REG_BRANCH": "shared_with_cls"}, "REG_SAMPLES"),
        ({"REG_BRANCH": "both"}, "REG_BRANCH must be one of separate, shared_with_cls"),
        ({"REG_SAMPLES": "all"}, "REG_SAMPLES must be one of uniform, rpn"),
        ({"IOU_SAMPLES": "all"}, "IOU_SAMPLES must be one of"),
        ({"NUM_MODE": "all"}, "NUM_MODE must be one of"),
        ({"MAX_SAMPLES_PER_IMAGE": 0}, "MAX_SAMPLES_PER_IMAGE must be at least 1, got 0"),
        ({"MATCH_FACTOR": 0.0}, "MATCH_FACTOR must be larger than 0"),
        ({"OFFSETS": (0.1, 0.1)}, "4 intervals, 2 offsets"),
        ({"SAMPLES_PER_GT": 3}, "3 samples for 4 intervals"),
        ({"INTERVAL_WEIGHTS": (1.0, 2.0)}, "WEIGHT_EDGES must rise"),
        ({"WEIGHT_EDGES": (0.5, 0.7, 0.6, 0.8, 1.0)}, "WEIGHT_EDGES must rise"),
    ],
)
def test_contradictions_are_refused(keys, message, build_tiny):
    with pytest.raises(UserError, match=message):
        build_tiny(**keys)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"CASCADE.SCORE": "sum"}, "SCORE must be one of logit, prob"),
        ({"CASCADE.SAMPLES_PER_GT": (64, 64)}, "SAMPLES_PER_GT needs an entry for each of the 3"),
        ({"CASCADE.STAGE_LOSS_WEIGHTS": (1.0,)}, "STAGE_LOSS_WEIGHTS needs an entry"),
        ({"CASCADE.SAMPLES_PER_GT": (64, 2, 60)}, "2 samples for 4 intervals"),
        ({"SAMPLES_PER_GT": 16}, "SAMPLES_PER_GT 16 is for a detector of one stage"),
        ({"SCALES": ((0.5, 2.0), (0.8, 1.2))}, "set MODEL.IOU_UNIFORM.CASCADE.SCALES"),
    ],
)
def test_contradictions_of_the_cascade_are_refused(keys, message, build_tiny):
    with pytest.raises(UserError, match=message):
        build_tiny(config="cascade_iou_uniform_R_50_FPN_1x", **keys)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": True}, "TRAIN_ON_PRED_BOXES"),
        ({"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "giou"}, "BBOX_REG_LOSS_TYPE"),
        ({"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 2.0}, "BBOX_REG_LOSS_WEIGHT"),
        ({"MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True}, "USE_SIGMOID_CE"),
        ({"MODEL.ROI_BOX_HEAD.USE_FED_LOSS": True}, "USE_FED_LOSS"),
    ],
)
@pytest.mark.parametrize("method", ["faster", "cascade"])
def test_settings_of_detectron2_that_do_not_fit_are_refused(method, overrides, message, build_tiny):
    with pytest.raises(UserError, match=f"{message} .* no effect in IoU-uniform R-CNN"):
        build_tiny(overrides, config=f"{method}_iou_uniform_R_50_FPN_1x")


@pytest.mark.parametrize("name", NAMES)
def test_a_method_has_the_box_loss_of_its_baseline(name, make_cfg):
    model = make_cfg(name).MODEL  # the key of the baseline comes from the file that both begin with
    if model.ROI_HEADS.NAME.startswith("IoUUniform"):
        assert model.IOU_UNIFORM.REG_LOSS_BETA == model.ROI_BOX_HEAD.SMOOTH_L1_BETA


def test_a_cascade_is_built_again_from_the_config_that_its_run_wrote(tmp_path, make_cfg):
    config = "cascade_iou_uniform_R_50_FPN_1x"
    (tmp_path / "config.yaml").write_text(make_cfg(config).dump())
    read = make_cfg(tmp_path / "config")
    assert [s.quota for s in stage_samplers_from_config(read)] == [16, 16, 20]


def test_the_first_stage_matches_as_the_proposals_were_sampled(build_tiny):
    with pytest.raises(UserError, match=r"must be that of MODEL.ROI_HEADS.IOU_THRESHOLDS \(0.4,\)"):
        build_tiny(
            {"MODEL.ROI_HEADS.IOU_THRESHOLDS": (0.4,)}, config="cascade_iou_uniform_R_50_FPN_1x"
        )


def test_one_set_of_box_weights_for_each_stage(build_tiny):
    with pytest.raises(UserError, match="one IoU and one set of weights"):
        build_tiny(
            {"MODEL.ROI_BOX_CASCADE_HEAD.IOUS": (0.5, 0.6)},
            config="cascade_iou_uniform_R_50_FPN_1x",
        )


@pytest.mark.parametrize("method", ["faster", "cascade"])
@pytest.mark.parametrize("depth", [50, 101])
def test_baselines_differ_in_the_method_alone(method, depth, make_cfg):
    for folder, suffix in (("", "_1x"), ("voc/", "")):
        ours = make_cfg(f"{folder}{method}_iou_uniform_R_{depth}_FPN{suffix}")
        baseline = make_cfg(f"{folder}{method}_R_{depth}_FPN{suffix}")
        for cfg in (ours, baseline):
            cfg.defrost()
            cfg.OUTPUT_DIR = cfg.MODEL.ROI_HEADS.NAME = ""
            cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
        assert ours == baseline


def test_settings_of_the_paper_that_detectron2_has_otherwise(make_cfg):
    for name in ("faster_R_101_FPN_1x", "cascade_iou_uniform_R_50_FPN_1x", FULL):
        cfg = make_cfg(name)
        assert cfg.MODEL.RPN.SMOOTH_L1_BETA == pytest.approx(1 / 9, abs=1e-4)
        assert cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN == 2000
        assert cfg.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA == 1.0
        assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (4, 0.005)
        assert not cfg.SOLVER.CLIP_GRADIENTS.ENABLED
        voc = name == FULL
        assert cfg.INPUT.MIN_SIZE_TRAIN == ((600,) if voc else (800,))
        assert cfg.INPUT.MAX_SIZE_TEST == (1000 if voc else 1333)
        # 12 epochs of 16,551 or 117,266 images.
        images = 16_551 if voc else 117_266
        assert cfg.SOLVER.MAX_ITER == images * 12 // 4
        epochs = (9,) if voc else (8, 11)
        assert cfg.SOLVER.STEPS == pytest.approx([images * e / 4 for e in epochs], abs=1)


class Spy:
    """A config node that remembers which of its keys were read."""

    def __init__(self, node, read, prefix=""):
        self._node, self._read, self._prefix = node, read, prefix

    def __getattr__(self, key):
        value, name = self._node[key], self._prefix + key
        if isinstance(value, CfgNode):
            return Spy(value, self._read, name + ".")
        self._read.add(name)
        return value

    __getitem__ = __getattr__


def test_every_key_is_read(make_cfg):
    read = set()
    for name in ("faster", "cascade"):
        cfg = make_cfg(f"{name}_iou_uniform_R_50_FPN_1x", {"MODEL.DEVICE": "meta"})
        node = cfg.MODEL.IOU_UNIFORM
        cfg.MODEL["IOU_UNIFORM"] = Spy(node, read)
        with torch.device("meta"):
            build_model(cfg)
    keys = {key for key in node if key != "CASCADE"} | {f"CASCADE.{k}" for k in node.CASCADE}
    assert read == keys


def test_settings_of_the_two_losses_are_not_mixed_up(build_on_meta):
    keys = ("REG_LOSS_BETA", "REG_LOSS_WEIGHT", "IOU_LOSS_BETA", "IOU_LOSS_WEIGHT")
    values = (0.2, 0.3, 0.4, 0.6)
    overrides = {f"MODEL.IOU_UNIFORM.{key}": value for key, value in zip(keys, values)}
    predictor = build_on_meta(overrides=overrides).roi_heads.box_predictor
    assert tuple(getattr(predictor, key.lower()) for key in keys) == values
