"""
Losses of the localisation branch, as pure functions of tensors.

R: number of boxes. All sums are in float32; every function is a zero with a gradient for R = 0.
"""

import torch
from fvcore.nn import smooth_l1_loss
from torch import Tensor

__all__ = ["interval_of", "iou_loss", "row_box_losses"]


def interval_of(iou: Tensor, edges: Tensor) -> Tensor:
    """
    The interval (edge, next edge] that each IoU lies in.

    Args:
        iou: (R,).
        edges: (M + 1,) ascending. What lies outside belongs to the first or last interval.

    Returns:
        (R,) int64 in [0, M).
    """
    return torch.bucketize(iou, edges[1:-1])


def row_box_losses(deltas: Tensor, gt_deltas: Tensor, weights: Tensor, beta: float) -> Tensor:
    """
    Weighted smooth L1 of each box, summed over its four numbers (section 3.1, Eq. 2).

    Args:
        deltas, gt_deltas: (R, 4).
        weights: (R,).
        beta: where smooth L1 turns from squared to absolute.

    Returns:
        (R,); the loss is their sum, divided by what the caller counts.
    """
    losses = smooth_l1_loss(deltas.float(), gt_deltas.float(), beta, reduction="none")
    return losses.sum(dim=1) * weights


def iou_loss(iou: Tensor, gt_iou: Tensor, beta: float) -> Tensor:
    """
    Smooth L1 between predicted and true IoUs, as mean over boxes.

    Args:
        iou, gt_iou: (R,).
        beta: where smooth L1 turns from squared to absolute.
    """
    return smooth_l1_loss(iou.float(), gt_iou.float(), beta, reduction="mean")
