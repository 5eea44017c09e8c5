"""Samples of a batch, and the losses on them, by hand."""

import math

import pytest
import torch

from clsloc.samplers import IoUUniformSampler, UniformSamples
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from iou_uniform import HeadPlan, IoUUniformOutputLayers
from iou_uniform.losses import interval_of, iou_loss, row_box_losses
from iou_uniform.samples import (
    LocalisationSamples,
    draw_samples,
    foreground_samples,
    resample,
)

PLAN = HeadPlan(
    towers={"cls": "cls", "reg": "loc", "iou": "loc"},
    samples={"reg": "uniform", "iou": "uniform"},
    efo=True,
    match_factor=None,
    max_samples=6400,
)
STAGE_2 = (20.0, 20.0, 10.0, 10.0)


def make_predictor(num_classes=20, weights=(10.0, 10.0, 5.0, 5.0), **kwargs):
    shapes = {"cls": ShapeSpec(channels=8), "loc": ShapeSpec(channels=8)}
    return IoUUniformOutputLayers(
        shapes,
        plan=PLAN,
        box2box_transform=Box2BoxTransform(weights=weights),
        num_classes=num_classes,
        **kwargs,
    )


def make_samples(boxes, gt_boxes, iou, divisor=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    gt_boxes = torch.tensor(gt_boxes, dtype=torch.float32).view(-1, 4)
    return LocalisationSamples(
        [Boxes(boxes)], gt_boxes, torch.tensor(iou), divisor or 4 * max(len(boxes), 1)
    )


def proposals_of(classes, boxes=None, gt_boxes=None, size=(200, 200)):
    proposals = Instances(size, gt_classes=torch.tensor(classes, dtype=torch.int64))
    if boxes is None:
        boxes = [[0, 0, 10, 10]] * len(classes)
    proposals.proposal_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
    if gt_boxes is not None:
        proposals.gt_boxes = Boxes(torch.tensor(gt_boxes, dtype=torch.float32).view(-1, 4))
    return proposals


# --- losses ---


def test_intervals_are_open_below_and_closed_above():
    iou = torch.tensor([0.3, 0.5, 0.55, 0.6, 0.6001, 0.7, 0.75, 0.8, 0.85, 0.95, 1.0])
    edges = torch.tensor([0.5, 0.6, 0.7, 0.8, 1.0])
    assert interval_of(iou, edges).tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert interval_of(iou[:0], edges).shape == (0,)


@pytest.mark.parametrize(
    "weights, expected",
    [
        ((1.0, 1.5, 2.0, 3.0), 0.703125),
        ((1.0, 1.5, 3.0, 3.0), 0.796875),
        ((1.0, 1.0, 1.0, 1.0), 0.375),
    ],
)
def test_weighted_box_loss_by_hand(weights, expected, storage):
    predictor = make_predictor(interval_weights=weights)
    box = [0, 0, 100, 100]
    samples = make_samples([box] * 4, [box] * 4, [0.55, 0.65, 0.75, 0.85])
    deltas = torch.zeros(4, 4)
    deltas[torch.arange(4), torch.arange(4)] = torch.tensor([2.0, -2.0, 2.0, 2.0])
    losses = predictor.localisation_losses({"reg": deltas}, samples)
    assert set(losses) == {"loss_box_reg"}
    assert losses["loss_box_reg"].item() == pytest.approx(expected)
    latest = storage.latest()
    for number, weight in enumerate(weights, start=1):
        # The mean over the four numbers of the one box of each interval.
        assert latest[f"iou_uniform/reg_loss_int{number}"][0] == pytest.approx(1.5 * weight / 4)


def test_iou_loss_by_hand(storage):
    loss = iou_loss(torch.tensor([0.6, 1.7]), torch.tensor([0.5, 0.7]), beta=0.5)
    assert loss.item() == pytest.approx(0.38)
    samples = make_samples([[0, 0, 9, 9]] * 2, [[0, 0, 9, 9]] * 2, [0.5, 0.7])
    predictor = make_predictor(iou_loss_weight=2.0)
    losses = predictor.localisation_losses({"iou": torch.tensor([[0.6], [1.7]])}, samples)
    assert set(losses) == {"loss_iou"}
    assert losses["loss_iou"].item() == pytest.approx(0.76)
    assert storage.latest()["iou_uniform/iou_mae"][0] == pytest.approx(0.55)


@pytest.mark.parametrize(
    "weights, target", [((10.0, 10.0, 5.0, 5.0), -1.0), (STAGE_2, -2.0)], ids=["1", "2"]
)
def test_targets_by_hand(weights, target, storage):
    predictor = make_predictor(weights=weights)
    samples = make_samples([[10, 10, 110, 110]], [[0, 0, 100, 100]], [0.6807])
    exact = torch.tensor([[target, target, 0.0, 0.0]])
    assert predictor.localisation_losses({"reg": exact}, samples)["loss_box_reg"] == 0
    zero = predictor.localisation_losses({"reg": torch.zeros(1, 4)}, samples)["loss_box_reg"]
    # IoU .68 weighs 1.5; smooth L1 is |d| - 1/2 from |d| = 1 on.
    assert zero.item() == pytest.approx(1.5 * 2 * (abs(target) - 0.5) / 4)


def test_no_boxes_are_a_zero_with_a_gradient(storage):
    predictor = make_predictor()
    features = torch.zeros(0, 8)
    outputs = {name: predictor(name, features) for name in ("reg", "iou")}
    losses = predictor.localisation_losses(outputs, make_samples([], [], []))
    sum(losses.values()).backward()
    assert losses == {"loss_box_reg": 0, "loss_iou": 0}
    for name in ("reg", "iou"):
        assert not predictor.predictors[name].weight.grad.any()
    assert row_box_losses(torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0), 1.0).shape == (0,)


