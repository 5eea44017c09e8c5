"""Factors of the levels of the pyramid in the losses: supervision disentanglement."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clsloc.config import check_choice
from clsloc.errors import UserError

__all__ = ["REWEIGHT_TYPES", "PyramidReweighter", "level_weights"]

REWEIGHT_TYPES = ("none", "linear", "sum", "sum_literal", "interp")
_EPS = 1e-10


def level_weights(
    counts: Tensor, kind: str, limits: Sequence[float] = (1.0, 2.0), *, by_rank: bool = False
) -> Tensor:
    """
    Factors of L levels from their numbers of positives (DDOD, section 4.3, Tables 2 and 7).

    With limits (a, b): "interp" gives the level with most positives a, that with fewest b, the
    others between (Eq. 3 and 4), and all levels b where the counts are equal; "linear" rises
    evenly from a at the first level to b at the last, whatever the counts, or, `by_rank`, from the
    level with most positives to that with fewest.

    NOTE(paper): Table 7 gives no formula for "sum" and none for "linear" with accumulated counts;
    b - (b - a) n / sum(n) and the order by counts fit its numbers. "sum_literal" is L n / sum(n).

    Args:
        counts: (L,) positives.

    Returns:
        (L,) float32.
    """
    low, high = limits
    counts, levels = counts.double(), len(counts)
    if kind == "none":
        weights = torch.ones_like(counts)
    elif kind == "linear":
        weights = torch.linspace(low, high, levels, dtype=counts.dtype, device=counts.device)
        if by_rank:
            order = counts.argsort(descending=True, stable=True)
            weights = torch.empty_like(weights).scatter_(0, order, weights)
    elif kind == "sum":
        weights = high - (high - low) * counts / counts.sum().clamp(min=1)
    elif kind == "sum_literal":
        total = counts.sum()
        weights = torch.where(total > 0, levels * counts / total.clamp(min=1), 1.0)
    else:
        spread = counts.max() - counts.min()
        weights = high - (high - low) * (counts - counts.min()) / (spread + _EPS)
    return weights.float()


class PyramidReweighter(nn.Module):
    """
    Counts the positives of each level and task, and turns them into factors. The counts since the
    start of training are part of a checkpoint.
    """

    acc_cls: Tensor
    acc_reg: Tensor

    def __init__(
        self,
        num_levels: int,
        kind: str = "interp",
        limits: Sequence[float] = (1.0, 2.0),
        moving_average: bool = True,
    ):
        """
        Args:
            num_levels: L.
            kind, limits: see `level_weights`.
            moving_average: count since the start of training, not in the batch alone.
        """
        super().__init__()
        check_choice("MODEL.DDOD.REWEIGHT.TYPE", kind, REWEIGHT_TYPES)
        if len(limits) != 2 or not all(isinstance(limit, (int, float)) for limit in limits):
            raise UserError(f"MODEL.DDOD.REWEIGHT.RANGE has two numbers, got {list(limits)}.")
        self.kind = kind
        self.limits = tuple(limits)
        self.moving_average = moving_average
        for name in ("acc_cls", "acc_reg"):
            self.register_buffer(name, torch.zeros(num_levels, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, counts_cls: Tensor, counts_reg: Tensor) -> tuple[Tensor, Tensor]:
        """Count the (L,) positives of a batch, and return the (L,) factors with them included."""
        self.acc_cls += counts_cls
        self.acc_reg += counts_reg
        if self.moving_average:
            counts_cls, counts_reg = self.acc_cls, self.acc_reg
        return self._weights(counts_cls), self._weights(counts_reg)

    def _weights(self, counts: Tensor) -> Tensor:
        return level_weights(counts, self.kind, self.limits, by_rank=self.moving_average)

    def reset(self) -> None:
        """Forget all counts: for fine-tuning on other data."""
        self.acc_cls.zero_()
        self.acc_reg.zero_()
