"""Detections ranked by class probability times predicted IoU."""

import torch
from torch import Tensor

from clsloc.fusion import fuse_quality
from clsloc.lazy import take_rows
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Instances

__all__ = ["iou_guided_inference"]


def iou_guided_inference(
    boxes: list[Tensor],
    probs: list[Tensor],
    iou: list[Tensor] | None,
    image_sizes: list[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[Tensor]]:
    """
    Threshold the class probabilities, then rank by probability times predicted IoU: per-class NMS
    and the best detections go by this product, which is also the score that comes back.

    The threshold acts before the product: a class with probability .06 on a box with IoU .5 stays,
    with score .03, above a threshold of .05. Boxes are clipped to the image. Rows with a box,
    probability or IoU that is not finite give nothing.

    Args:
        boxes: per image (R_i, 4), or (R_i, 4K) with a box for each class.
        probs: per image (R_i, K+1), the background in the last column.
        iou: per image (R_i,) predicted IoU of each box with its object; any real number. None: the
            probabilities alone rank, as in `fast_rcnn_inference`.
        image_sizes: height and width of each image.
        score_thresh: a probability must be larger.
        nms_thresh: IoU above which the lower of two boxes of a class is suppressed.
        topk_per_image: detections to keep in an image.

    Returns:
        Per image the detections, best first, and the row of each in `boxes`; empty for no rows.
    """
    if iou is None:
        iou = [p.new_ones(len(p)) for p in probs]
    factors = [i.float()[:, None] for i in iou]
    # Detectron2 drops such rows, too, but then counts those that are left.
    rows = [_finite_rows(*parts) for parts in zip(boxes, probs, factors, strict=True)]
    boxes, probs, factors = (take_rows(each, rows) for each in (boxes, probs, factors))
    # Products may be as small as they like: the lowest number there is stands for "below the
    # threshold", and is the threshold that is left.
    lowest = torch.finfo(torch.float32).min
    scores = [
        torch.where(p > score_thresh, fuse_quality(p.float(), f), lowest)
        for p, f in zip(probs, factors)
    ]
    detections, kept = fast_rcnn_inference(
        boxes, scores, image_sizes, lowest, nms_thresh, topk_per_image
    )
    return detections, take_rows(rows, kept)


def _finite_rows(*parts: Tensor) -> Tensor:
    """Ascending indices of the rows (R, ...) that are finite in all parts."""
    finite = torch.stack([part.isfinite().flatten(1).all(dim=1) for part in parts])
    return finite.all(dim=0).nonzero().flatten()
