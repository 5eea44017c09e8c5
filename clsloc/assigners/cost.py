"""Prediction-aware label assignment, apart for classification and regression."""

import torch
from torch import Tensor

from clsloc.assigners.adaptive import (
    best_of_levels,
    centre_is_inside,
    chunks,
    nearest_candidates,
    select,
)
from clsloc.assigners.base import Anchors, Assignment, DenseAssigner, Predictions
from clsloc.boxes import elementwise_iou
from clsloc.errors import UserError
from detectron2.structures import Boxes, pairwise_iou

__all__ = ["TOPK_METRICS", "CostAssigner", "matching_quality"]

TOPK_METRICS = ("distance", "cost")


def matching_quality(probs: Tensor, ious: Tensor, alpha: float) -> Tensor:
    """
    How well a prediction fits an object (DDOD, ACM MM 2021, Eq. 1): p^(1 - alpha) IoU^alpha.

    Args:
        probs: probability of the class of the object.
        ious: IoU of the *predicted* box with the object, of the same shape.
        alpha: 1 looks at the IoU alone, 0 at the probability alone (0^0 is 1).
    """
    return probs.pow(1 - alpha) * ious.pow(alpha)


class CostAssigner(DenseAssigner):
    """
    ATSS on the quality of predictions, with one exponent for each task (DDOD, section 4.1).

    NOTE(paper): the text takes the candidates of a level by the quality itself ("cost" here); the
    authors' code, whose results are the paper's, takes the nearest anchors ("distance").
    """

    def __init__(
        self,
        alpha_cls: float = 0.8,
        alpha_reg: float = 0.5,
        *,
        topk: int = 9,
        topk_metric: str = "distance",
        shared: bool = False,
    ):
        """
        Args:
            alpha_cls, alpha_reg: exponents of the IoU for each task, in [0, 1].
            topk: candidates of a level.
            topk_metric: "distance" of centres, or "cost": the quality, 0 outside of the object.
            shared: regression learns from the labels of classification.
        """
        for name, alpha in (("alpha_cls", alpha_cls), ("alpha_reg", alpha_reg)):
            if not 0 <= alpha <= 1:
                raise UserError(f"{name} is an exponent between 0 and 1, got {alpha}.")
        if topk_metric not in TOPK_METRICS:
            raise UserError(
                f"Candidates are chosen by {' or '.join(TOPK_METRICS)}, got {topk_metric!r}."
            )
        self.alphas = (alpha_cls, alpha_cls if shared else alpha_reg)
        self.topk = topk
        self.by_cost = topk_metric == "cost"

    def _assign(
        self, anchors: Anchors, gt_boxes: Tensor, gt_classes: Tensor, predictions: Predictions
    ) -> tuple[Assignment, Assignment]:
        alphas = list(dict.fromkeys(self.alphas))
        if self.by_cost:
            groups = [
                ([alpha], self._best_candidates(anchors, gt_boxes, gt_classes, predictions, alpha))
                for alpha in alphas
            ]
        else:
            groups = [(alphas, nearest_candidates(anchors, gt_boxes, self.topk))]
        sizes = predictions.logits.shape
        assigned = {}
        for alphas, candidates in groups:
            probs = predictions.logits[candidates, gt_classes].float().sigmoid()
            ious = elementwise_iou(predictions.boxes[candidates], gt_boxes)
            inside = centre_is_inside(anchors.centres[candidates], gt_boxes)
            for alpha in alphas:
                quality = matching_quality(probs, ious, alpha)
                if self.by_cost:
                    quality = quality * inside
                assigned[alpha] = select(quality, candidates, inside, gt_classes, *sizes)
        return assigned[self.alphas[0]], assigned[self.alphas[1]]

    def _best_candidates(
        self,
        anchors: Anchors,
        gt_boxes: Tensor,
        gt_classes: Tensor,
        predictions: Predictions,
        alpha: float,
    ) -> Tensor:
        """(Q, M) anchors of highest quality in each level, for the exponent of one task."""
        found = []
        for part in chunks(len(anchors.boxes), len(gt_boxes)):
            boxes = gt_boxes[part]
            ious = pairwise_iou(Boxes(boxes), Boxes(predictions.boxes))
            probs = predictions.logits[:, gt_classes[part]].float().sigmoid().t()
            quality = matching_quality(probs, ious, alpha)
            quality = quality * centre_is_inside(anchors.centres, boxes[:, None])
            found.append(best_of_levels(quality, anchors.level_sizes, self.topk))
        return torch.cat(found).t()
