"""
The losses of DDOD and of its baselines.

Shape shorthand: N images, R anchors of an image over L levels, K classes, P positives of
regression. Labels: class 0..K-1, K background, -1 no part in any loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss_jit, smooth_l1_loss
from torch import Tensor, nn

from clsloc.box_losses import BOX_LOSSES
from clsloc.boxes import elementwise_iou
from clsloc.config import check_choice
from ddod.normalizer import LossNormalizer
from ddod.reweight import PyramidReweighter
from detectron2.modeling.box_regression import Box2BoxTransform

__all__ = ["QUALITIES", "DDODLosses", "DenseOutputs", "Targets", "centerness", "focal_loss"]

QUALITIES = ("iou", "centerness", "none")


@dataclass(frozen=True)
class DenseOutputs:
    """What the head says: `logits` (N, R, K), `deltas` (N, R, 4), `quality` (N, R) or None."""

    logits: Tensor
    deltas: Tensor
    quality: Tensor | None


@dataclass(frozen=True)
class Targets:
    """
    What it has to learn.

    Attributes:
        labels_cls, labels_reg: (N, R) labels for each task; regression reads its positives alone.
        matched: (N, R) the object of each positive of regression, as a row of `gt_boxes`.
        gt_boxes: (M, 4) objects of all images.
    """

    labels_cls: Tensor
    labels_reg: Tensor
    matched: Tensor
    gt_boxes: Tensor


class DDODLosses(nn.Module):
    """
    Focal loss on the labels of classification, box and quality losses on the positives of
    regression, each level weighted for each task (DDOD, Eq. 5).

    The two tasks have normalisers of their own. A positive of regression alone is background for
    classification, a positive of classification alone has no box loss.
    """

    def __init__(
        self,
        *,
        reweighter: PyramidReweighter,
        normalizer: LossNormalizer,
        coder: Box2BoxTransform,
        quality: str = "iou",
        box_type: str = "giou",
        focal: tuple[float, float] = (0.25, 2.0),
        cls_weight: float = 1.0,
        box_weight: float = 2.0,
        quality_weight: float = 1.0,
        smooth_l1_beta: float = 0.0,
    ):
        """
        Args:
            reweighter: factors of the levels.
            normalizer: what sums are divided by.
            coder: `get_deltas` and `apply_deltas` of anchors and boxes.
            quality: "iou", "centerness" or "none".
            box_type: "giou" or "diou" on boxes, "smooth_l1" on deltas.
            focal: alpha and gamma of the focal loss.
            cls_weight, box_weight, quality_weight: factors of the three losses.
            smooth_l1_beta: 0 for L1.
        """
        super().__init__()
        check_choice("MODEL.DDOD.QUALITY", quality, QUALITIES)
        check_choice("MODEL.DDOD.LOSS.BOX_TYPE", box_type, (*BOX_LOSSES, "smooth_l1"))
        self.reweighter = reweighter
        self.normalizer = normalizer
        self.coder = coder
        self.quality = quality
        self.box_type = box_type
        self.focal = focal
        self.weights = (cls_weight, box_weight, quality_weight)
        self.smooth_l1_beta = smooth_l1_beta

    def forward(
        self, anchors: Tensor, level_sizes: Sequence[int], outputs: DenseOutputs, targets: Targets
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """
        Args:
            anchors: (R, 4), the same for all images.
            level_sizes: anchors of each level.
            outputs: float32.
            targets: on the same device.

        Returns:
            The losses, "loss_cls", "loss_box_reg" and "loss_iou" or "loss_centerness"; and what is
            worth logging: the counts and factors of the levels, (L,), and the normalisers.
        """
        num_classes = outputs.logits.shape[2]
        positive_cls, positive_reg = (
            (labels >= 0) & (labels < num_classes)
            for labels in (targets.labels_cls, targets.labels_reg)
        )
        image, anchor = positive_reg.nonzero(as_tuple=True)
        deltas, sources = outputs.deltas[image, anchor], anchors[anchor]
        objects = targets.gt_boxes[targets.matched[image, anchor]]
        boxes = self.coder.apply_deltas(deltas, sources)
        quality = self._quality_target(boxes.detach(), sources, objects)
        by_centerness = self.quality == "centerness"
        weight_sum = quality.sum() if by_centerness else deltas.new_zeros(())
        counts = self.normalizer(positive_cls, positive_reg, list(level_sizes), weight_sum)
        w_cls, w_reg = self.reweighter(counts.counts_cls, counts.counts_reg)

        per_anchor = focal_loss(outputs.logits, targets.labels_cls, *self.focal)
        loss_cls = (per_anchor * _spread(w_cls, level_sizes)).sum()
        weights = _spread(w_reg, level_sizes)[anchor]
        box_weights = weights * quality if by_centerness else weights
        box_norm = counts.norm_weight if by_centerness else counts.norm_reg
        loss_box = (self._box_loss(deltas, boxes, sources, objects) * box_weights).sum()
        losses = {
            "loss_cls": self.weights[0] * loss_cls / counts.norm_cls,
            "loss_box_reg": self.weights[1] * loss_box / box_norm,
        }
        if outputs.quality is not None:
            logits = outputs.quality[image, anchor]
            loss = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
            losses[f"loss_{self.quality}"] = (
                self.weights[2] * (loss * weights).sum() / counts.norm_reg
            )
        log = {"w_cls": w_cls, "w_reg": w_reg}
        log |= {"norm_cls": counts.norm_cls, "norm_reg": counts.norm_reg}
        log |= {"num_pos_cls": positive_cls.sum() / len(positive_cls)}
        log |= {"num_pos_reg": positive_reg.sum() / len(positive_reg)}
        log["pos_overlap"] = (positive_cls & positive_reg).sum() / positive_reg.sum().clamp(min=1)
        return losses, log

    def _quality_target(self, boxes: Tensor, anchors: Tensor, objects: Tensor) -> Tensor:
        """(P,) what the quality branch learns."""
        if self.quality == "centerness":
            return centerness(anchors, objects)
        return elementwise_iou(boxes, objects)

    def _box_loss(self, deltas: Tensor, boxes: Tensor, anchors: Tensor, objects: Tensor) -> Tensor:
        """(P,) the loss of each positive."""
        if self.box_type == "smooth_l1":
            wanted = self.coder.get_deltas(anchors, objects)
            return smooth_l1_loss(deltas, wanted, self.smooth_l1_beta, "none").sum(dim=1)
        return BOX_LOSSES[self.box_type](boxes, objects)


def focal_loss(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """
    Sigmoid focal loss of each anchor, summed over classes; 0 where the label is -1.

    Args:
        logits: (N, R, K).
        labels: (N, R).

    Returns:
        (N, R).
    """
    classes = torch.arange(logits.shape[2], device=logits.device)
    wanted = (labels[:, :, None] == classes).to(logits.dtype)
    loss = sigmoid_focal_loss_jit(logits, wanted, alpha=alpha, gamma=gamma, reduction="none")
    return loss.sum(dim=2) * (labels >= 0)


def centerness(anchors: Tensor, objects: Tensor) -> Tensor:
    """
    How central the centre of an anchor lies in its object: the geometric mean of
    min(l, r) / max(l, r) and min(t, b) / max(t, b) ("FCOS", ICCV 2019, Eq. 3).

    Args:
        anchors, objects: (P, 4), the centres inside of the objects.

    Returns:
        (P,) in [0, 1].
    """
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    low, high = centres - objects[:, :2], objects[:, 2:] - centres
    ratios = torch.minimum(low, high).clamp(min=0) / torch.maximum(low, high).clamp(min=1e-6)
    return ratios.prod(dim=1).sqrt()


def _spread(weights: Tensor, level_sizes: Sequence[int]) -> Tensor:
    """A factor per level, (L,), as one per anchor, (R,)."""
    return torch.cat([w.expand(size) for w, size in zip(weights, level_sizes, strict=True)])
