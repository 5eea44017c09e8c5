"""Soft-NMS and voting against values by hand and against plain loops."""

import math

import pytest
import torch

from clsloc import nms
from clsloc.nms import SOFT_NMS_METHODS, soft_nms, soft_nms_inference, voting_nms
from detectron2.layers import batched_nms
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, pairwise_iou

A, B, FAR = [0.0, 0, 100, 100], [10.0, 0, 110, 100], [300.0, 0, 400, 100]
IOU = 90 / 110  # of A and B


def run(boxes, scores, classes=None, **kwargs):
    classes = [0] * len(boxes) if classes is None else classes
    kept, scores = soft_nms(
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor(scores),
        torch.tensor(classes, dtype=torch.int64),
        **kwargs,
    )
    return kept.tolist(), scores.tolist()


def test_linear_by_hand():
    kept, scores = run([A, B], [0.9, 0.8])
    assert kept == [0, 1]
    assert scores == pytest.approx([0.9, 0.8 * (1 - IOU)])
    assert scores[1] == pytest.approx(0.1455, abs=1e-4)
    hard = batched_nms(
        torch.tensor([A, B]), torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.int64), 0.5
    )
    assert hard.tolist() == [0]


def test_gaussian_by_hand():
    kept, scores = run([A, B], [0.9, 0.8], method="gaussian", sigma=0.5)
    assert kept == [0, 1]
    assert scores == pytest.approx([0.9, 0.8 * math.exp(-(IOU**2) / 0.5)])


def test_overlap_up_to_the_threshold_costs_nothing():
    assert run([A, B], [0.9, 0.8], iou_thresh=0.82)[1] == pytest.approx([0.9, 0.8])


def test_below_the_smallest_score_a_box_is_dropped():
    assert run([A, B], [0.9, 0.8], min_score=0.1454)[0] == [0, 1]
    assert run([A, B], [0.9, 0.8], min_score=0.1456)[0] == [0]
    assert run([A, A], [0.9, 0.8])[0] == [0]  # a copy has IoU 1
    assert run([A], [0.0005])[0] == []


def test_classes_do_not_touch_each_other():
    kept, scores = run([A, B], [0.9, 0.8], [7, 2])
    assert (kept, scores) == ([0, 1], pytest.approx([0.9, 0.8]))


def test_the_order_is_that_of_the_lowered_scores():
    kept, scores = run([A, B, FAR], [0.9, 0.8, 0.3])
    assert kept == [0, 2, 1]
    assert scores == pytest.approx([0.9, 0.3, 0.8 * (1 - IOU)])
    assert run([A, B, FAR], [0.9, 0.8, 0.3], topk=2)[0] == [0, 2]
    assert run([A, B, FAR], [0.9, 0.8, 0.3], topk=0) == ([], [])


def test_equal_scores_and_no_box():
    kept, scores = run([FAR, A], [0.5, 0.5])
    assert sorted(kept) == [0, 1] and scores == [0.5, 0.5]
    assert run([], []) == ([], [])


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="'cosine'"):
        run([A], [0.5], method="cosine")


def random_detections(num=60, num_classes=3):
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(num, 2, generator=generator) * 60 + 20
    halves = torch.rand(num, 2, generator=generator) * 10 + 10
    boxes = torch.cat([centres - halves, centres + halves], dim=1)
    scores = torch.rand(num, generator=generator)
    return boxes, scores, torch.randint(num_classes, (num,), generator=generator)


def plain_soft_nms(boxes, scores, classes, method, iou_thresh, sigma, min_score):
    """One box after another, as the paper writes it down."""
    iou = pairwise_iou(Boxes(boxes), Boxes(boxes))
    scores, left, kept = scores.clone(), list(range(len(boxes))), {}
    while left:
        best = max(left, key=lambda i: scores[i].item())
        left.remove(best)
        kept[best] = scores[best].item()
        for i in left:
            if classes[i] == classes[best]:
                if method == "gaussian":
                    scores[i] *= torch.exp(-(iou[best, i] ** 2) / sigma)
                elif iou[best, i] > iou_thresh:
                    scores[i] *= 1 - iou[best, i]
        left = [i for i in left if scores[i] >= min_score]
    return kept


