"""The assigner of RetinaNet: thresholds on the IoU of anchors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from clsloc.assigners.adaptive import chunks
from clsloc.assigners.base import Anchors, Assignment, DenseAssigner, Predictions
from clsloc.errors import UserError
from detectron2.structures import Boxes, pairwise_iou

__all__ = ["MaxIoUAssigner"]


class MaxIoUAssigner(DenseAssigner):
    """
    An anchor belongs to the object that it overlaps most, if the IoU reaches a threshold: one
    threshold for each task (DDOD, Table 1).

    As Detectron2's `Matcher` has it, an anchor that is the best that some object has is positive
    for its *own* best object, whatever the IoU.

    NOTE(paper): unlike there, an object that no anchor overlaps gets none; otherwise all anchors
    without overlap would be its best.
    """

    def __init__(
        self,
        thresholds_cls: Sequence[float] = (0.4, 0.5),
        thresholds_reg: Sequence[float] = (0.4, 0.5),
        *,
        low_quality: bool = True,
    ):
        """
        Args:
            thresholds_cls, thresholds_reg: (negative, positive). Below the first an anchor is
                background, from the second on positive; in between it takes no part.
            low_quality: whether every object keeps its best anchors.
        """
        for name, pair in (("IOU_CLS", thresholds_cls), ("IOU_REG", thresholds_reg)):
            if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
                raise UserError(
                    f"{name} are two rising thresholds above 0, (negative, positive), got {pair}."
                )
        self.thresholds = (tuple(thresholds_cls), tuple(thresholds_reg))
        self.low_quality = low_quality

    def _assign(
        self, anchors: Anchors, gt_boxes: Tensor, gt_classes: Tensor, predictions: Predictions
    ) -> tuple[Assignment, Assignment]:
        ious, matched, is_best = _overlaps(anchors.boxes, gt_boxes)
        num_classes, classes = predictions.logits.shape[1], gt_classes[matched]
        assigned = {}
        for low, high in dict.fromkeys(self.thresholds):
            positive = ious >= high
            if self.low_quality:
                positive = positive | is_best
            labels = torch.where(ious < low, num_classes, -1)
            assigned[low, high] = Assignment(torch.where(positive, classes, labels), matched)
        return assigned[self.thresholds[0]], assigned[self.thresholds[1]]


def _overlaps(anchors: Tensor, gt_boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each anchor its largest IoU, the first object that has it, and whether it is the best
    anchor of some object; without the array of all anchors by all objects."""
    ious = anchors.new_full((len(anchors),), -1.0)
    matched = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
    is_best = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
    for part in chunks(len(anchors), len(gt_boxes)):
        overlap = pairwise_iou(Boxes(gt_boxes[part]), Boxes(anchors))
        best = overlap.amax(dim=1, keepdim=True)
        is_best |= ((overlap == best) & (best > 0)).any(dim=0)
        largest, index = overlap.max(dim=0)
        matched = torch.where(largest > ious, index + part.start, matched)
        ious = torch.maximum(ious, largest)
    return ious, matched, is_best
