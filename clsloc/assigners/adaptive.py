"""
The steps of adaptive training sample selection ("Bridging the Gap Between Anchor-based and
Anchor-free Detection via Adaptive Training Sample Selection", CVPR 2020), for any quality.

Shape shorthand, of one image: R anchors, M objects, Q candidates of each object, K classes.
Arrays of candidates are (Q, M): a column belongs to an object.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from clsloc.assigners.base import Anchors, Assignment

__all__ = ["adaptive_threshold", "centre_is_inside", "chunks", "nearest_candidates", "select"]

# A centre this close to a side of an object, in pixels, does not count as inside.
_MARGIN = 0.01
# Most elements of an array of anchors by objects: with 1,000 objects all of them at once would
# take gigabytes.
_MAX_ELEMENTS = 1 << 22


def chunks(num_anchors: int, num_objects: int) -> Iterator[slice]:
    """Ranges of objects that are small enough for arrays of all anchors by these objects."""
    step = max(1, _MAX_ELEMENTS // max(num_anchors, 1))
    for start in range(0, num_objects, step):
        yield slice(start, min(start + step, num_objects))


def nearest_candidates(anchors: Anchors, gt_boxes: Tensor, topk: int) -> Tensor:
    """
    For each object the anchors of each level whose centres are nearest to its own centre.

    Args:
        anchors: R anchors.
        gt_boxes: (M, 4), M at least 1.
        topk: candidates of a level; all of a level that has fewer.

    Returns:
        (Q, M) int64 indices of anchors; Q is at most `topk` times the number of levels.
    """
    x, y = anchors.centres.unbind(1)
    gt_x, gt_y = ((gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2).unbind(1)
    found = []
    for part in chunks(len(x), len(gt_boxes)):
        distance = (gt_x[part, None] - x).square_()
        distance += (gt_y[part, None] - y).square_()
        found.append(best_of_levels(distance, anchors.level_sizes, topk, largest=False))
    return torch.cat(found).t()


def best_of_levels(
    values: Tensor, level_sizes: list[int], topk: int, largest: bool = True
) -> Tensor:
    """Indices (M, Q) of the best `topk` values of each level, from (M, R)."""
    start, found = 0, []
    for level in values.split(list(level_sizes), dim=1):
        k = min(topk, level.shape[1])
        found.append(level.topk(k, dim=1, largest=largest, sorted=False).indices + start)
        start += level.shape[1]
    return torch.cat(found, dim=1)


def centre_is_inside(centres: Tensor, boxes: Tensor) -> Tensor:
    """Whether centres (..., 2) lie inside boxes (..., 4) by more than 0.01 pixels."""
    distances = torch.cat([centres - boxes[..., :2], boxes[..., 2:] - centres], dim=-1)
    return distances.amin(dim=-1) > _MARGIN


def adaptive_threshold(quality: Tensor) -> Tensor:
    """
    Mean plus standard deviation over the candidates of an object, (Q, M) to (M,).

    The deviation has the divisor Q - 1. With a single candidate it is NaN: nothing reaches it.
    """
    return quality.mean(dim=0) + quality.std(dim=0)


def select(
    quality: Tensor,
    candidates: Tensor,
    inside: Tensor,
    gt_classes: Tensor,
    num_anchors: int,
    num_classes: int,
) -> Assignment:
    """
    Positive are candidates that reach the threshold of their object and lie in it.

    An anchor that several objects want goes to the one of highest quality, the first of equals.

    Args:
        quality: (Q, M), at least 0.
        candidates: (Q, M) indices of anchors.
        inside: (Q, M) bool.
        gt_classes: (M,).
        num_anchors, num_classes: R and K.
    """
    num_objects = len(gt_classes)
    positive = inside & (quality >= adaptive_threshold(quality))
    anchor = candidates.flatten()
    wanted = torch.where(positive, quality, -1.0).flatten()
    best = quality.new_full((num_anchors,), -1.0).scatter_reduce(0, anchor, wanted, "amax")
    is_best = positive.flatten() & (wanted == best[anchor])
    objects = torch.arange(num_objects, device=anchor.device).expand_as(candidates).flatten()
    objects = torch.where(is_best, objects, num_objects)
    matched = anchor.new_full((num_anchors,), num_objects)
    matched = matched.scatter_reduce(0, anchor, objects, "amin")
    background = matched == num_objects
    matched = matched.masked_fill(background, 0)
    return Assignment(gt_classes[matched].masked_fill(background, num_classes), matched)
