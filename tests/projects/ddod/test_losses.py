"""Coder, losses and the whole of both on a grid whose numbers can be found by hand.

The grid is that of tests/core/test_assigners.py: 512x512, five levels, one object of 128x128 that
matches nine anchors of P4.
"""

import math

import pytest
import torch

from clsloc.box_losses import diou_loss, giou_loss
from clsloc.boxes import elementwise_iou
from ddod.coder import PointTransform, anchor_side_in_strides
from ddod.losses import DenseOutputs, centerness, focal_loss
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances

OBJECT = [192.0, 192.0, 320.0, 320.0]
SIZE = (512, 512)
GRIDS = [(512 // stride,) * 2 for stride in (8, 16, 32, 64, 128)]
ANCHOR, TARGET = torch.tensor([[-32.0, -32, 32, 32]]), torch.tensor([[-16.0, -16, 16, 48]])


@pytest.mark.parametrize(
    "coder, expected",
    [
        (Box2BoxTransform((10.0, 10.0, 5.0, 5.0)), [0.0, 2.5, -3.465736, 0.0]),
        (PointTransform(8.0), [2.0, 2.0, 2.0, 6.0]),
    ],
)
def test_coders(coder, expected):
    deltas = coder.get_deltas(ANCHOR, TARGET)
    assert deltas[0].tolist() == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(coder.apply_deltas(deltas, ANCHOR), TARGET)


def test_distances_below_0_count_as_0():
    boxes = PointTransform(8.0).apply_deltas(torch.tensor([[-1.0, 2, -3, 4]]), ANCHOR)
    assert boxes.tolist() == [[0.0, -16.0, 0.0, 32.0]]


def test_the_side_of_anchors_in_strides():
    assert anchor_side_in_strides([[64], [128]], [[1.0]], [8, 16]) == 8
    assert anchor_side_in_strides([[32]], [[1.0]], [8]) == 4


def test_loss_terms():
    one, other = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 3, 3]])
    assert giou_loss(one, other).item() == pytest.approx(1.079365, abs=1e-6)
    assert diou_loss(one, other).item() == pytest.approx(0.968254, abs=1e-6)
    assert elementwise_iou(one, other).item() == pytest.approx(1 / 7)
    target = torch.tensor(1 / 7)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(torch.tensor(2.0), target)
    assert bce.item() == pytest.approx(1.841214, abs=1e-6)
    for loss in (giou_loss, diou_loss):
        assert loss(one, one).item() == pytest.approx(0, abs=1e-6)
        assert loss(one[:0], other[:0]).shape == (0,)
        far = torch.tensor([[10.0, 0, 11, 1]], requires_grad=True)
        loss(far, one).sum().backward()
        assert far.grad[0, 0] > 0
        assert loss(torch.tensor([[2.0, 2, 1, 1]]), one).isfinite().all()


def test_focal_loss_at_the_start_and_at_0():
    start = torch.full((1, 3, 1), -math.log(99))
    found = focal_loss(start, torch.tensor([[1, 0, -1]]), 0.25, 2.0)[0].tolist()
    assert found == pytest.approx([7.5377e-7, 1.12838, 0.0], rel=1e-4)
    found = focal_loss(torch.zeros(1, 2, 1), torch.tensor([[1, 0]]), 0.25, 2.0)[0].tolist()
    assert found == pytest.approx([0.1299651, 0.0433217], rel=1e-5)


def test_centerness():
    anchors = torch.tensor([[-1.0, -1, 1, 1]]).expand(3, 4)
    objects = torch.tensor([[-5.0, -5, 5, 5], [-2, -5, 8, 5], [-1, -1, 4, 9]])
    found = centerness(anchors, objects).tolist()
    assert found == pytest.approx([1.0, 0.5, math.sqrt(1 / 36)])


def grid_model(build_tiny, **keys):
    return build_tiny(**{"NUM_CLASSES": 80, **keys}).train()


def objects(*boxes, label=3):
    instances = Instances(SIZE)
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.full((len(boxes),), label)
    return instances


def losses_on_grid(model, logits=None, gt=None, num_images=1):
    """The losses with equal logits everywhere and predictions that are the anchors."""
    anchors = model.anchor_generator([torch.zeros(1, 1, *grid) for grid in GRIDS])
    total = sum(len(level) for level in anchors)
    num_classes = model.num_classes
    if logits is None:
        logits = torch.zeros(1, 1, 1)
    logits = logits.expand(num_images, total, num_classes).clone().requires_grad_()
    deltas = torch.zeros(num_images, total, 4, requires_grad=True)
    quality = torch.zeros(num_images, total, requires_grad=True)
    outputs = DenseOutputs(logits, deltas, quality)
    from clsloc.assigners import Anchors

    anchors = Anchors(Boxes.cat(anchors).tensor, [len(level) for level in anchors])
    gt = [objects(OBJECT)] if gt is None else gt
    targets = model.label_anchors(anchors, GRIDS, outputs, [SIZE] * num_images, gt)
    losses, log = model.losses(anchors.boxes, anchors.level_sizes, outputs, targets)
    return losses, log, outputs


