"""
Windows around objects (Double-Head, CVPR 2020, section 3.1).

Boxes are float tensors in absolute (x1, y1, x2, y2) pixels.
"""

import torch
from torch import Tensor

from clsloc.boxes import elementwise_iou

__all__ = ["NUM_BINS", "NUM_WINDOWS", "clip_windows", "iou_bins", "sliding_windows"]

NUM_BINS = 20
SCALES = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
STEPS = 22
NUM_WINDOWS = len(SCALES) * (2 * STEPS + 1) ** 2  # 14,175


def sliding_windows(boxes: Tensor) -> Tensor:
    """
    Windows of seven sizes on a grid of 45 x 45 centres around each box.

    NOTE(paper): the paper says "about 14,000 windows of different sizes" of IoU 0 to 1 and no
    more. Centres lie closer together near that of the box, (|k| / 22)^2 of its width and height for
    k = -22 to 22: on an even grid hardly a window would have an IoU above 0.7.

    Args:
        boxes: (M, 4), of positive width and height; M may be 0.

    Returns:
        (M, 14175, 4), not clipped. The IoUs with the box are the same for every box.
    """
    k = torch.arange(-STEPS, STEPS + 1, dtype=boxes.dtype, device=boxes.device) / STEPS
    shifts = k * k.abs()
    scales = boxes.new_tensor(SCALES)
    scale, dy, dx = (x.flatten() for x in torch.meshgrid(scales, shifts, shifts, indexing="ij"))
    size = (boxes[:, 2:] - boxes[:, :2])[:, None]
    centre = (boxes[:, 2:] + boxes[:, :2])[:, None] / 2 + torch.stack([dx, dy], dim=-1) * size
    half = size * (scale / 2)[:, None]
    return torch.cat([centre - half, centre + half], dim=-1)


def clip_windows(
    windows: Tensor, boxes: Tensor, image_size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Windows as far as they lie in the image, without those that have a side below one pixel.

    Args:
        windows: (M, W, 4), of `sliding_windows`.
        boxes: (M, 4), the box of each row.
        image_size: height and width.

    Returns:
        The kept windows (R, 4), the row of `boxes` that each belongs to (R,), and the IoU with it,
        (R,).
    """
    height, width = image_size
    limit = windows.new_tensor([width, height, width, height])
    clipped = torch.minimum(windows.clamp(min=0), limit)
    keep = ((clipped[..., 2:] - clipped[..., :2]) >= 1).all(dim=-1)
    rows = keep.nonzero()[:, 0]
    kept = clipped[keep]
    return kept, rows, elementwise_iou(kept, boxes[rows])


def iou_bins(iou: Tensor, num_bins: int = NUM_BINS) -> Tensor:
    """
    The bin of each IoU, 0 to `num_bins` - 1, as int64 of the same shape; 1 falls into the last.

    A millionth of a bin is added, as many windows have an IoU of exactly 1/4, which rounding would
    scatter over two bins.
    """
    return (iou * num_bins + 1e-6).long().clamp(max=num_bins - 1)
