"""
Losses of pairs of boxes, one number for each pair.

Unlike fvcore's they do not check their input, which waits for a GPU and ends the training at the
first box that is inside out: such a box has no area here.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from clsloc.boxes import intersection_and_union

__all__ = ["BOX_LOSSES", "diou_loss", "giou_loss"]

_EPS = 1e-7


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """
    1 - GIoU ("Generalized Intersection over Union", CVPR 2019), in [0, 2].

    Args:
        boxes, targets: (R, 4) absolute XYXY; R may be 0.

    Returns:
        (R,) float32.
    """
    boxes, targets = boxes.float(), targets.float()
    intersection, union = intersection_and_union(boxes, targets)
    hull = _hull_size(boxes, targets).prod(dim=-1)
    return 1 - intersection / (union + _EPS) + (hull - union) / (hull + _EPS)


def diou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """
    1 - IoU + d^2 / c^2 with d the distance of the centres and c the diagonal of the hull
    ("Distance-IoU Loss", AAAI 2020); arguments and result as for `giou_loss`.
    """
    boxes, targets = boxes.float(), targets.float()
    intersection, union = intersection_and_union(boxes, targets)
    diagonal = _hull_size(boxes, targets).square().sum(dim=-1)
    shift = (boxes[:, :2] + boxes[:, 2:] - targets[:, :2] - targets[:, 2:]) / 2
    return 1 - intersection / (union + _EPS) + shift.square().sum(dim=-1) / (diagonal + _EPS)


BOX_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"giou": giou_loss, "diou": diou_loss}


def _hull_size(boxes: Tensor, targets: Tensor) -> Tensor:
    """(R, 2), width and height of the smallest box around both."""
    low = torch.minimum(boxes[:, :2], targets[:, :2])
    high = torch.maximum(boxes[:, 2:], targets[:, 2:])
    return (high - low).clamp(min=0)
