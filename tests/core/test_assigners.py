"""Assigners of dense detectors, on a grid whose numbers can be found by hand.

The grid: an image of 512x512 with levels of stride 8 to 128, one square anchor of side 8 * stride
at every multiple of the stride. The object [192, 192, 320, 320] has nine nearest centres on each
level, a block of 3x3 without ties.
"""

import math
import os
import subprocess
import sys

import pytest
import torch

from clsloc.assigners import (
    Anchors,
    ATSSAssigner,
    CostAssigner,
    MaxIoUAssigner,
    Predictions,
    anchors_in_crowds,
    matching_quality,
    valid_anchors,
)
from clsloc.assigners.adaptive import adaptive_threshold, centre_is_inside, nearest_candidates
from clsloc.boxes import elementwise_iou
from clsloc.errors import UserError
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou

STRIDES = (8, 16, 32, 64, 128)
OBJECT = [192.0, 192.0, 320.0, 320.0]


def grid(size=512, strides=STRIDES):
    levels = []
    for stride in strides:
        steps = torch.arange(0, size, stride, dtype=torch.float32)
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        centres = torch.stack([x, y], dim=-1).reshape(-1, 2)
        levels.append(torch.cat([centres - 4 * stride, centres + 4 * stride], dim=1))
    return Anchors(torch.cat(levels), [len(level) for level in levels])


ANCHORS = grid()


def predict(probs=0.5, num_classes=2, boxes=None):
    """Equal probabilities everywhere, or (R, K) ones; boxes are the anchors."""
    probs = torch.as_tensor(probs).expand(len(ANCHORS.boxes), num_classes)
    return Predictions(torch.logit(probs), ANCHORS.boxes if boxes is None else boxes)


def level_probs(*values):
    """(R, 1) probabilities by level."""
    pairs = zip(values, ANCHORS.level_sizes, strict=True)
    return torch.cat([torch.full((size, 1), value) for value, size in pairs])


def assign(assigner, boxes=(OBJECT,), classes=None, predictions=None):
    boxes = torch.tensor(boxes).reshape(-1, 4)
    classes = torch.tensor(classes or [0] * len(boxes), dtype=torch.int64)
    return assigner(ANCHORS, boxes, classes, predictions or predict())


def per_level(assignment, num_classes=2, sizes=ANCHORS.level_sizes):
    positive = (assignment.labels >= 0) & (assignment.labels < num_classes)
    return [int(level.sum()) for level in positive.split(list(sizes))]


def test_the_grid_has_nine_candidates_on_each_level():
    candidates = nearest_candidates(ANCHORS, torch.tensor([OBJECT]), 9)
    assert candidates.shape == (45, 1)
    centres = ANCHORS.centres[candidates[:, 0]].view(5, 9, 2)
    for stride, found in zip(STRIDES, centres, strict=True):
        expected = {(256.0 + dx * stride, 256.0 + dy * stride) for dx, dy in BLOCK}
        assert {tuple(centre.tolist()) for centre in found} == expected


BLOCK = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]


def test_atss_takes_the_nine_anchors_of_equal_size():
    quality = elementwise_iou(
        ANCHORS.boxes[nearest_candidates(ANCHORS, torch.tensor([OBJECT]), 9)],
        torch.tensor([OBJECT]),
    )
    assert quality.mean().item() == pytest.approx(0.262117, abs=1e-6)
    assert adaptive_threshold(quality).item() == pytest.approx(0.524502, abs=1e-6)
    of_p4 = sorted(quality[9:18, 0].tolist())
    assert of_p4 == pytest.approx([0.620253] * 4 + [0.777778] * 4 + [1.0], abs=1e-6)
    cls, reg = assign(ATSSAssigner())
    assert cls is reg
    assert per_level(cls) == [0, 9, 0, 0, 0]
    assert (cls.labels == 2).sum() == len(ANCHORS.boxes) - 9


