"""
From the outputs of the head to detections.

Shape shorthand, of one image: R_l anchors of a level, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clsloc.config import check_choice
from clsloc.fusion import fuse_quality
from clsloc.nms import SOFT_NMS_METHODS, soft_nms, voting_nms
from detectron2.layers import batched_nms
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances

__all__ = ["DenseInference"]

CHOICES = {
    "topk_mode": ("pair", "location"),
    "nms_type": ("hard", "soft", "vote"),
    "soft_nms_method": SOFT_NMS_METHODS,
    "score_fusion": ("product", "sqrt", "power"),
}


@dataclass(frozen=True)
class DenseInference:
    """
    Selects candidates by their class probability p alone, then ranks them by p and their quality q.

    Attributes:
        coder: `apply_deltas` of anchors.
        score_thresh: p of a candidate is larger; a detection may score less.
        topk_candidates: most candidates of a level, by p.
        topk_mode: whether these are "pair"s of an anchor and a class, or "location"s (anchors).
        nms_thresh, nms_type: IoU threshold within a class, and "hard", "soft" or "vote".
        soft_nms_method, soft_nms_sigma, soft_nms_min_score: see `soft_nms`.
        score_fusion: "product" p q, "sqrt" of it, or "power" with `score_powers`.
        score_powers: see `fuse_quality`.
        max_detections: of an image.
        min_height: of a detection in the original image.
    """

    coder: Box2BoxTransform
    score_thresh: float = 0.05
    topk_candidates: int = 1000
    topk_mode: str = "pair"
    nms_thresh: float = 0.6
    nms_type: str = "hard"
    soft_nms_method: str = "linear"
    soft_nms_sigma: float = 0.5
    soft_nms_min_score: float = 0.001
    score_fusion: str = "product"
    score_powers: tuple[float, float] = (0.8, 1.2)
    max_detections: int = 100
    min_height: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            check_choice(f"MODEL.DDOD.TEST.{name.upper()}", getattr(self, name), choices)

    def __call__(
        self,
        anchors: Sequence[Tensor],
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        quality: Sequence[Tensor | None],
        image_size: tuple[int, int],
    ) -> Instances:
        """
        Args:
            anchors: per level (R_l, 4).
            logits: per level (R_l, K).
            deltas: per level (R_l, 4).
            quality: per level (R_l,) logits, or None where no quality is predicted.
            image_size: (height, width) that boxes are clipped to.

        Returns:
            "pred_boxes", "scores" and "pred_classes", best first.
        """
        return self.select(self.candidates(anchors, logits, deltas, quality, image_size))

    def candidates(
        self,
        anchors: Sequence[Tensor],
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        quality: Sequence[Tensor | None],
        image_size: tuple[int, int],
    ) -> Instances:
        """As the call itself, before NMS and in no order."""
        levels = zip(anchors, logits, deltas, quality, strict=True)
        found = [self._candidates(*level) for level in levels]
        boxes, scores, classes = (torch.cat(parts) for parts in zip(*found, strict=True))
        clipped = Boxes(boxes)
        clipped.clip(image_size)
        return Instances(image_size, pred_boxes=clipped, scores=scores, pred_classes=classes)

    def select(self, candidates: Instances) -> Instances:
        """The best candidates of an image that NMS leaves, best first."""
        boxes, scores, classes = (
            candidates.pred_boxes.tensor,
            candidates.scores,
            candidates.pred_classes,
        )
        if self.nms_type == "soft":
            kept, scores = soft_nms(
                boxes,
                scores,
                classes,
                method=self.soft_nms_method,
                iou_thresh=self.nms_thresh,
                sigma=self.soft_nms_sigma,
                min_score=self.soft_nms_min_score,
                topk=self.max_detections,
            )
            return _replaced(candidates[kept], scores=scores)
        if self.nms_type == "vote":
            kept, boxes = voting_nms(
                boxes, scores, classes, iou_thresh=self.nms_thresh, topk=self.max_detections
            )
            return _replaced(candidates[kept], pred_boxes=Boxes(boxes))
        kept = batched_nms(boxes, scores, classes, self.nms_thresh)
        return candidates[kept[: self.max_detections]]

    def without_low(self, detections: Instances) -> Instances:
        """Those of `min_height`, from detections in the frame of the original image."""
        if self.min_height == 0:
            return detections
        boxes = detections.pred_boxes.tensor
        return detections[boxes[:, 3] - boxes[:, 1] >= self.min_height]

    def _candidates(
        self, anchors: Tensor, logits: Tensor, deltas: Tensor, quality: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and classes of the candidates of one level."""
        probs = logits.float().sigmoid()
        rows = None
        if self.topk_mode == "location" and len(probs) > self.topk_candidates:
            rows = probs.amax(dim=1).topk(self.topk_candidates).indices
            probs = probs[rows]
        row, classes = (probs > self.score_thresh).nonzero(as_tuple=True)
        scores = probs[row, classes]
        if self.topk_mode == "pair" and len(scores) > self.topk_candidates:
            scores, best = scores.topk(self.topk_candidates)
            row, classes = row[best], classes[best]
        if rows is not None:
            row = rows[row]
        boxes = self.coder.apply_deltas(deltas[row].float(), anchors[row])
        if quality is not None:
            powers = {"product": (1.0, 1.0), "sqrt": (0.5, 0.5), "power": self.score_powers}
            quality = quality[row].float().sigmoid()
            scores = fuse_quality(scores, quality, powers[self.score_fusion])
        return boxes, scores, classes


def _replaced(detections: Instances, **fields: Tensor | Boxes) -> Instances:
    """The same detections with some of their fields as given."""
    return Instances(detections.image_size, **(detections.get_fields() | fields))