@pytest.mark.parametrize(
    "weights, expected",
    [((1.0, 1.5, 2.0, 3.0), 0.558), ((1.0, 1.0, 1.0, 1.0), 0.395), ((1.0, 1.5, 3.0, 3.0), 0.618)],
)
def test_losses_at_the_start(weights, expected, make_targets, storage):
    """Zero outputs on 300 objects: the values and shares that the samples' statistics give."""
    objects = [([400 * i + 400, 250, 400 * i + 500, 310], 0) for i in range(300)]
    targets = make_targets(objects, size=(600, 400 * 300 + 1000))
    samples = draw_samples(IoUUniformSampler(), targets, [10**6])
    num_boxes = len(samples.gt_boxes)
    assert num_boxes == 300 * 64
    assert samples.reg_divisor == 4 * num_boxes
    predictor = make_predictor(interval_weights=weights)
    outputs = {"reg": torch.zeros(num_boxes, 4), "iou": torch.zeros(num_boxes, 1)}
    losses = predictor.localisation_losses(outputs, samples)
    assert losses["loss_box_reg"].item() == pytest.approx(expected, abs=0.02)
    assert losses["loss_iou"].item() == pytest.approx(0.438, abs=0.01)
    parts = [storage.latest()[f"iou_uniform/reg_loss_int{m}"][0] for m in (1, 2, 3, 4)]
    shares = {1.0: (0.49, 0.30, 0.15, 0.05), 2.0: (0.35, 0.32, 0.22, 0.12)}
    for part, share in zip(parts, shares.get(weights[2], (0.32, 0.29, 0.29, 0.10))):
        assert part / sum(parts) == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize("num_classes", [1, 2, 4, 20, 80])
def test_classification_at_the_start(num_classes, storage):
    predictor = make_predictor(num_classes)
    logits = torch.zeros(3, num_classes + 1)
    proposals = [proposals_of([0, num_classes]), proposals_of([num_classes])]
    loss = predictor.classification_loss(logits, proposals)
    assert loss.item() == pytest.approx(math.log(num_classes + 1), rel=1e-5)


def test_the_layers_start_as_the_text_says():
    predictor = make_predictor(80)
    layers = predictor.predictors
    assert not any(layer.bias.any() for layer in layers.values())
    torch.manual_seed(0)
    wide = {"cls": ShapeSpec(channels=4096), "loc": ShapeSpec(channels=4096)}
    layers = IoUUniformOutputLayers(
        wide, plan=PLAN, box2box_transform=Box2BoxTransform((1, 1, 1, 1)), num_classes=3
    ).predictors
    stds = {name: layer.weight.std().item() for name, layer in layers.items()}
    assert stds == pytest.approx({"cls": 0.01, "reg": 0.001, "iou": 0.01}, rel=0.05)
    assert set(predictor.state_dict()) == {
        f"predictors.{name}.{part}" for name in ("cls", "reg", "iou") for part in ("weight", "bias")
    }


# --- samples ---


def test_samples_of_a_batch(make_targets, storage):
    boxes = [([10, 10, 40, 40], 0), ([50, 10, 90, 60], 1)]
    targets = make_targets([], boxes, boxes[:1])
    samples = draw_samples(IoUUniformSampler(), targets, [128] * 3)
    assert [len(b) for b in samples.boxes] == [0, 128, 64]
    every = torch.cat([b.tensor for b in samples.boxes])
    assert (every >= 0).all()
    assert (every <= torch.tensor([96.0, 64.0, 96.0, 64.0])).all()
    assert samples.gt_boxes[[0, 127, 128]].tolist() == [boxes[0][0], boxes[1][0], boxes[0][0]]
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest["iou_uniform/num_samples"] == 64
    assert [latest[f"iou_uniform/num_int{m}"] for m in (1, 2, 3, 4)] == [16] * 4
    assert latest["iou_uniform/fill_rate"] == 1
    assert not any(part.requires_grad for part in (every, samples.gt_boxes, samples.iou))