@pytest.mark.parametrize(
    "alpha, prob, threshold",
    [(0.8, 0.5, 0.506890), (0.5, 0.5, 0.495355), (0.8, 0.01, 0.231804), (0.5, 0.01, 0.070054)],
)
def test_threshold_of_the_cost(alpha, prob, threshold):
    candidates = nearest_candidates(ANCHORS, torch.tensor([OBJECT]), 9)
    ious = elementwise_iou(ANCHORS.boxes[candidates], torch.tensor([OBJECT]))
    quality = matching_quality(torch.full_like(ious, prob), ious, alpha)
    assert adaptive_threshold(quality).item() == pytest.approx(threshold, abs=1e-6)
    for assignment in assign(CostAssigner(alpha, alpha), predictions=predict(prob)):
        assert per_level(assignment) == [0, 9, 0, 0, 0]


@pytest.mark.parametrize("metric", ["distance", "cost"])
def test_the_two_tasks_can_have_disjoint_positives(metric):
    predictions = predict(level_probs(0.1, 0.1, 0.9, 0.1, 0.1), num_classes=1)
    cls, reg = assign(CostAssigner(topk_metric=metric), predictions=predictions)
    assert per_level(cls, 1) == [0, 9, 0, 0, 0]
    assert per_level(reg, 1) == [0, 0, 9, 0, 0]
    shared, same = assign(CostAssigner(shared=True), predictions=predictions)
    assert shared is same
    assert torch.equal(shared.labels, cls.labels)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_assignment_by_cost_takes_the_best_of_each_level(alpha):
    """The candidates of the text, found in one array over all anchors."""
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(len(ANCHORS.boxes), 2, generator=generator)
    predictions = predict(probs)
    cls, _ = assign(CostAssigner(alpha, topk_metric="cost"), predictions=predictions)
    box = torch.tensor([OBJECT])
    inside = ((ANCHORS.centres > box[:, :2]) & (ANCHORS.centres < box[:, 2:])).all(dim=1)
    ious = pairwise_iou(Boxes(box), Boxes(ANCHORS.boxes))[0]
    quality = probs[:, 0] ** (1 - alpha) * ious**alpha * inside
    levels = quality.split(ANCHORS.level_sizes)
    best = torch.cat([level.topk(9).values for level in levels])
    chosen = torch.cat([level >= level.topk(9).values[-1] for level in levels])
    expected = (quality >= best.mean() + best.std()) & chosen & inside
    assert expected.any()
    assert torch.equal(cls.labels == 0, expected)


def test_the_exponent_stands_on_the_iou():
    probs, ious = torch.tensor([0.9, 0.5]), torch.tensor([0.5, 0.9])
    values = {alpha: matching_quality(probs, ious, alpha).tolist() for alpha in (0.8, 0.5, 0.2)}
    assert values[0.8] == pytest.approx([0.562373, 0.800181], abs=1e-6)
    assert values[0.5] == pytest.approx([0.670820, 0.670820], abs=1e-6)
    assert values[0.2] == pytest.approx([0.800181, 0.562373], abs=1e-6)
    zero = torch.zeros(1)
    assert matching_quality(zero, zero + 0.3, 1.0).item() == pytest.approx(0.3)


def test_the_iou_is_that_of_the_prediction():
    """Predictions twice as large fit where anchors half as large stand."""
    boxes = ANCHORS.boxes
    centres, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2])
    predictions = predict(boxes=torch.cat([centres - half, centres + half], dim=1))
    for assignment in assign(CostAssigner(), predictions=predictions):
        assert per_level(assignment) == [9, 0, 0, 0, 0]


@pytest.mark.parametrize("assigner", [ATSSAssigner(), CostAssigner(), MaxIoUAssigner()])
def test_an_image_without_objects_is_background(assigner):
    for assignment in assign(assigner, boxes=()):
        assert (assignment.labels == 2).all()
        assert len(assignment.labels) == len(ANCHORS.boxes)


def test_an_object_without_a_centre_inside_gets_nothing():
    assert per_level(assign(ATSSAssigner(), [[257.0, 257.0, 262.0, 262.0]])[0]) == [0] * 5
    assert per_level(assign(ATSSAssigner(), [[254.0, 254.0, 262.0, 262.0]])[0]) == [1, 0, 0, 0, 0]


def test_centres_on_the_border_are_outside():
    box = [[256.0, 256.0, 262.0, 262.0]]
    assert per_level(assign(ATSSAssigner(), box)[0]) == [0] * 5


