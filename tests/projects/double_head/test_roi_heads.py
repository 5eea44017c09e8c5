"""The whole detector, small: edge cases, laziness, raw outputs and evaluation modes."""

import copy

import pytest
import torch

from clsloc.errors import UserError
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, Instances
from double_head import MODES

TWO_OBJECTS = [([10, 10, 50, 40], 0), ([30, 5, 80, 60], 2)]
TINY_OBJECT = [([20, 20, 21, 21], 1)]
TROUBLE = [*TWO_OBJECTS, TWO_OBJECTS[0], ([30, 30, 30, 50], 1), ([70, 70, 70, 70], 0)]

EXT = {"LAMBDA_FC": 0.7, "LAMBDA_CONV": 0.8}
DOUBLE_FC = {"LOSS_WEIGHTS": [2.0, 2.0, 0.0, 0.0], "SEPARATE_TOWERS": True}
DOUBLE_CONV = {"LOSS_WEIGHTS": [0.0, 0.0, 2.5, 2.5], "SEPARATE_TOWERS": True}
REVERSE = {"LOSS_WEIGHTS": [0.0, 2.0, 2.5, 0.0]}
VARIANTS = {
    "vanilla": {},
    "vanilla_gn": {"NORM": "GN"},
    "ext": EXT,
    "double_fc": DOUBLE_FC,
    "double_conv": DOUBLE_CONV,
    "reverse": REVERSE,
    "single_fc": {"LOSS_WEIGHTS": [1.0, 1.0, 0.0, 0.0]},
    "single_conv": {"LOSS_WEIGHTS": [0.0, 0.0, 1.0, 1.0]},
}


def randomize_predictors(model, std=0.5):
    """Predictions that differ from row to row, as if the model were trained."""
    for p in model.roi_heads.box_predictor.parameters():
        torch.nn.init.normal_(p, std=std)
    return model


def random_proposals(num, seed=0, size=(64, 96)):
    corners = torch.rand(num, 2, 2, generator=torch.Generator().manual_seed(seed))
    corners = corners * torch.tensor([size[1], size[0]])
    proposals = Instances(size)
    proposals.proposal_boxes = Boxes(torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1))
    return proposals


def random_features(model, num_images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"p{level}": torch.randn(num_images, 32, 64 >> level, 96 >> level, generator=generator)
        for level in range(2, 7)
    }


# --- training ---


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "batch",
    [
        (TWO_OBJECTS, TINY_OBJECT),
        (TWO_OBJECTS, []),
        ([], []),
        (TROUBLE,),
    ],
    ids=["objects", "an_image_without", "a_batch_without", "duplicates_and_degenerate_boxes"],
)
def test_every_parameter_gets_a_finite_gradient(variant, batch, build_tiny, make_batch, storage):
    model = build_tiny(**VARIANTS[variant]).train()
    losses = model(make_batch(*batch))
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    if not any(batch):
        assert all(loss == 0 for name, loss in losses.items() if "box_reg" in name)