@pytest.mark.parametrize("method", SOFT_NMS_METHODS)
def test_equals_a_plain_loop(method):
    args = {"method": method, "iou_thresh": 0.3, "sigma": 0.5, "min_score": 0.05}
    detections = random_detections()
    expected = plain_soft_nms(*detections, **args)
    kept, scores = soft_nms(*detections, **args)
    assert 20 < len(expected) < 60
    assert dict(zip(kept.tolist(), scores.tolist(), strict=True)) == pytest.approx(expected)
    # As many rounds as detections are enough.
    few, few_scores = soft_nms(*detections, **args, topk=12)
    assert torch.equal(few, kept[:12]) and torch.equal(few_scores, scores[:12])


@pytest.mark.parametrize("box_classes", [1, 3])
def test_without_overlaps_inference_is_that_of_hard_nms(box_classes):
    generator = torch.Generator().manual_seed(1)
    probs = [torch.rand(n, 4, generator=generator).softmax(dim=1) for n in (6, 0)]
    boxes = []
    for image_probs in probs:
        left = torch.arange(len(image_probs)) * 50.0
        image_boxes = torch.stack([left, left * 0 + 5, left + 40, left * 0 + 30], dim=1)
        boxes.append(image_boxes.repeat(1, box_classes))
    boxes[0][-1] = torch.nan
    sizes = [(20, 260)] * 2
    expected, expected_rows = fast_rcnn_inference(boxes, probs, sizes, 0.2, 0.5, 5)
    found, rows = soft_nms_inference(boxes, probs, sizes, 0.2, 5)
    assert [len(instances) for instances in expected] == [5, 0]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.pred_classes, b.pred_classes)
    assert all(torch.equal(a, b) for a, b in zip(rows, expected_rows, strict=True))


def vote(boxes, scores, classes=None, iou_thresh=0.5, topk=-1):
    classes = [0] * len(boxes) if classes is None else classes
    kept, voted = voting_nms(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores),
        torch.tensor(classes, dtype=torch.int64),
        iou_thresh=iou_thresh,
        topk=topk,
    )
    return kept.tolist(), voted.tolist()


def test_voting_by_hand():
    """B moves A by its share of the scores, 10 * 0.3 / 1.2 pixels; what is apart stays."""
    kept, boxes = vote([B, FAR, A], [0.3, 0.5, 0.9])
    assert kept == [2, 1]
    assert boxes == [pytest.approx([2.5, 0, 102.5, 100]), FAR]
    apart = [pytest.approx(A), pytest.approx(B)]
    assert vote([A, B], [0.9, 0.3], [0, 1]) == ([0, 1], apart)
    assert vote([A, B], [0.9, 0.3], iou_thresh=0.82) == ([0, 1], apart)
    assert vote([], []) == ([], [])
    point = [5.0, 5, 5, 5]  # has no area, and so no IoU with itself
    assert vote([point], [0.5]) == ([0], [point])


def test_boxes_of_no_score_vote_as_equals():
    kept, boxes = vote([A, B, FAR], [0.0, 0.0, 0.9])
    assert kept == [2, 0] and boxes == [FAR, pytest.approx([5.0, 0, 105, 100])]


def test_a_box_votes_once_for_the_best():
    """C overlaps A and the survivor E; it belongs to A."""
    c, e = [30.0, 0, 130, 100], [50.0, 0, 150, 100]
    kept, boxes = vote([A, e, c], [0.9, 0.8, 0.3])
    assert kept == [0, 1]
    assert boxes == [pytest.approx([7.5, 0, 107.5, 100]), e]
    kept, boxes = vote([A, e, c, FAR], [0.9, 0.8, 0.3, 0.7], topk=1)
    assert (kept, len(boxes)) == ([0], 1)


def test_voting_is_a_plain_loop_in_pieces_of_any_size(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(300, 2, generator=generator) * 60
    boxes = torch.cat([corners, corners + 10 + 30 * torch.rand(300, 2, generator=generator)], 1)
    scores, classes = torch.rand(300, generator=generator), torch.arange(300) % 2
    kept, voted = voting_nms(boxes, scores, classes, iou_thresh=0.4)
    left = torch.ones(300, dtype=torch.bool)
    for row, box in zip(kept.tolist(), voted, strict=True):
        assert scores[row] == scores[left].max()
        iou = pairwise_iou(Boxes(boxes), Boxes(boxes[row : row + 1]))[:, 0]
        group = left & (iou > 0.4) & (classes == classes[row])
        expected = (boxes * scores[:, None])[group].sum(0) / scores[group].sum()
        torch.testing.assert_close(box, expected)
        left &= ~group
    assert not left.any()
    monkeypatch.setattr(nms, "_MAX_ELEMENTS", 1000)
    torch.testing.assert_close(voting_nms(boxes, scores, classes, iou_thresh=0.4)[1], voted)
