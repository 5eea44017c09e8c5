"""The whole detector, small: edge cases, laziness, feature offsets and raw outputs."""

import pytest
import torch

from detectron2.structures import Boxes, Instances

TWO_OBJECTS = [([10, 10, 50, 40], 0), ([30, 5, 80, 60], 2)]
TINY_OBJECT = [([20, 20, 21, 21], 1)]
TROUBLE = [*TWO_OBJECTS, TWO_OBJECTS[0], ([30, 30, 30, 50], 1), ([70, 70, 70, 70], 0)]

CASCADE = {"config": "cascade_iou_uniform_R_50_FPN_1x"}
SHARED = {"REG_BRANCH": "shared_with_cls", "REG_SAMPLES": "rpn"}
VARIANTS = {
    "faster": {},
    "cascade": CASCADE,
    "without_iou": {"WITH_IOU": False, "EFO": False},
    "split_control": {"WITH_IOU": False, "EFO": False, "REG_SAMPLES": "rpn"},
    "match_rpn": {"NUM_MODE": "match_rpn"},
    "shared_rpn": {**SHARED, "IOU_SAMPLES": "rpn"},
    "shared_uniform": SHARED,
    "mixed": {"IOU_SAMPLES": "rpn", "EFO": False},
    "cascade_shared": {**CASCADE, **SHARED, "CASCADE.SCORE": "prob"},
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


def random_features(num_images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"p{level}": torch.randn(num_images, 16, 64 >> level, 96 >> level, generator=generator)
        for level in range(2, 7)
    }


def count_rows(module):
    """A list that gets the number of rows of each call of a module."""
    rows = []
    module.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    return rows


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
    localisation = {k: v for k, v in losses.items() if "box_reg" in k or "iou" in k}
    assert localisation
    if not any(batch):
        assert all(loss == 0 for loss in localisation.values())
    else:
        assert all(loss > 0 for loss in localisation.values())


def test_losses_have_their_names(build_tiny, make_batch, storage):
    rpn = {"loss_rpn_cls", "loss_rpn_loc"}
    ours = {"loss_cls", "loss_box_reg", "loss_iou"}
    batch = make_batch(TWO_OBJECTS)
    assert set(build_tiny().train()(batch)) == ours | rpn
    without = build_tiny(**VARIANTS["without_iou"]).train()(batch)
    assert set(without) == ours - {"loss_iou"} | rpn
    cascade = build_tiny(**CASCADE).train()(batch)
    assert set(cascade) == {f"{name}_stage{i}" for name in ours for i in range(3)} | rpn


def test_what_is_logged(build_tiny, make_batch, storage):
    model = build_tiny().train()
    model(make_batch(TWO_OBJECTS, []))
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest["iou_uniform/num_samples"] == 64
    assert latest["iou_uniform/fill_rate"] == 1
    assert sum(latest[f"iou_uniform/num_int{m}"] for m in (1, 2, 3, 4)) == 64
    expected = {"iou_uniform/iou_mae", "roi_head/num_fg_samples", "fast_rcnn/cls_accuracy"}
    expected |= {f"iou_uniform/reg_loss_int{m}" for m in (1, 2, 3, 4)}
    assert expected <= set(latest)
    build_tiny(**CASCADE).train()(make_batch(TWO_OBJECTS))
    stages = {f"stage{i}/{name}" for i in range(3) for name in ("iou_uniform/num_samples",)}
    assert stages | {"stage1/roi_head/num_fg_samples"} <= set(storage.latest())


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_roi_at_all(variant, build_tiny, make_targets, storage):
    heads = build_tiny(**VARIANTS[variant]).roi_heads
    features = random_features()
    nothing = [random_proposals(0), random_proposals(0)]
    for proposals in nothing:
        proposals.gt_classes = torch.zeros(0, dtype=torch.int64)
        proposals.objectness_logits = torch.zeros(0)
    losses = heads.train()._forward_box(features, nothing, make_targets([], []))
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    assert all(p.grad is not None and not p.grad.any() for p in heads.parameters())
    for lazy in (True, False):
        heads.eval().lazy_localisation = lazy
        assert [len(found) for found in heads._forward_box(features, nothing)] == [0, 0]


@pytest.mark.parametrize("num_classes", [1, 2, 4, 80])
def test_any_number_of_classes(num_classes, build_tiny, make_batch, storage, detect):
    model = build_tiny({"MODEL.ROI_HEADS.NUM_CLASSES": num_classes}).train()
    objects = [(box, label % num_classes) for box, label in TWO_OBJECTS]
    sum(model(make_batch(objects)).values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    found = detect(randomize_predictors(model), make_batch([]))[0]
    assert len(found) > 0
    assert found.pred_classes.max() < num_classes


def test_each_branch_learns_from_its_own_losses(build_tiny, make_batch, storage):
    def gradients(names):
        model = build_tiny().train()
        losses = model(make_batch(TWO_OBJECTS))
        sum(losses[name] for name in names).backward()
        heads, backbone = model.roi_heads, next(model.backbone.parameters())
        parts = {name: next(tower.parameters()).grad for name, tower in heads.box_head.items()}
        parts |= {name: p.weight.grad for name, p in heads.box_predictor.predictors.items()}
        assert backbone.grad.any()
        return {name for name, gradient in parts.items() if gradient is not None and gradient.any()}

    assert gradients(["loss_cls"]) == {"cls"}
    assert gradients(["loss_box_reg"]) == {"loc", "reg"}
    assert gradients(["loss_iou"]) == {"loc", "iou"}


def test_the_classifier_sees_proposals_and_the_other_branch_its_samples(
    build_tiny, make_batch, storage
):
    model = build_tiny().train()
    rows = {name: count_rows(tower) for name, tower in model.roi_heads.box_head.items()}
    model(make_batch(TWO_OBJECTS, []))
    assert rows == {"cls": [32], "loc": [128]}


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_as_many_samples_as_the_classifier_has_foreground(factor, build_tiny, make_batch, storage):
    model = build_tiny(NUM_MODE="match_rpn", MATCH_FACTOR=factor).train()
    rows = count_rows(model.roi_heads.box_head["loc"])
    model(make_batch(TWO_OBJECTS, TINY_OBJECT))
    foreground = storage.latest()["roi_head/num_fg_samples"][0] * 2
    assert foreground > 2
    assert rows == [factor * foreground]


@pytest.mark.parametrize("variant", ["faster", "cascade"])
def test_a_crowd_is_cut_down(variant, build_tiny, make_batch, storage):
    model = build_tiny(MAX_SAMPLES_PER_IMAGE=24, **VARIANTS[variant]).train()
    rows = [count_rows(stage.towers["loc"]) for stage in model.roi_heads.stages]
    sum(model(make_batch(TWO_OBJECTS, [])).values()).backward()
    # The cascade runs the branch on the proposals of a stage, too, to refine them.
    assert all(24 in r and max(r) <= 32 for r in rows)


# --- inference ---


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "match_rpn"])
def test_lazy_localisation_does_not_change_the_detections(
    variant, build_tiny, make_batch, detect, assert_equal_detections
):
    model = randomize_predictors(build_tiny(**VARIANTS[variant]), std=0.05)
    heads, batch = model.roi_heads, make_batch([], [])
    best, score = [], heads._score
    heads._score = lambda *args: best.append(score(*args)) or best[-1]
    detect(model, batch)
    # Now half of the rows survive.
    probs = torch.cat(best[0].probs)[:, :-1].amax(dim=1)
    stage = best[0].stage
    stage.predictor.test_score_thresh = probs.median().item()
    rows = count_rows(stage.towers["loc"]) if "loc" in stage.towers else []
    lazy = detect(model, batch)
    num_calls = len(rows)
    heads.lazy_localisation = False
    full = detect(model, batch)
    assert_equal_detections(lazy, full)
    assert sum(map(len, full)) > 0
    assert rows[:num_calls] == [40] * num_calls
    assert rows[num_calls:] == [80] * num_calls