def test_full_loss(build_tiny):
    losses, log, _ = losses_on_grid(grid_model(build_tiny))
    assert losses["loss_cls"].item() == pytest.approx(11422.9789, rel=1e-6)
    assert losses["loss_box_reg"].item() == pytest.approx(0.557031, rel=1e-5)
    assert losses["loss_iou"].item() == pytest.approx(0.693147, rel=1e-5)
    assert (log["norm_cls"], log["norm_reg"]) == (9, 9)
    keys = {"REWEIGHT.TYPE": "none"}
    losses, _, _ = losses_on_grid(grid_model(build_tiny, **keys))
    assert losses["loss_cls"].item() == pytest.approx(6302.9317, rel=1e-6)


def test_positives_of_one_task_alone(build_tiny):
    """The class is likely on P5 only: classification learns on P4, regression on P5."""
    model = grid_model(build_tiny, NUM_CLASSES=1)
    probs = [0.1, 0.1, 0.9, 0.1, 0.1]
    sizes = [rows * columns for rows, columns in GRIDS]
    logits = torch.cat([torch.full((size,), p).logit() for size, p in zip(sizes, probs)])
    losses, log, outputs = losses_on_grid(model, logits[None, :, None], [objects(OBJECT, label=0)])
    assert losses["loss_box_reg"].item() == pytest.approx(1.5, rel=1e-5)
    assert losses["loss_iou"].item() == pytest.approx(math.log(2), rel=1e-5)
    assert log["w_cls"].tolist() == [2, 1, 2, 2, 2]
    assert log["w_reg"].tolist() == [2, 2, 1, 2, 2]
    assert log["pos_overlap"] == 0
    # P5 is background for classification: the gradient lowers its logits. P4 has no box loss.
    sum(losses.values()).backward()
    of_levels = [grad.split(sizes, dim=1) for grad in (outputs.logits.grad, outputs.deltas.grad)]
    assert (of_levels[0][2] > 0).all()
    assert (of_levels[0][1] < 0).sum() == 9
    assert not of_levels[1][1].any() and of_levels[1][2].any()


def test_gradients_flow_through_the_losses_alone(build_tiny):
    losses, _, outputs = losses_on_grid(grid_model(build_tiny))
    deltas = outputs.deltas
    (through_iou,) = torch.autograd.grad(losses["loss_iou"], deltas, allow_unused=True)
    assert through_iou is None or not through_iou.any()
    (through_box,) = torch.autograd.grad(losses["loss_box_reg"], outputs.logits, allow_unused=True)
    assert through_box is None or not through_box.any()


@pytest.mark.parametrize("config", ["atss_centerness_R_50_FPN_1x", "fcos_star_R_50_FPN_1x"])
def test_centerness_weighs_the_boxes(config, build_tiny):
    losses, _, _ = losses_on_grid(grid_model(build_tiny, config=config))
    # Centres of the nine anchors: 64 of 128 apart from a side, one step of 16 to both sides.
    side = (48 / 80) ** 0.5
    weights = [1.0] + [side] * 4 + [side**2] * 4
    assert list(losses) == ["loss_cls", "loss_box_reg", "loss_centerness"]
    assert losses["loss_centerness"].item() == pytest.approx(math.log(2), rel=1e-5)
    if config.startswith("atss"):
        ious = [1.0] + [112 / 144] * 4 + [112**2 / (2 * 128**2 - 112**2)] * 4
        hulls = [128**2] + [128 * 144] * 4 + [144**2] * 4
        unions = [2 * 128**2 - iou / (1 + iou) * 2 * 128**2 for iou in ious]
        each = [1 - i + (h - u) / h for i, h, u in zip(ious, hulls, unions, strict=True)]
        weighted = sum(w * e for w, e in zip(weights, each, strict=True)) / sum(weights)
        assert losses["loss_box_reg"].item() == pytest.approx(2 * weighted, rel=1e-5)


def test_nothing_to_find_still_has_gradients(build_tiny):
    losses, log, outputs = losses_on_grid(grid_model(build_tiny), gt=[objects()])
    assert losses["loss_box_reg"] == losses["loss_iou"] == 0
    assert log["norm_reg"] == 1
    sum(losses.values()).backward()
    for value in (outputs.logits, outputs.deltas, outputs.quality):
        assert value.grad.isfinite().all()


def test_images_of_a_batch_keep_their_objects(build_tiny):
    """The second image has its object elsewhere: losses are those of two single images."""
    model = grid_model(build_tiny, **{"REWEIGHT.TYPE": "none"})
    gts = [objects(OBJECT), objects([64.0, 64, 128, 160], [256, 256, 448, 448])]
    together, _, _ = losses_on_grid(model, gt=gts, num_images=2)
    alone = [losses_on_grid(model, gt=[gt]) for gt in gts]
    for task, name in (("reg", "loss_box_reg"), ("reg", "loss_iou"), ("cls", "loss_cls")):
        sums = sum(losses[name] * log[f"norm_{task}"] for losses, log, _ in alone)
        norm = sum(log[f"norm_{task}"] for _, log, _ in alone)
        torch.testing.assert_close(together[name], sums / norm, rtol=1e-5, atol=1e-6)
