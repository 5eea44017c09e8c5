"""How many positives the batches of all processes have."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clsloc.config import check_choice
from detectron2.utils import comm

__all__ = ["BatchCounts", "LossNormalizer"]

NORMALIZERS = ("num_pos", "ema")


@dataclass(frozen=True)
class BatchCounts:
    """
    Attributes:
        counts_cls, counts_reg: (L,) positives of each level for each task.
        norm_cls, norm_reg: what the losses of a task are divided by; at least 1.
        norm_weight: the sum of the weights of the box loss, for a weighted one; at least 1.
    """

    counts_cls: Tensor
    counts_reg: Tensor
    norm_cls: Tensor
    norm_reg: Tensor
    norm_weight: Tensor


class LossNormalizer(nn.Module):
    """
    Counts positives, with one exchange between the processes.

    A normaliser is the mean over the processes of the number of positives of a task, where an
    image counts at least 1; or ("ema") the exponential moving average of this mean, which is part
    of a checkpoint.
    """

    def __init__(self, kind: str = "num_pos", sync_counts: bool = True, momentum: float = 0.9):
        """
        Args:
            kind: "num_pos" or "ema".
            sync_counts: sum the counts of levels over all processes; otherwise each has its own.
            momentum: of the average, which starts at 100.
        """
        super().__init__()
        check_choice("MODEL.DDOD.LOSS.NORMALIZER", kind, NORMALIZERS)
        self.sync_counts = sync_counts
        self.momentum = momentum
        average = torch.full((2,), 100.0, dtype=torch.float64) if kind == "ema" else None
        self.register_buffer("average", average)

    @torch.no_grad()
    def forward(
        self,
        positive_cls: Tensor,
        positive_reg: Tensor,
        level_sizes: list[int],
        weight_sum: Tensor,
    ) -> BatchCounts:
        """
        Args:
            positive_cls, positive_reg: (N, R) bool, the positives of N images.
            level_sizes: anchors of each of L levels; the sum is R.
            weight_sum: sum of the weights of the box loss of this process.
        """
        levels = [_per_level(p, level_sizes) for p in (positive_cls, positive_reg)]
        sums = [p.sum(dim=1).clamp(min=1).sum() for p in (positive_cls, positive_reg)]
        local = torch.cat([*levels, torch.stack([*sums, weight_sum.to(sums[0].device)]).double()])
        total = _sum_over_processes(local)
        num_levels = len(level_sizes)
        counts = (total if self.sync_counts else local)[: 2 * num_levels]
        means = (total[2 * num_levels :] / comm.get_world_size()).clamp(min=1)
        norms = means[:2]
        if self.average is not None:
            self.average.mul_(self.momentum).add_(norms * (1 - self.momentum))
            norms = self.average.clone()
        return BatchCounts(
            counts[:num_levels],
            counts[num_levels:],
            norms[0].float(),
            norms[1].float(),
            means[2].float(),
        )


def _per_level(positive: Tensor, level_sizes: list[int]) -> Tensor:
    return torch.stack([level.sum() for level in positive.split(level_sizes, dim=1)]).double()


def _sum_over_processes(values: Tensor) -> Tensor:
    if comm.get_world_size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values