def test_a_batch_without_objects_has_no_samples(make_targets, storage):
    samples = draw_samples(IoUUniformSampler(), make_targets([], []), [9, 9])
    assert [len(b) for b in samples.boxes] == [0, 0]
    assert samples.gt_boxes.shape == (0, 4)
    assert samples.reg_divisor == 4
    assert "iou_uniform/fill_rate" not in storage.latest()


def test_no_more_samples_than_asked_for(make_targets, storage):
    objects = [([10, 10, 40, 40], 0), ([50, 10, 90, 60], 1)]
    targets = make_targets(objects, objects)
    samples = draw_samples(IoUUniformSampler(), targets, [40, 200])
    assert [len(b) for b in samples.boxes] == [40, 128]
    edges = torch.tensor([0.5, 0.6, 0.7, 0.8, 1.0])
    assert interval_of(samples.iou[:40], edges).bincount().tolist() == [10] * 4
    assert samples.reg_divisor == 4 * 168
    assert storage.latest()["iou_uniform/fill_rate"][0] == pytest.approx(168 / 256)


def uniform_samples(sizes):
    """As many samples in each interval as `sizes` says, told apart by their IoU."""
    interval = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    rows = torch.arange(len(interval))
    return UniformSamples(torch.zeros(len(rows), 4), rows, rows.float(), interval)


@pytest.mark.parametrize("count", [0, 4, 12, 40])
def test_resampling_is_even_over_intervals(count):
    chosen = resample(uniform_samples([32, 32, 32, 32]), count, 4)
    assert chosen.interval.bincount(minlength=4).tolist() == [count // 4] * 4
    assert len(chosen.iou.unique()) == count
    assert torch.equal(chosen.interval, chosen.gt_index // 32)


def test_the_rest_goes_to_intervals_at_random_and_nothing_is_taken_twice():
    more = torch.zeros(4)
    for _ in range(200):
        sizes = resample(uniform_samples([8, 8, 8, 8]), 6, 4).interval.bincount(minlength=4)
        assert sorted(sizes.tolist()) == [1, 1, 2, 2]
        more += sizes - 1
    # 100 +- 7 each.
    assert (more > 65).all()
    assert (more < 135).all()
    short = resample(uniform_samples([1, 8, 0, 8]), 16, 4)
    assert short.interval.bincount(minlength=4).tolist() == [1, 4, 0, 4]
    assert len(short.iou.unique()) == 9
    rows = torch.cat([resample(uniform_samples([10] * 4), 4, 4).gt_index for _ in range(300)])
    assert len(rows.unique()) == 40


def test_foreground_samples_by_hand():
    box, gt = [10, 10, 110, 110], [0, 0, 100, 100]
    proposals = [
        proposals_of([3, 0, 2, 3], [box, box, gt, box], [gt] * 4),
        proposals_of([3, 3]),
    ]
    rows, samples = foreground_samples(proposals, num_classes=3)
    assert rows.tolist() == [1, 2]
    assert [len(b) for b in samples.boxes] == [2, 0]
    assert samples.gt_boxes.tolist() == [gt, gt]
    assert samples.iou.tolist() == pytest.approx([0.6807, 1.0], abs=1e-4)
    assert samples.reg_divisor == 6


def test_box_loss_on_foreground_is_that_of_faster_rcnn(storage):
    """Sum over the foreground, divided by all sampled proposals."""
    box, gt = [10, 10, 110, 110], [0, 0, 100, 100]
    proposals = [proposals_of([3, 0, 3, 3], [box] * 4, [gt] * 4)]
    _, samples = foreground_samples(proposals, num_classes=3)
    predictor = make_predictor(3, interval_weights=(1.0,) * 4)
    losses = predictor.localisation_losses({"reg": torch.zeros(1, 4)}, samples)
    assert losses["loss_box_reg"].item() == pytest.approx(2 * 0.5 / 4)


# --- decoding ---


def test_boxes_are_clipped_and_what_is_not_finite_stays_so():
    predictor = make_predictor()
    proposals = [proposals_of([0] * 3, [[150, 10, 190, 50]] * 3), proposals_of([])]
    deltas = torch.zeros(3, 4)
    deltas[1, 0] = 10.0  # by the width, 40 pixels
    deltas[2, 1] = math.inf
    first, second = predictor.predict_boxes(deltas, proposals)
    assert first[:2].tolist() == [[150, 10, 190, 50], [190, 10, 200, 50]]
    assert first[2].isnan().all()
    assert second.shape == (0, 4)


@pytest.mark.parametrize("clamp, expected", [(False, [-0.5, 0.5, 1.5]), (True, [0.0, 0.5, 1.0])])
def test_raw_ious(clamp, expected):
    output = torch.tensor([[-0.5], [0.5], [1.5]])
    first, second = make_predictor(iou_clamp=clamp).predict_iou(output, [1, 2])
    assert first.tolist() + second.tolist() == expected
