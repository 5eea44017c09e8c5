"""Statistics of values that come in parts, too many to hold: sums in float64."""

import math

import torch
from torch import Tensor

__all__ = ["BinnedStatistics", "PearsonCorrelation"]


class BinnedStatistics:
    """
    Count, mean and standard deviation of values in bins.

    >>> stats = BinnedStatistics(2)
    >>> stats.update(torch.tensor([0, 1, 1]), torch.tensor([5.0, 1.0, 3.0]))
    >>> stats.mean.tolist(), stats.std.tolist()
    ([5.0, 2.0], [0.0, 1.0])
    """

    def __init__(self, num_bins: int):
        self._sums = torch.zeros(3, num_bins, dtype=torch.float64)

    def update(self, bins: Tensor, values: Tensor) -> None:
        """
        Args:
            bins: (R,) int64; R may be 0.
            values: (R,), finite.
        """
        x = values.double().cpu()
        self._sums.index_add_(1, bins.cpu(), torch.stack([torch.ones_like(x), x, x * x]))

    @property
    def count(self) -> Tensor:
        """(num_bins,) int64."""
        return self._sums[0].long()

    @property
    def mean(self) -> Tensor:
        """(num_bins,) float64; NaN in an empty bin."""
        return self._sums[1] / self._sums[0]

    @property
    def std(self) -> Tensor:
        """Of the population, (num_bins,) float64; NaN in an empty bin."""
        return (self._sums[2] / self._sums[0] - self.mean**2).clamp(min=0).sqrt()


class PearsonCorrelation:
    """
    Pearson's correlation of pairs (Double-Head, CVPR 2020, Figure 3).

    >>> pearson = PearsonCorrelation()
    >>> pearson.update(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 4.0]))
    >>> pearson.value
    1.0
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(6, dtype=torch.float64)

    def update(self, x: Tensor, y: Tensor) -> None:
        """
        Args:
            x, y: (R,), finite; R may be 0.
        """
        x, y = x.double(), y.double()
        sums = torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y]).sum(dim=1)
        self._sums += sums.cpu()

    @property
    def value(self) -> float:
        """In [-1, 1]; NaN where x or y do not vary, or without pairs."""
        n, x, y, xx, yy, xy = self._sums.tolist()
        # Of values that do not vary the differences are rounding.
        spread_x, spread_y = n * xx - x * x, n * yy - y * y
        if spread_x <= 1e-12 * n * xx or spread_y <= 1e-12 * n * yy:
            return math.nan
        return max(-1.0, min(1.0, (n * xy - x * y) / math.sqrt(spread_x * spread_y)))