@pytest.mark.parametrize("variant", ["faster", "cascade"])
def test_towers_and_pooler_run_no_more_than_needed(variant, build_tiny):
    heads = build_tiny(**VARIANTS[variant]).roi_heads.eval()
    heads.lazy_localisation = False
    last = heads.stages[-1]
    calls = {name: count_rows(tower) for name, tower in last.towers.items()}
    pooled = count_rows(heads.box_pooler)
    with torch.no_grad():
        heads._forward_box(random_features(1), [random_proposals(9)])
    assert calls == {"cls": [9], "loc": [9, 9]}
    assert len(pooled) == len(heads.stages) + 1


def test_boxes_that_do_not_move_have_no_feature_offset(
    build_tiny, make_batch, detect, assert_equal_detections
):
    model = randomize_predictors(build_tiny(), std=0.05)
    layer = model.roi_heads.box_predictor.predictors["reg"]
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    proposals, features = [random_proposals(12), random_proposals(7, seed=1)], random_features()
    with torch.no_grad():
        raw = model.roi_heads.eval().raw_outputs(features, proposals)
    for i, image in enumerate(proposals):
        torch.testing.assert_close(raw.boxes[i], image.proposal_boxes.tensor, rtol=0, atol=1e-4)
        torch.testing.assert_close(raw.iou[i], raw.iou_without_efo[i], rtol=1e-4, atol=1e-4)
    with_efo = detect(model, make_batch([]))
    other = build_tiny(EFO=False)
    other.load_state_dict(model.state_dict())
    assert_equal_detections(detect(other, make_batch([])), with_efo)


