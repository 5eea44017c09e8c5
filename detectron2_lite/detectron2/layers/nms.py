"""Non-maximum suppression per class."""

import torch
from torchvision.ops import batched_nms as _torchvision_batched_nms
from torchvision.ops import nms

__all__ = ["batched_nms", "nms"]


def batched_nms(
    boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float
) -> torch.Tensor:
    """Suppress boxes that overlap a box of higher score and the same index.

    Args:
        boxes: (N, 4) XYXY; computed in float32, since half precision is too coarse for the
            offsets that keep the groups apart.
        scores: (N,).
        idxs: (N,) int64, the group of each box: class or feature level.
        iou_threshold: boxes go when their IoU with a kept one is larger.

    Returns:
        (K,) int64 indices of the boxes that stay, by falling score.
    """
    assert boxes.shape[-1] == 4, f"Boxes need a tensor of shape (N, 4), got {tuple(boxes.shape)}."
    return _torchvision_batched_nms(boxes.float(), scores, idxs, iou_threshold)
