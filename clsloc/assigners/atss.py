"""Adaptive training sample selection by the IoU of anchors."""

from torch import Tensor

from clsloc.assigners.adaptive import centre_is_inside, nearest_candidates, select
from clsloc.assigners.base import Anchors, Assignment, DenseAssigner, Predictions
from clsloc.boxes import elementwise_iou

__all__ = ["ATSSAssigner"]


class ATSSAssigner(DenseAssigner):
    """
    ATSS (CVPR 2020, Algorithm 1): of the anchors nearest to an object, those whose IoU with it
    reaches mean plus deviation. Both tasks get the same labels.
    """

    def __init__(self, topk: int = 9):
        """
        Args:
            topk: candidates of a level: 9 times the number of anchors at a location.
        """
        self.topk = topk

    def _assign(
        self, anchors: Anchors, gt_boxes: Tensor, gt_classes: Tensor, predictions: Predictions
    ) -> tuple[Assignment, Assignment]:
        candidates = nearest_candidates(anchors, gt_boxes, self.topk)
        assignment = select(
            elementwise_iou(anchors.boxes[candidates], gt_boxes),
            candidates,
            centre_is_inside(anchors.centres[candidates], gt_boxes),
            gt_classes,
            len(anchors.boxes),
            predictions.logits.shape[1],
        )
        return assignment, assignment
