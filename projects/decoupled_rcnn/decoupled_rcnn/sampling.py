"""
Samples of the regressors: boxes that overlap an object, and nothing else.

Background has no box loss. It only counts in the size of the mini-batch, which the loss is divided
by, so that it is never pooled here.
"""

import logging
from collections.abc import Sequence

import torch

from clsloc.lazy import take_rows
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.logger import log_first_n

__all__ = ["match_positives", "sample_positives", "split_proposals"]


def split_proposals(proposals: Sequence[Instances]) -> tuple[list[Instances], list[Instances]]:
    """
    Proposals_cls and Proposals_reg of each image.

    Proposals that were not made for two tasks, such as precomputed ones, serve both.

    Args:
        proposals: per image, with the fields of `dual_nms` or without its last two.
    """
    if not all(p.has("for_cls") and p.has("for_reg") for p in proposals):
        log_first_n(
            logging.WARNING,
            "The proposals are not those of a DecoupledRPN: classification and regression train "
            "on the same set.",
            key="message",
        )
        return list(proposals), list(proposals)
    for_cls = [_subset(p, "for_cls") for p in proposals]
    for_reg = [_subset(p, "for_reg") for p in proposals]
    return for_cls, for_reg


def _subset(proposals: Instances, mark: str) -> Instances:
    subset = proposals[proposals.get(mark)]
    # Ground truth that is appended later has no such fields.
    subset.remove("for_cls")
    subset.remove("for_reg")
    return subset


@torch.no_grad()
def match_positives(
    boxes: Sequence[Boxes], targets: Sequence[Instances], matcher: Matcher
) -> list[Instances]:
    """
    Keep the boxes that overlap an object enough (Eq. 5, 6).

    Args:
        boxes: per image, any number.
        targets: per image, with "gt_boxes" and "gt_classes"; may have no object.
        matcher: labels the positives 1, from a matrix of IoU.

    Returns:
        Per image the positives in their order, with "proposal_boxes", and "gt_boxes" and
        "gt_classes" of the object that each overlaps most.
    """
    samples = []
    for image_boxes, target in zip(boxes, targets, strict=True):
        matched, labels = matcher(pairwise_iou(target.gt_boxes, image_boxes))
        rows = (labels == 1).nonzero().flatten()
        positives = Instances(target.image_size)
        positives.proposal_boxes = image_boxes[rows]
        positives.gt_boxes = target.gt_boxes[matched[rows]]
        positives.gt_classes = target.gt_classes[matched[rows]]
        samples.append(positives)
    return samples


def sample_positives(
    boxes: Sequence[Boxes],
    targets: Sequence[Instances],
    matcher: Matcher,
    *,
    batch_size: int,
    positive_fraction: float = 1.0,
    append_gt: bool = False,
) -> tuple[list[Instances], int]:
    """
    The positives of a mini-batch, and the size of the whole mini-batch.

    In each image at most `batch_size` boxes are drawn at random, of which at most the given share
    positives; background fills up what is left, as far as there is any.

    Args:
        boxes, targets, matcher: see `match_positives`.
        batch_size: boxes to draw in an image.
        positive_fraction: 1 takes all positives up to `batch_size`.
        append_gt: let the ground truth boxes join.

    Returns:
        The positives, see `match_positives`; and how many boxes would be drawn in all images, the
        background included.
    """
    if append_gt:
        boxes = [Boxes.cat([b, t.gt_boxes]) for b, t in zip(boxes, targets, strict=True)]
    positives = match_positives(boxes, targets, matcher)
    most = int(batch_size * positive_fraction)
    rows, total = [], 0
    for image_boxes, image_positives in zip(boxes, positives, strict=True):
        num_positives = len(image_positives)
        device = image_positives.gt_classes.device
        # All of them in their order, or a random choice.
        permute = torch.randperm if num_positives > most else torch.arange
        rows.append(permute(num_positives, device=device)[:most])
        num_background = len(image_boxes) - num_positives
        num_drawn = min(num_positives, most)
        total += num_drawn + min(num_background, batch_size - num_drawn)
    return take_rows(positives, rows), total