def test_a_centre_is_inside_by_more_than_a_hundredth_of_a_pixel():
    centres = torch.tensor([[10.005, 20.0], [10.02, 20.0], [39.995, 20.0], [39.98, 20.0]])
    box = torch.tensor([10.0, 0, 40, 40])
    assert centre_is_inside(centres, box).tolist() == [False, True, False, True]


def test_an_iou_at_a_threshold_has_reached_it():
    anchors = Anchors(torch.tensor([[0.0, 0, 8, 4], [0.0, 0, 8, 2]]), (2,))  # IoU 0.5 and 0.25
    predicted = Predictions(torch.zeros(2, 1), anchors.boxes)
    assigner = MaxIoUAssigner((0.25, 0.5), (0.25, 0.5), low_quality=False)
    objects = torch.tensor([[0.0, 0, 8, 8]]), torch.tensor([0])
    for assignment in assigner(anchors, *objects, predicted):
        assert assignment.labels.tolist() == [0, -1]


def test_equal_qualities_make_all_candidates_inside_positive():
    far_away = torch.tensor([[1000.0, 1000.0, 1001.0, 1001.0]]).expand(len(ANCHORS.boxes), 4)
    for assignment in assign(CostAssigner(), predictions=predict(boxes=far_away)):
        assert per_level(assignment) == [9, 9, 9, 1, 1]


def test_two_groups_of_equal_size_can_leave_no_positive():
    threshold = adaptive_threshold(torch.tensor([[0.9], [0.5]]))
    assert threshold.item() == pytest.approx(0.982843, abs=1e-6)
    assert math.isnan(adaptive_threshold(torch.tensor([[0.9]])).item())


def test_nested_objects_keep_nine_each():
    cls, _ = assign(ATSSAssigner(), [OBJECT, [224.0, 224.0, 288.0, 288.0]], [0, 1])
    assert per_level(cls) == [9, 9, 0, 0, 0]
    assert (cls.labels == 0).sum() == (cls.labels == 1).sum() == 9
    assert torch.equal(cls.matched[cls.labels < 2], cls.labels[cls.labels < 2])


def test_the_object_of_higher_quality_wins_and_the_first_of_equals():
    predictions = predict(torch.tensor([0.1, 0.9]))
    for assignment in assign(CostAssigner(), [OBJECT] * 2, [0, 1], predictions):
        assert (assignment.labels == 1).sum() == 9
        assert (assignment.labels == 0).sum() == 0
    cls, _ = assign(CostAssigner(), [OBJECT] * 2, [1, 0])
    assert (cls.labels == 1).sum() == 9
    assert (cls.matched == 0).all()


def random_boxes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator) * 500
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1) + 8], dim=1)


@pytest.mark.parametrize("topk_metric", ["distance", "cost"])
def test_chunks_change_nothing(topk_metric, monkeypatch):
    boxes, classes = random_boxes(7), torch.tensor([0, 1, 0, 1, 1, 0, 0])
    assigners = [ATSSAssigner(), CostAssigner(topk_metric=topk_metric), MaxIoUAssigner()]
    generator = torch.Generator().manual_seed(1)
    predictions = predict(torch.rand(len(ANCHORS.boxes), 2, generator=generator))
    whole = [a(ANCHORS, boxes, classes, predictions) for a in assigners]
    monkeypatch.setattr("clsloc.assigners.adaptive._MAX_ELEMENTS", 2 * len(ANCHORS.boxes))
    parts = [a(ANCHORS, boxes, classes, predictions) for a in assigners]
    for one, other in zip(whole, parts, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a.labels, b.labels)
            assert torch.equal(a.matched, b.matched)
            assert (a.labels < 2).sum() > 7


@pytest.mark.parametrize("low_quality", [True, False])
def test_max_iou_is_what_detectron2_matches(low_quality):
    boxes, classes = random_boxes(7), torch.tensor([0, 1, 0, 1, 1, 0, 0])
    overlaps = pairwise_iou(Boxes(boxes), Boxes(ANCHORS.boxes))
    matcher = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=low_quality)
    matched, kinds = matcher(overlaps)
    labels = classes[matched]
    labels[kinds == 0] = 2
    labels[kinds == -1] = -1
    cls, reg = MaxIoUAssigner(low_quality=low_quality)(ANCHORS, boxes, classes, predict())
    assert cls is reg
    assert {-1, 0, 1, 2} == set(labels.tolist())
    assert torch.equal(cls.labels, labels)
    assert torch.equal(cls.matched, matched)