@pytest.mark.parametrize("variant", ["faster", "cascade", "shared_uniform"])
@pytest.mark.parametrize("efo", [True, False])
def test_detections_are_those_of_the_raw_outputs(variant, efo, build_tiny, assert_equal_detections):
    model = randomize_predictors(build_tiny(EFO=efo, **VARIANTS[variant]), std=0.05)
    heads, features = model.roi_heads.eval(), random_features()
    proposals = [random_proposals(20), random_proposals(7, seed=1)]
    with torch.no_grad():
        raw = heads.raw_outputs(features, proposals)
        found = heads._forward_box(features, proposals)
    iou = raw.iou if efo else raw.iou_without_efo
    assert not torch.allclose(raw.iou[0], raw.iou_without_efo[0], atol=1e-3)
    expected = heads.stages[-1].predictor.inference(raw.boxes, raw.probs, iou, [(64, 96)] * 2)
    assert sum(map(len, found)) > 0
    assert_equal_detections(found, expected)


@pytest.mark.parametrize("variant", ["faster", "cascade", "without_iou"])
@pytest.mark.parametrize("num", [0, 5])
def test_raw_outputs(variant, num, build_tiny):
    heads = build_tiny(**VARIANTS[variant]).roi_heads.eval()
    with torch.no_grad():
        raw = heads.raw_outputs(random_features(), [random_proposals(num), random_proposals(2)])
    assert [tuple(b.shape) for b in raw.boxes] == [(num, 4), (2, 4)]
    assert [tuple(p.shape) for p in raw.probs] == [(num, 4), (2, 4)]
    for iou in (raw.iou, raw.iou_without_efo):
        assert variant == "without_iou" if iou is None else [len(i) for i in iou] == [num, 2]


