"""
Jittered copies of boxes, and their overlaps.

Corners are kept apart from each other here, low (2, ...) and high (2, ...) with x before y: with
tens of thousands of boxes this is several times as fast as tensors (..., 4).
"""

import torch
from torch import Tensor

__all__ = ["corner_iou", "corners", "jitter_boxes"]


def corners(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high corners, (2, ...) each, of boxes (..., 4)."""
    low, high = boxes.movedim(-1, 0).split(2)
    return low, high


def jitter_boxes(
    boxes: Tensor,
    draws: Tensor,
    offset: Tensor,
    scale: tuple[Tensor, Tensor],
    image_size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """
    Shift and scale each box A times, then clip ("IoU-uniform R-CNN", section 3.1, Eq. 1).

    A box of centre (x, y) and size (w, h) becomes one of centre (x + w ox, y + h oy) and size
    (w sw, h sh).

    Args:
        boxes: (P, 4) in absolute (x1, y1, x2, y2) pixels; P may be 0.
        draws: (4, P, A) in [0, 1), which stand for ox, oy, sw and sh.
        offset: (P,), ox and oy reach from -offset to offset.
        scale: two of (P,), sw and sh reach from the first to the second.
        image_size: height and width of the image.

    Returns:
        Low and high corners, (2, P, A) each.
    """
    low, high = corners(boxes)
    size = (high - low)[..., None]
    middle = (low + high)[..., None] / 2
    least, most = (bound[:, None] for bound in scale)
    middle = middle + size * offset[:, None] * (2 * draws[:2] - 1)
    half = size / 2 * (least + (most - least) * draws[2:])
    low, high = middle - half, middle + half
    height, width = image_size
    for corner in (low, high):
        corner[0].clamp_(0, width)
        corner[1].clamp_(0, height)
    return low, high


def corner_iou(low: Tensor, high: Tensor, other_low: Tensor, other_high: Tensor) -> Tensor:
    """
    IoU of boxes given by their corners.

    Args:
        low, high, other_low, other_high: (2, ...), of shapes that broadcast; may be empty.

    Returns:
        (...) in [0, 1]; 0 where both boxes have no area.
    """
    width, height = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp_(min=0)
    intersection = width * height
    union = _area(low, high) + _area(other_low, other_high) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def _area(low: Tensor, high: Tensor) -> Tensor:
    width, height = (high - low).clamp_(min=0)
    return width * height
