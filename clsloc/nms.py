"""
Variants of non-maximum suppression.

Soft-NMS ("Soft-NMS -- Improving Object Detection With One Line of Code", ICCV 2017): overlapping
detections lose score in place of being removed. Voting: they move the box that suppresses them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from clsloc.boxes import elementwise_iou, of_class
from detectron2.layers import batched_nms, nonzero_tuple
from detectron2.structures import Boxes, Instances, pairwise_iou

__all__ = ["SOFT_NMS_METHODS", "soft_nms", "soft_nms_inference", "voting_nms"]

SOFT_NMS_METHODS = ("linear", "gaussian")
# Most elements of an array of survivors by boxes: small ones stay in the cache.
_MAX_ELEMENTS = 1 << 18


@torch.no_grad()
def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    *,
    method: str = "linear",
    iou_thresh: float = 0.5,
    sigma: float = 0.5,
    min_score: float = 0.001,
    topk: int = -1,
) -> tuple[Tensor, Tensor]:
    """
    Take the best box of each class again and again, and lower the scores of those it overlaps.

    All classes advance together, and within a class boxes are taken in falling order of their
    lowered scores: `topk` rounds of vector operations are enough for the `topk` best of all
    classes, however many boxes there are.

    Args:
        boxes: (R, 4) absolute XYXY; R may be 0.
        scores: (R,).
        classes: (R,) int64, at least 0; boxes of different classes do not touch each other.
        method: "linear" multiplies the score by 1 - IoU where the IoU is above `iou_thresh`;
            "gaussian" multiplies it by exp(-IoU^2 / sigma).
        min_score: a box whose score falls below is dropped.
        topk: most boxes to return; negative for no limit.

    Returns:
        Indices of the boxes that stay, and their lowered scores; best first.

    Raises:
        ValueError: for an unknown method.
    """
    if method not in SOFT_NMS_METHODS:
        raise ValueError(
            f"Unknown Soft-NMS {method!r}: choose one of {', '.join(SOFT_NMS_METHODS)}."
        )
    if len(boxes) == 0 or topk == 0:
        return classes.new_zeros(0), scores[:0].clone()
    found, classes = torch.unique(classes, return_inverse=True)
    rows = torch.arange(len(boxes), device=boxes.device)
    left = torch.where(scores >= min_score, scores, -torch.inf)
    taken, taken_scores = [], []
    for _ in range(len(boxes) if topk < 0 else min(topk, len(boxes))):
        best, best_scores = _best_of_classes(left, classes, len(found))
        taken.append(best)
        taken_scores.append(best_scores)
        best = best[classes]
        iou = elementwise_iou(boxes, boxes[best])
        if method == "linear":
            factor = torch.where(iou > iou_thresh, 1 - iou, 1.0)
        else:
            factor = torch.exp(-(iou**2) / sigma)
        left = left * factor.to(left.dtype)
        # What is taken or dropped has score -inf, or NaN after a factor of 0: neither comes back.
        left = torch.where((left >= min_score) & (rows != best), left, -torch.inf)
    kept, kept_scores = torch.cat(taken), torch.cat(taken_scores)
    # Classes run dry before the last round.
    real = kept_scores > -torch.inf
    kept, kept_scores = kept[real], kept_scores[real]
    order = kept_scores.argsort(descending=True)
    order = order if topk < 0 else order[:topk]
    return kept[order], kept_scores[order]


def _best_of_classes(scores: Tensor, classes: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The row of the largest score of each class, the first of equals, and this score."""
    best_scores = scores.new_full((num_classes,), -torch.inf)
    best_scores = best_scores.scatter_reduce(0, classes, scores, "amax")
    rows = torch.arange(len(scores), device=scores.device)
    candidates = torch.where(scores == best_scores[classes], rows, len(scores))
    best = rows.new_full((num_classes,), len(scores))
    return best.scatter_reduce(0, classes, candidates, "amin"), best_scores


