"""
Pure functions of boxes.

Boxes are float tensors in absolute (x1, y1, x2, y2) pixels, continuous coordinates: the width is
x2 - x1, without the "+1" of older code bases.
"""

import torch
from torch import Tensor

__all__ = ["elementwise_iou", "intersection_and_union", "of_class", "scale_boxes"]


def elementwise_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """
    IoU of each box with its counterpart.

    Computed in at least float32: areas of a large image overflow half precision.

    Args:
        boxes1, boxes2: (..., 4), of shapes that broadcast; may be empty.

    Returns:
        (...) in [0, 1]; 0 where both boxes have no area.
    """
    dtype = torch.promote_types(torch.promote_types(boxes1.dtype, boxes2.dtype), torch.float32)
    boxes1, boxes2 = boxes1.to(dtype), boxes2.to(dtype)
    intersection, union = intersection_and_union(boxes1, boxes2)
    return torch.where(intersection > 0, intersection / union, 0.0)


def intersection_and_union(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """
    Areas that each box and its counterpart share, and that they cover together.

    Args:
        boxes1, boxes2: (..., 4), of shapes that broadcast; may be empty. A box that is inside out
            has no area.

    Returns:
        Two tensors (...) in square pixels.
    """
    low = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    high = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    intersection = (high - low).clamp(min=0).prod(dim=-1)
    return intersection, _area(boxes1) + _area(boxes2) - intersection


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


def of_class(values: Tensor, classes: Tensor) -> Tensor:
    """
    Pick the four numbers (deltas or box) of each row's own class.

    Args:
        values: (R, 4K), or (R, 4) where all classes share them.
        classes: (R,) int64 in [0, K); the background has no numbers of its own.

    Returns:
        (R, 4); `values` itself where all classes share them.
    """
    if values.shape[1] == 4:
        return values
    return values.unflatten(1, (-1, 4))[torch.arange(len(values), device=values.device), classes]


def scale_boxes(boxes: Tensor, scale: float) -> Tensor:
    """
    Enlarge or shrink boxes about their own centres.

    The result is not clipped: an enlarged box may leave the image.

    Args:
        boxes: (..., 4), any number of boxes, also none.
        scale: factor on both width and height; larger than 0.

    Returns:
        A tensor of the same shape and dtype. `boxes` itself, untouched by rounding, for scale 1.

    Raises:
        ValueError: if `scale` is not larger than 0.
    """
    if not scale > 0:
        raise ValueError(f"A box can only be scaled by a factor larger than 0, got {scale}.")
    if scale == 1:
        return boxes
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    grow = (bottom_right - top_left) * (0.5 * (scale - 1))
    scaled = boxes.clone()
    scaled[..., :2] -= grow
    scaled[..., 2:] += grow
    return scaled
