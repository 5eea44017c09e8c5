"""Random choice of the elements that a loss is computed on."""

import torch

from detectron2.layers import nonzero_tuple

__all__ = ["subsample_labels"]


def subsample_labels(
    labels: torch.Tensor, num_samples: int, positive_fraction: float, bg_label: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw positives and negatives without replacement.

    Args:
        labels: (N,) int; -1 is never drawn, ``bg_label`` is negative, the rest positive.
        num_samples: how many to draw at most.
        positive_fraction: at most ``int(num_samples * positive_fraction)`` are positive. Negatives
            fill up the rest as far as there are any; positives never do.

    Returns:
        Indices into ``labels`` of the positives and of the negatives, in random order. Two
        permutations are drawn, that of all positives first.
    """
    positive = nonzero_tuple((labels != -1) & (labels != bg_label))[0]
    negative = nonzero_tuple(labels == bg_label)[0]
    num_positive = min(positive.numel(), int(num_samples * positive_fraction))
    num_negative = min(negative.numel(), num_samples - num_positive)
    return _draw(positive, num_positive), _draw(negative, num_negative)


def _draw(candidates: torch.Tensor, count: int) -> torch.Tensor:
    order = torch.randperm(candidates.numel(), device=candidates.device)
    return candidates[order[:count]]
