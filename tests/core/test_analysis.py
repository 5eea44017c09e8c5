"""Values computed by hand or given with the definitions."""

import math

import pytest
import torch

from clsloc.analysis import (
    BinnedStatistics,
    PearsonCorrelation,
    clip_windows,
    fc_cell_features,
    fc_weight_correlation,
    iou_bins,
    sliding_windows,
    spatial_correlation,
    tile,
)
from clsloc.boxes import elementwise_iou

HISTOGRAM = [
    *[2608, 1428, 1376, 1368, 988, 2162, 524, 692, 957, 625],
    *[216, 208, 180, 397, 225, 44, 56, 40, 44, 37],
]


def test_windows_around_any_box_have_the_same_ious():
    boxes = torch.tensor([[0.0, 0.0, 100.0, 100.0], [13.0, 7.0, 53.0, 207.0]])
    windows = sliding_windows(boxes)
    assert windows.shape == (2, 14175, 4)
    iou = elementwise_iou(windows, boxes[:, None])
    for row in iou:
        assert torch.bincount(iou_bins(row), minlength=20).tolist() == HISTOGRAM
        assert (row + 1e-6 >= 0.5).sum() == 1447
        assert (row == 0).sum() == 1200
        assert (row > 1 - 1e-6).sum() == 1


def test_no_box_has_no_window():
    windows = sliding_windows(torch.zeros(0, 4))
    assert windows.shape == (0, 14175, 4)
    kept, rows, iou = clip_windows(windows, torch.zeros(0, 4), (10, 10))
    assert kept.shape == (0, 4) and len(rows) == len(iou) == 0


def test_clipping_by_hand():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
    windows = torch.tensor(
        [
            [[-5.0, 0.0, 5.0, 10.0], [-9.5, 0.0, 0.5, 10.0]],
            [[20.0, 5.0, 30.0, 15.0], [35.0, 0.0, 50.0, 8.0]],
        ]
    )
    kept, rows, iou = clip_windows(windows, boxes, (12, 40))
    assert kept.tolist() == [[0, 0, 5, 10], [20, 5, 30, 12], [35, 0, 40, 8]]
    assert rows.tolist() == [0, 1, 1]
    torch.testing.assert_close(iou, torch.tensor([0.5, 50 / 120, 0.0]))


def test_bins_by_hand():
    iou = torch.tensor([0.0, 0.0499, 0.05, 0.25 - 1e-9, 0.999, 1.0], dtype=torch.float64)
    assert iou_bins(iou).tolist() == [0, 0, 1, 5, 19, 19]


def test_correlation_by_hand_and_in_parts():
    x, y = torch.tensor([0.1, 0.4, 0.5, 0.9]), torch.tensor([0.0, 0.2, 0.6, 0.8])
    whole, parts = PearsonCorrelation(), PearsonCorrelation()
    whole.update(x, y)
    for part in (slice(0, 1), slice(1, 1), slice(1, 4)):
        parts.update(x[part], y[part])
    assert whole.value == pytest.approx(0.93938, abs=5e-6)
    assert parts.value == pytest.approx(whole.value, rel=1e-12)


@pytest.mark.parametrize(
    "x, y", [([], []), ([0.3], [0.5]), ([0.1] * 7, [0.2] * 7), ([0.1, 0.2], [0.3, 0.3])]
)
def test_what_does_not_vary_has_no_correlation(x, y):
    pearson = PearsonCorrelation()
    pearson.update(torch.tensor(x), torch.tensor(y))
    assert math.isnan(pearson.value)


def test_binned_statistics_by_hand_and_in_parts():
    stats = BinnedStatistics(3)
    stats.update(torch.tensor([0, 2, 2]), torch.tensor([0.5, 1.0, 2.0]))
    stats.update(torch.tensor([], dtype=torch.int64), torch.tensor([]))
    stats.update(torch.tensor([2]), torch.tensor([6.0]))
    assert stats.count.tolist() == [1, 0, 3]
    assert stats.mean[[0, 2]].tolist() == [0.5, 3.0] and stats.mean[1].isnan()
    assert stats.std[[0, 2]].tolist() == pytest.approx([0.0, math.sqrt(14 / 3)])


def test_cell_features_add_up_to_the_layer():
    layer = torch.nn.Linear(6 * 7 * 7, 5)
    pooled = torch.randn(3, 6, 7, 7)
    cells = fc_cell_features(layer.weight, pooled)
    assert cells.shape == (3, 5, 7, 7)
    summed = cells.sum(dim=(2, 3)) + layer.bias
    torch.testing.assert_close(summed, layer(pooled.flatten(1)), rtol=1e-5, atol=1e-5)


def test_correlation_of_cells():
    matrix = spatial_correlation(torch.randn(2, 16, 7, 7))
    assert matrix.shape == (2, 49, 49)
    torch.testing.assert_close(matrix, matrix.mT)
    torch.testing.assert_close(matrix.diagonal(dim1=1, dim2=2), torch.ones(2, 49))
    assert matrix.abs().max() <= 1 + 1e-5


def test_correlation_of_equal_and_of_orthogonal_cells():
    one_vector = torch.randn(8, 1, 1) * (torch.rand(1, 7, 7) + 0.1)
    torch.testing.assert_close(spatial_correlation(one_vector[None])[0], torch.ones(49, 49))
    orthogonal = (torch.eye(49) * 3).view(49, 7, 7)
    torch.testing.assert_close(spatial_correlation(orthogonal[None])[0], torch.eye(49))
    assert spatial_correlation(torch.zeros(0, 8, 7, 7)).shape == (0, 49, 49)


def test_correlation_of_weights_by_hand():
    # One output and two channels; of the four cells, the vectors of weights are (1, 0), (0, 2),
    # (3, 3), (-1, 0).
    weight = torch.tensor([[[1.0, 0.0, 3.0, -1.0], [0.0, 2.0, 3.0, 0.0]]]).flatten(1)
    half = math.sqrt(0.5)
    expected = [[1, 0, half, -1], [0, 1, half, 0], [half, half, 1, -half], [-1, 0, -half, 1]]
    torch.testing.assert_close(fc_weight_correlation(weight, 2, 2), torch.tensor(expected))


def test_tiles_are_rows_of_the_matrix():
    matrix = torch.arange(49.0 * 49).view(49, 49)
    picture = tile(matrix, 7, 7)
    for y, x in ((0, 0), (2, 5), (6, 6)):
        shown = picture[7 * y : 7 * y + 7, 7 * x : 7 * x + 7]
        assert torch.equal(shown, matrix[y * 7 + x].view(7, 7))
