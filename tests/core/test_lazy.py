import torch
from torch import nn

from clsloc.lazy import (
    foreground_rows,
    rows_are_independent,
    rows_of_batch,
    spread_rows,
    surviving_rows,
    take_rows,
)
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Instances


def test_survivors_by_hand():
    probs = torch.tensor(
        [
            [0.30, 0.10, 0.60],
            [0.05, 0.05, 0.90],  # equal to the threshold is not above it
            [0.00, 0.06, 0.94],
            [0.01, 0.02, 0.97],  # the background does not count
        ]
    )
    none = torch.tensor([[0.0, 0.0, 1.0]])
    rows = surviving_rows([probs, none, torch.zeros(0, 3)], 0.05)
    assert [r.tolist() for r in rows] == [[0, 2], [], []]
    assert all(r.dtype == torch.int64 for r in rows)


def test_a_row_that_is_not_a_number():
    nan = float("nan")
    rows = surviving_rows([torch.tensor([[nan, nan, nan], [0.5, nan, nan]])], 0.05)
    assert rows[0].tolist() == [1]


def test_rows_of_the_batch():
    rows = [torch.tensor([0, 2]), torch.tensor([], dtype=torch.int64), torch.tensor([1])]
    assert rows_of_batch(rows, [3, 4, 2]).tolist() == [0, 2, 8]
    batch = torch.arange(9)
    per_image = torch.cat(take_rows(batch.split([3, 4, 2]), rows))
    assert torch.equal(batch[rows_of_batch(rows, [3, 4, 2])], per_image)


def test_values_of_some_rows_among_zeros():
    rows = [torch.tensor([0, 2]), torch.tensor([], dtype=torch.int64), torch.tensor([1])]
    values = torch.tensor([[1.0, 2], [3, 4], [5, 6]], requires_grad=True)
    spread = spread_rows(values, rows, [3, 1, 2])
    assert spread.tolist() == [[1, 2], [0, 0], [3, 4], [0, 0], [0, 0], [5, 6]]
    (spread * torch.arange(12.0).view(6, 2)).sum().backward()
    assert values.grad.tolist() == [[0, 1], [4, 5], [10, 11]]


def test_zeros_alone_where_no_row_has_a_value():
    none = torch.tensor([], dtype=torch.int64)
    values = torch.zeros(0, 4, requires_grad=True)
    spread = spread_rows(values, [none, none], [2, 1])
    assert torch.equal(spread, torch.zeros(3, 4)) and spread.requires_grad
    assert spread_rows(values.double(), [none], [0]).shape == (0, 4)


def test_detections_and_their_rows_are_those_of_all_rows():
    generator = torch.Generator().manual_seed(0)
    probs, boxes = [], []
    for num in (40, 25):
        probs.append((3 * torch.randn(num, 5, generator=generator)).softmax(dim=1))
        corners = torch.rand(num, 4, 2, 2, generator=generator) * 100
        boxes.append(torch.cat([corners.amin(dim=2), corners.amax(dim=2)], dim=2).flatten(1))
    args = ([(100, 100)] * 2, 0.3, 0.5, 10)
    expected, expected_rows = fast_rcnn_inference(boxes, probs, *args)

    rows = surviving_rows(probs, 0.3)
    assert 0 < len(rows[0]) < 40
    found, kept = fast_rcnn_inference(take_rows(boxes, rows), take_rows(probs, rows), *args)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.pred_classes, b.pred_classes)
    for a, b in zip(take_rows(rows, kept), expected_rows, strict=True):
        assert torch.equal(a, b)


def test_foreground_rows_by_hand():
    proposals = []
    for labels in ([3, 0, 2, 3], [3], []):
        proposals.append(Instances((10, 10), gt_classes=torch.tensor(labels, dtype=torch.int64)))
    rows = foreground_rows(proposals, num_classes=3)
    assert [r.tolist() for r in rows] == [[1, 2], [], []]


def test_rows_mix_only_through_batch_statistics():
    tower = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4))
    assert rows_are_independent(tower.train())
    tower.append(nn.BatchNorm2d(4))
    assert rows_are_independent(tower.eval())
    assert not rows_are_independent(tower.train())
    assert rows_are_independent(nn.Sequential(FrozenBatchNorm2d(4)).train())


def test_foreground_is_what_has_a_class():
    proposals = Instances((9, 9), gt_classes=torch.tensor([-1, 0, 3, 2]))  # ignored, background
    assert [rows.tolist() for rows in foreground_rows([proposals], 3)] == [[1, 3]]
