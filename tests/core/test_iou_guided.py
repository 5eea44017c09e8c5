import math

import pytest
import torch

from clsloc.iou_guided import iou_guided_inference
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference

SIZE = (100, 200)
APART = torch.tensor([[0.0, 0, 50, 50], [100, 0, 150, 50], [100, 60, 150, 90]])


def detect(boxes, probs, iou, thresh=0.05, topk=100):
    (found,), (rows,) = iou_guided_inference([boxes], [probs], [iou], [SIZE], thresh, 0.5, topk)
    return found, rows


def test_the_threshold_comes_before_the_product():
    probs = torch.tensor([[0.06, 0.94], [0.04, 0.96], [0.05, 0.95]])
    found, rows = detect(APART, probs, torch.tensor([0.5, 1.0, 1.0]))
    assert rows.tolist() == [0]
    assert found.scores.tolist() == pytest.approx([0.03])
    assert found.pred_classes.tolist() == [0]
    assert found.pred_boxes.tensor.tolist() == [APART[0].tolist()]


def test_nms_ranks_by_the_product():
    boxes = torch.tensor([[0.0, 0, 50, 50], [5, 0, 55, 50]])
    probs = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
    found, rows = detect(boxes, probs, torch.tensor([0.5, 0.9]))
    assert rows.tolist() == [1]
    assert found.scores.tolist() == pytest.approx([0.72])
    (plain,), (rows,) = iou_guided_inference([boxes], [probs], None, [SIZE], 0.05, 0.5, 100)
    assert rows.tolist() == [0]
    assert plain.scores.tolist() == pytest.approx([0.9])


def test_a_row_may_be_several_classes_and_any_iou_only_orders():
    probs = torch.tensor([[0.5, 0.4, 0.1], [0.6, 0.01, 0.39], [0.2, 0.2, 0.6]])
    found, rows = detect(APART, probs, torch.tensor([-0.2, 1.3, 0.0]))
    pairs = list(zip(rows.tolist(), found.pred_classes.tolist()))
    assert pairs[0] == (1, 0)
    assert set(pairs[1:3]) == {(2, 0), (2, 1)}
    assert pairs[3:] == [(0, 1), (0, 0)]
    assert found.scores.tolist() == pytest.approx([0.78, 0.0, 0.0, -0.08, -0.1])
    assert len(detect(APART, probs, torch.ones(3), topk=2)[0]) == 2


def test_rows_that_are_not_finite_give_nothing_and_the_others_stay_aligned():
    probs = torch.tensor([[0.9, 0.1]]).repeat(4, 1)
    boxes = torch.cat([APART, torch.tensor([[10.0, 60, 60, 90]])])
    for value in (math.nan, math.inf):
        bad_boxes, iou = boxes.clone(), torch.tensor([0.4, 0.5, 0.6, 0.7])
        bad_boxes[1, 2], iou[2] = value, value
        found, rows = detect(bad_boxes, probs, iou)
        assert rows.tolist() == [3, 0]
        assert found.scores.tolist() == pytest.approx([0.63, 0.36])


def test_perfect_ious_are_stock_inference():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(60, 2, 2, generator=generator) * torch.tensor([220.0, 110.0])
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    probs = (2 * torch.randn(60, 4, generator=generator)).softmax(dim=1)
    found, rows = detect(boxes, probs, torch.ones(60), thresh=0.2, topk=30)
    (stock,), (stock_rows,) = fast_rcnn_inference([boxes], [probs], [SIZE], 0.2, 0.5, 30)
    assert torch.equal(rows, stock_rows)
    assert torch.equal(found.pred_boxes.tensor, stock.pred_boxes.tensor)
    assert torch.equal(found.scores, stock.scores)


def test_no_rows():
    found, rows = detect(torch.zeros(0, 4), torch.zeros(0, 3), torch.zeros(0))
    assert len(found) == len(rows) == 0