def test_losses_have_their_names(build_tiny, make_batch, storage):
    rpn = {"loss_rpn_cls", "loss_rpn_loc"}
    vanilla = build_tiny().train()(make_batch(TWO_OBJECTS))
    assert set(vanilla) == {"loss_cls_fc", "loss_box_reg_conv"} | rpn
    ext = build_tiny(**EXT).train()(make_batch(TWO_OBJECTS))
    assert set(ext) == set(vanilla) | {"loss_box_reg_fc", "loss_cls_conv"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_roi_at_all(variant, build_tiny, storage):
    heads = build_tiny(**VARIANTS[variant]).roi_heads
    features = random_features(heads)
    nothing = [random_proposals(0), random_proposals(0)]
    for proposals in nothing:
        proposals.gt_classes = torch.zeros(0, dtype=torch.int64)
    losses = heads.train()._forward_box(features, nothing)
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    assert all(p.grad is not None and not p.grad.any() for p in heads.parameters())
    for lazy in (True, False):
        heads.eval().lazy_localisation = lazy
        assert [len(found) for found in heads._forward_box(features, nothing)] == [0, 0]


@pytest.mark.parametrize("num_classes", [1, 2, 4, 80])
def test_any_number_of_classes(num_classes, build_tiny, make_batch, storage, detect):
    model = build_tiny({"MODEL.ROI_HEADS.NUM_CLASSES": num_classes}, **EXT).train()
    objects = [(box, label % num_classes) for box, label in TWO_OBJECTS]
    sum(model(make_batch(objects)).values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    found = detect(randomize_predictors(model), make_batch([]))[0]
    assert len(found) > 0
    assert found.pred_classes.max() < num_classes


@pytest.mark.parametrize("variant", ["vanilla_gn", "double_fc", "reverse"])
def test_towers_with_independent_rows_train_on_the_foreground_at_equal_losses(
    variant, build_tiny, make_batch, storage
):
    def losses_and_gradients(lazy):
        model = build_tiny(**VARIANTS[variant]).train()
        randomize_predictors(model, std=0.05)
        model.roi_heads.lazy_localisation = lazy
        torch.manual_seed(0)  # of the sampled RoIs
        losses = model(make_batch(TWO_OBJECTS, TINY_OBJECT))
        sum(losses.values()).backward()
        return losses, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    (lazy, lazy_gradients), (full, gradients) = map(losses_and_gradients, (True, False))
    assert full["loss_box_reg_" + ("conv" if variant == "vanilla_gn" else "fc")] > 0
    for name in full:
        torch.testing.assert_close(lazy[name], full[name], rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        error = (lazy_gradients[name] - gradient).norm() / gradient.norm().clamp(min=1e-3)
        assert error < 1e-4, name


def test_towers_with_batch_statistics_train_on_all_rois(build_tiny, make_batch, storage):
    model = build_tiny().train()
    seen = []
    model.roi_heads.box_head["conv"].blocks.register_forward_hook(
        lambda _, args, __: seen.append(len(args[0]))
    )
    model(make_batch(TWO_OBJECTS, []))
    assert seen == [32]


def test_train_on_predicted_boxes_is_refused(build_tiny):
    with pytest.raises(UserError, match="TRAIN_ON_PRED_BOXES"):
        build_tiny({"MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": True})


# --- inference ---


@pytest.mark.parametrize(
    "variant", ["vanilla", "vanilla_gn", "double_fc", "double_conv", "reverse"]
)
def test_lazy_localisation_does_not_change_the_detections(
    variant, build_tiny, make_batch, detect, assert_equal_detections
):
    model = randomize_predictors(build_tiny(**VARIANTS[variant]), std=0.01)
    heads, batch = model.roi_heads, make_batch([], [])
    predictor, plan = heads.box_predictor, heads.box_predictor.plan
    best, rows = [], []
    predict_probs = predictor.predict_probs
    predictor.predict_probs = lambda *args: best.append(predict_probs(*args)) or best[-1]
    layers = heads.box_head[plan.tower_of(plan.regressor)].modules()
    first = next(m for m in layers if isinstance(m, torch.nn.Conv2d | torch.nn.Linear))
    first.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))

    detect(model, batch)
    # Now half of the rows survive.
    predictor.test_score_thresh = torch.cat(best[0])[:, :-1].amax(dim=1).median().item()
    lazy = detect(model, batch)
    heads.lazy_localisation = False
    full = detect(model, batch)
    assert_equal_detections(lazy, full)
    assert rows[1:] == [40, 80]
    assert sum(map(len, full)) > 0


def test_nothing_survives(build_tiny, make_batch, detect):
    model = build_tiny({"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 1.0})
    assert [len(found) for found in detect(model, make_batch([], []))] == [0, 0]


def test_one_image_alone_and_in_a_batch(build_tiny, make_batch, detect, assert_equal_detections):
    model = randomize_predictors(build_tiny(**EXT))
    one, two = make_batch([], seed=0), make_batch([], seed=1)
    assert_equal_detections(
        detect(model, one + two), detect(model, one) + detect(model, two), tolerance=1e-3
    )


def test_modes_of_figure_8_from_one_pass(build_tiny, assert_equal_detections):
    heads = randomize_predictors(build_tiny(**EXT)).roi_heads.eval()
    features, proposals = random_features(heads), [random_proposals(20), random_proposals(7, 1)]
    with torch.no_grad():
        outputs = heads.raw_outputs(features, proposals)
        for score, box in MODES.values():
            found = heads.detect(outputs.predictions, proposals, score, box)
            # The same model that was asked for this mode by its config.
            keys = {**EXT, "TEST_SCORE": score, "TEST_BOX": box}
            other = build_tiny(**keys).roi_heads.eval()
            other.load_state_dict(heads.state_dict())
            assert_equal_detections(found, other._forward_box(features, proposals))
    assert MODES["fused"] == ("complementary", "conv")


def test_a_mode_that_was_not_trained(build_tiny):
    heads = build_tiny().roi_heads.eval()
    proposals = [random_proposals(3)]
    with torch.no_grad():
        outputs = heads.raw_outputs(random_features(heads, 1), proposals)
        assert len(heads.detect(outputs.predictions, proposals, *MODES["split"])) == 1
        for mode in ("conv", "fc", "fused"):
            with pytest.raises(UserError, match="not trained"):
                heads.detect(outputs.predictions, proposals, *MODES[mode])


@pytest.mark.parametrize("num", [0, 5])
def test_raw_outputs(num, build_tiny):
    heads = build_tiny(**EXT).roi_heads.eval()
    proposals = [random_proposals(num), random_proposals(2)]
    features = random_features(heads)
    with torch.no_grad():
        outputs = heads.raw_outputs(features, proposals)
    r = num + 2
    assert {name: tuple(x.shape) for name, x in outputs.predictions.items()} == {
        "fc_cls": (r, 4),
        "fc_reg": (r, 12),
        "conv_cls": (r, 4),
        "conv_reg": (r, 12),
    }
    assert outputs.conv_maps["conv"].shape == (r, 128, 7, 7)
    # The mean of the map is what the conv predictors read.
    deltas = heads.box_predictor("conv_reg", outputs.conv_maps["conv"].mean(dim=(2, 3)))
    torch.testing.assert_close(deltas, outputs.predictions["conv_reg"])
    # The fc tower looks at the proposals as they are, the conv tower further around.
    stock = ROIPooler((7, 7), [1 / 4, 1 / 8, 1 / 16, 1 / 32], 2, "ROIAlign")
    maps = [features[name] for name in ("p2", "p3", "p4", "p5")]
    expected = stock(maps, [p.proposal_boxes for p in proposals])
    assert torch.equal(outputs.pooled["fc"], expected)
    assert not torch.allclose(outputs.pooled["conv"], expected)


def test_equal_scales_pool_once(build_tiny, make_batch):
    heads = build_tiny(**EXT, CONV_ROI_SCALE=1.0).roi_heads.eval()
    calls = []
    heads.box_pooler.register_forward_hook(lambda *_: calls.append(1))
    outputs = heads.raw_outputs(random_features(heads, 1), [random_proposals(3)])
    assert len(calls) == 1
    assert outputs.pooled["fc"] is outputs.pooled["conv"]


def test_separate_towers_of_one_kind_pool_alike(build_tiny):
    heads = build_tiny(**DOUBLE_CONV).roi_heads.eval()
    outputs = heads.raw_outputs(random_features(heads, 1), [random_proposals(3)])
    assert list(outputs.conv_maps) == ["conv_cls", "conv_reg"]
    assert outputs.pooled["conv_cls"] is outputs.pooled["conv_reg"]


def test_proposals_are_not_changed(build_tiny):
    heads = build_tiny().roi_heads.eval()
    proposals = [random_proposals(9)]
    before = copy.deepcopy(proposals[0].proposal_boxes.tensor)
    with torch.no_grad():
        heads._forward_box(random_features(heads, 1), proposals)
    assert torch.equal(proposals[0].proposal_boxes.tensor, before)


def test_save_and_load(build_tiny, make_batch, tmp_path, detect, assert_equal_detections):
    model = randomize_predictors(build_tiny(**EXT, seed=0)).train()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    other = build_tiny(**EXT, seed=1)
    other.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    batch = make_batch([])
    assert_equal_detections(detect(other, batch), detect(model, batch), tolerance=0)


def test_test_time_augmentation(build_tiny, make_cfg, check_views):
    check_views(randomize_predictors(build_tiny(**EXT)), make_cfg)


@pytest.mark.parametrize("variant", ["vanilla", "vanilla_gn", "ext"])
def test_mixed_precision_stays_close(variant, build_tiny, make_batch, storage):
    heads = randomize_predictors(build_tiny(**VARIANTS[variant]), std=0.01).roi_heads
    features = random_features(heads)
    proposals = [random_proposals(12), random_proposals(9, seed=1)]
    for i, p in enumerate(proposals):
        p.gt_classes = torch.arange(len(p)) % 4
        p.gt_boxes = random_proposals(len(p), seed=5 + i).proposal_boxes

    def losses(enabled):
        heads.train().zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses = heads._forward_box(features, proposals)
        sum(losses.values()).backward()
        assert all(p.grad.isfinite().all() for p in heads.parameters())
        return losses

    exact, mixed = losses(False), losses(True)
    for name, loss in mixed.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=0.02, atol=0.0)