def test_max_iou_has_thresholds_for_each_task():
    assigner = MaxIoUAssigner((0.4, 0.7), (0.4, 0.5))
    cls, reg = assign(assigner)
    assert per_level(cls) == [0, 5, 0, 0, 0]
    # Two steps to a side the IoU is 0.6.
    assert per_level(reg) == [0, 13, 0, 0, 0]
    assert (cls.labels == -1).sum() == 8 + (reg.labels == -1).sum()


def test_an_object_that_no_anchor_overlaps_gets_none():
    assert per_level(assign(MaxIoUAssigner(), [[2000.0, 0.0, 2010.0, 10.0]])[0]) == [0] * 5


def test_padding_of_an_image_is_left_out():
    grids = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    index, sizes = valid_anchors((100, 150), grids, STRIDES, 1)
    assert sizes == [320, 80, 20, 6, 2]
    assert len(index) == 428
    columns = index[index < 384] % 24
    assert columns.max() == 19
    assert torch.equal(index, index.unique())
    index, sizes = valid_anchors((100, 150), grids, STRIDES, 3)
    assert sizes == [960, 240, 60, 18, 6]
    assert index[:61].tolist() == [*range(60), 72]
    assert valid_anchors((128, 192), grids, STRIDES, 1) == (None, [384, 96, 24, 6, 2])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: CostAssigner(1.2), "alpha_cls is an exponent between 0 and 1, got 1.2"),
        (lambda: CostAssigner(0.5, -1), "alpha_reg"),
        (lambda: CostAssigner(topk_metric="size"), "distance or cost, got 'size'"),
        (lambda: MaxIoUAssigner((0.5, 0.4)), "IOU_CLS are two rising thresholds"),
        (lambda: MaxIoUAssigner(thresholds_reg=(0.5,)), "IOU_REG"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_anchors_of_which_a_larger_share_lies_in_a_crowd():
    anchors = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [6, 0, 16, 10], [40, 0, 50, 10]])
    # 100, 50, 40 and 0 % of them lie in the first; the second holds a tenth of the last.
    crowds = torch.tensor([[0.0, 0, 10, 20], [49, 0, 60, 10]])
    assert anchors_in_crowds(anchors, crowds, 0.4).tolist() == [True, True, False, False]
    assert anchors_in_crowds(anchors, crowds, 0.5).tolist() == [True, False, False, False]
    assert anchors_in_crowds(anchors, crowds, 0.0).tolist() == [True, True, True, True]
    assert anchors_in_crowds(anchors, crowds[1:], 0.0).tolist() == [False, False, False, True]
    assert not anchors_in_crowds(anchors, crowds[:0], 0.0).any()


PEAK = """
import torch
from clsloc.assigners import *
from clsloc.gauges.workload import resident_peak_mb

generator = torch.Generator().manual_seed(0)
anchors = torch.rand(100_000, 2, generator=generator) * 1000
anchors = Anchors(torch.cat([anchors, anchors + 32], dim=1), [70_000, 20_000, 10_000])
corners = torch.rand(1000, 2, generator=generator) * 1000
gt_boxes = torch.cat([corners, corners + 40], dim=1)
predictions = Predictions(torch.zeros(100_000, 1), anchors.boxes)
before = resident_peak_mb()
for assigner in (
    ATSSAssigner(), CostAssigner(), CostAssigner(topk_metric="cost"), MaxIoUAssigner()
):
    cls, reg = assigner(anchors, gt_boxes, torch.zeros(1000, dtype=torch.int64), predictions)
    assert (cls.labels == 0).sum() > 1000
assert anchors_in_crowds(anchors.boxes, gt_boxes, 0.5).any()
print(resident_peak_mb() - before)
"""


def test_a_thousand_objects_and_a_hundred_thousand_anchors_take_less_than_a_gigabyte():
    """In a process of its own: the peak of this one says nothing."""
    command = [sys.executable, "-c", PEAK]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < 1000
