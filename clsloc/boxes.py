"""
Pure functions of boxes.

Boxes are float tensors in absolute (x1, y1, x2, y2) pixels, continuous coordinates: the width is
x2 - x1, without the "+1" of older code bases.
"""

from torch import Tensor

__all__ = ["scale_boxes"]


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