def test_the_iou_is_that_of_the_box_that_is_pooled(build_tiny):
    """Asked about the refined boxes, the IoU without EFO is what EFO had told."""
    heads = randomize_predictors(build_tiny(), std=0.05).roi_heads.eval()
    features, proposals = random_features(1), [random_proposals(15)]
    with torch.no_grad():
        raw = heads.raw_outputs(features, proposals)
        refined = Instances((64, 96), proposal_boxes=Boxes(raw.boxes[0]))
        again = heads.raw_outputs(features, [refined])
    torch.testing.assert_close(again.iou_without_efo[0], raw.iou[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["faster", "cascade"])
def test_a_row_that_is_not_finite_is_no_detection(variant, build_tiny, assert_equal_detections):
    heads = randomize_predictors(build_tiny(**VARIANTS[variant]), std=0.05).roi_heads.eval()
    features, proposals = random_features(1), [random_proposals(15)]
    predictor = heads.stages[-1].predictor
    predict_boxes = predictor.predict_boxes

    def spoil(*args):
        boxes = predict_boxes(*args)
        boxes[0][3:6] = float("nan")
        return boxes

    predictor.predict_boxes = spoil
    heads.lazy_localisation = False
    with torch.no_grad():
        raw = heads.raw_outputs(features, proposals)
        (found,) = heads._forward_box(features, proposals)
    assert raw.iou[0].isfinite().all()
    assert found.pred_boxes.tensor.isfinite().all()
    keep = raw.boxes[0].isfinite().all(dim=1)
    assert keep.sum() == 12
    expected = predictor.inference(
        [raw.boxes[0][keep]], [raw.probs[0][keep]], [raw.iou[0][keep]], [(64, 96)]
    )
    assert_equal_detections([found], expected)


def test_nothing_survives(build_tiny, make_batch, detect):
    for variant in ({}, CASCADE):
        model = build_tiny({"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 1.0}, **variant)
        assert [len(found) for found in detect(model, make_batch([], []))] == [0, 0]


@pytest.mark.parametrize("variant", ["faster", "cascade"])
def test_one_image_alone_and_in_a_batch(
    variant, build_tiny, make_batch, detect, assert_equal_detections
):
    model = randomize_predictors(build_tiny(**VARIANTS[variant]), std=0.05)
    one, two = make_batch([], seed=0), make_batch([], seed=1)
    assert_equal_detections(
        detect(model, one + two), detect(model, one) + detect(model, two), tolerance=1e-3
    )


def test_save_and_load(build_tiny, make_batch, tmp_path, detect, assert_equal_detections):
    model = randomize_predictors(build_tiny(seed=0)).train()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    other = build_tiny(seed=1)
    other.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    batch = make_batch([])
    assert_equal_detections(detect(other, batch), detect(model, batch), tolerance=0)


def test_test_time_augmentation(build_tiny, make_cfg, check_views):
    # A predicted IoU, a factor of the score, may be negative.
    check_views(randomize_predictors(build_tiny()), make_cfg, least=1e-8)


@pytest.mark.parametrize("variant", ["faster", "cascade", "shared_rpn"])
def test_mixed_precision_stays_close(variant, build_tiny, make_targets, storage):
    heads = build_tiny(**VARIANTS[variant]).roi_heads.train()
    features, targets = random_features(), make_targets(TWO_OBJECTS, TINY_OBJECT)

    def losses(enabled):
        heads.zero_grad()
        torch.manual_seed(0)  # of the samples
        proposals = [random_proposals(12), random_proposals(9, seed=1)]
        for p in proposals:
            p.objectness_logits = torch.zeros(len(p))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            sampled = heads.label_and_sample_proposals(proposals, targets)
            losses = heads._forward_box(features, sampled, targets)
        sum(losses.values()).backward()
        assert all(p.grad.isfinite().all() for p in heads.parameters())
        return losses

    exact, mixed = losses(False), losses(True)
    for name, loss in mixed.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=0.05, atol=0.02)


# --- cascade ---


def test_losses_of_a_stage_have_its_weight(build_tiny, make_batch, storage):
    def losses(weights):
        model = build_tiny(**CASCADE, **{"CASCADE.STAGE_LOSS_WEIGHTS": weights}).train()
        torch.manual_seed(0)
        return model(make_batch(TWO_OBJECTS, TINY_OBJECT))

    weighted, plain = losses((1.0, 0.5, 0.25)), losses((1.0, 1.0, 1.0))
    for stage, weight in enumerate((1.0, 0.5, 0.25)):
        for name in ("loss_cls", "loss_box_reg", "loss_iou"):
            key = f"{name}_stage{stage}"
            assert plain[key] > 0
            torch.testing.assert_close(weighted[key], weight * plain[key])


def test_each_stage_matches_at_its_own_threshold(build_tiny, make_targets, storage):
    heads = build_tiny(**CASCADE).roi_heads.train()
    # IoU .55, .65 and .75 with an object of 40 x 40.
    boxes = torch.tensor([[0.0, 0, 40, 22], [0, 0, 40, 26], [0, 0, 40, 30]])
    targets = make_targets([([0, 0, 40, 40], 1)])
    for number, foreground in enumerate((3, 2, 1)):
        proposals = Instances((64, 96), proposal_boxes=Boxes(boxes))
        proposals.objectness_logits = torch.zeros(3)
        (sampled,) = heads._sample_for_stage(number, [proposals], targets)
        # The object itself is appended.
        assert (sampled.gt_classes == 1).sum() == foreground + 1
        assert len(sampled) == 4
    assert heads.proposal_matcher is heads.proposal_matchers[0]


def test_objects_do_not_go_on_to_the_next_stage(build_tiny, make_targets, storage):
    heads = build_tiny(**CASCADE).roi_heads.train()
    objects = [*TWO_OBJECTS, TWO_OBJECTS[0]]
    targets = make_targets(objects, [])
    proposals = [random_proposals(6), random_proposals(4, seed=1)]
    for p in proposals:
        p.objectness_logits = torch.arange(len(p)).float()
    sampled = heads.label_and_sample_proposals(proposals, targets)
    assert [len(p) for p in sampled] == [9, 4]
    stage = heads.stages[0]
    torch.nn.init.zeros_(stage.predictor.predictors["reg"].weight)  # boxes stay where they are
    pooled = heads._pool(random_features(), [p.proposal_boxes for p in sampled])
    refined = heads._next_proposals(stage, pooled, sampled)
    for found, given in zip(refined, proposals, strict=True):
        assert len(found) == len(given)
        order = found.objectness_logits.long()
        torch.testing.assert_close(
            found.proposal_boxes.tensor, given.proposal_boxes.tensor[order], rtol=0, atol=1e-3
        )
        assert not found.proposal_boxes.tensor.requires_grad


@pytest.mark.parametrize("score", ["logit", "prob"])
def test_the_score_comes_from_all_stages(score, build_tiny):
    heads = build_tiny(**CASCADE, **{"CASCADE.SCORE": score}).roi_heads
    logits = torch.tensor([[[0.0, 0, 0, 0]], [[1.0, 0, 0, 0]], [[5.0, 2, 0, 0]]])
    expected = {
        "logit": torch.tensor([[2.0, 2 / 3, 0, 0]]).softmax(dim=1),
        "prob": sum(stage.softmax(dim=1) for stage in logits) / 3,
    }
    torch.testing.assert_close(heads._combine(logits), expected[score])