def soft_nms_inference(
    boxes: Sequence[Tensor],
    probs: Sequence[Tensor],
    image_shapes: Sequence[tuple[int, int]],
    score_thresh: float,
    topk_per_image: int,
    **soft_nms_args: float | str,
) -> tuple[list[Instances], list[Tensor]]:
    """
    What Detectron2's `fast_rcnn_inference` does, with Soft-NMS in place of NMS.

    Args:
        boxes: per image (R_i, 4K), or (R_i, 4) where all classes share a box; absolute XYXY.
        probs: per image (R_i, K+1), background last.
        image_shapes: per image the height and width that boxes are clipped to.
        score_thresh: a score must be above it before it is lowered.
        topk_per_image: most detections of an image; negative for no limit.
        soft_nms_args: see `soft_nms`.

    Returns:
        Per image the detections with "pred_boxes", "scores" and "pred_classes", best first, and
        the row of each in `boxes`. Rows with a number that is not finite give none.
    """
    results, kept_rows = [], []
    for image_boxes, image_probs, shape in zip(boxes, probs, image_shapes, strict=True):
        finite = image_boxes.isfinite().all(dim=1) & image_probs.isfinite().all(dim=1)
        rows, classes = nonzero_tuple((image_probs[:, :-1] > score_thresh) & finite[:, None])
        candidates = Boxes(of_class(image_boxes[rows], classes))
        candidates.clip(shape)
        kept, scores = soft_nms(
            candidates.tensor,
            image_probs[rows, classes],
            classes,
            topk=topk_per_image,
            **soft_nms_args,
        )
        result = Instances(shape)
        result.pred_boxes = candidates[kept]
        result.scores = scores
        result.pred_classes = classes[kept]
        results.append(result)
        kept_rows.append(rows[kept])
    return results, kept_rows


@torch.no_grad()
def voting_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor, *, iou_thresh: float, topk: int = -1
) -> tuple[Tensor, Tensor]:
    """
    NMS whose survivors are the mean of their group, weighed by scores ("box voting": "Object
    Detection via a Multi-region & Semantic Segmentation-aware CNN Model", ICCV 2015, section 5.2).

    A box belongs to the best survivor of its class that it overlaps by more than `iou_thresh`,
    which is the one that suppressed it. Memory does not grow with survivors times boxes.

    Args:
        boxes: (R, 4) absolute XYXY; R may be 0.
        scores: (R,), not negative; a mean of zeros alone is that of equals.
        classes: (R,) int64; boxes of different classes do not touch each other.
        topk: most boxes to return; negative for no limit.

    Returns:
        Indices of the survivors, best first, and their boxes (S, 4); scores stay as they are.
    """
    kept = batched_nms(boxes, scores, classes, iou_thresh)
    kept = kept if topk < 0 else kept[:topk]
    if len(kept) == 0:
        return kept, boxes[kept]
    survivors, groups = Boxes(boxes[kept]), []
    for rows in torch.arange(len(boxes), device=boxes.device).split(
        max(1, _MAX_ELEMENTS // len(kept))
    ):
        touches = pairwise_iou(survivors, Boxes(boxes[rows])) > iou_thresh
        touches &= classes[kept, None] == classes[rows]
        # The first, and so best, survivor; `len(kept)` for none.
        first = touches.byte().argmax(dim=0)
        groups.append(torch.where(touches.any(dim=0), first, len(kept)))
    group = torch.cat(groups)
    group[kept] = torch.arange(len(kept), device=kept.device)  # also of a box without area
    weights = scores.clamp(min=torch.finfo(scores.dtype).tiny)[:, None]  # a product can be 0
    weighted = torch.cat([boxes * weights, weights], dim=1)
    sums = weighted.new_zeros(len(kept) + 1, 5).index_add_(0, group, weighted)[:-1]
    return kept, sums[:, :4] / sums[:, 4:]
