"""
Predictors of Double-Head, their losses and their inference.

Shape shorthand in this module:

    N: number of images in the minibatch
    R: number of RoIs of all images, R_i of image i
    K: number of foreground classes; class K is the background
    B: K box regressors, or 1 when class-agnostic
"""

from typing import Any

import torch.nn.functional as F
from fvcore.nn import smooth_l1_loss
from torch import Tensor, nn

from clsloc.accuracy import log_classification
from clsloc.boxes import of_class
from clsloc.fusion import fuse_scores
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat, cross_entropy, nonzero_tuple
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Instances
from double_head.plan import HeadPlan, classifiers_of, kind_of

__all__ = ["DoubleHeadOutputLayers"]


class DoubleHeadOutputLayers(nn.Module):
    """
    Up to four linear predictors on the features of the towers; only those that are trained exist.

    Predictions are a dict from the name of a predictor to its raw output: class logits (R, K+1)
    of "fc_cls" and "conv_cls", box deltas (R, 4B) of "fc_reg" and "conv_reg". Deltas are relative
    to the proposals as they are, whatever window the tower was pooled from.
    """

    @configurable
    def __init__(
        self,
        input_shapes: dict[str, ShapeSpec],
        *,
        plan: HeadPlan,
        box2box_transform: Box2BoxTransform,
        num_classes: int,
        cls_agnostic_bbox_reg: bool = False,
        smooth_l1_beta: float = 1.0,
        test_score_thresh: float = 0.05,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
    ):
        """
        Args:
            input_shapes: shape of the features of each tower, by the tower's name.
            plan: which predictors exist and what inference uses.
            box2box_transform: encodes and decodes boxes.
            num_classes: K.
            cls_agnostic_bbox_reg: one box for all classes.
            smooth_l1_beta: where the box loss turns from L2 into L1; 0 is plain L1.
            test_score_thresh: a detection needs a larger score.
            test_nms_thresh: IoU above which NMS suppresses.
            test_topk_per_image: detections to keep.
        """
        super().__init__()
        self.plan = plan
        self.box2box_transform = box2box_transform
        self.num_classes = num_classes
        self.smooth_l1_beta = smooth_l1_beta
        self.test_score_thresh = test_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_per_image = test_topk_per_image

        sizes = {
            "cls": num_classes + 1,
            "reg": 4 * (1 if cls_agnostic_bbox_reg else num_classes),
        }
        self.predictors = nn.ModuleDict()
        for name in plan.loss_weights:
            task = name.removeprefix(f"{kind_of(name)}_")
            in_features = input_shapes[plan.tower_of(name)].channels
            self.predictors[name] = layer = nn.Linear(in_features, sizes[task])
            nn.init.normal_(layer.weight, std=0.01 if task == "cls" else 0.001)
            nn.init.zeros_(layer.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shapes: dict[str, ShapeSpec]) -> dict[str, Any]:
        box_head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shapes": input_shapes,
            "plan": HeadPlan.from_config(cfg),
            "box2box_transform": Box2BoxTransform(weights=box_head.BBOX_REG_WEIGHTS),
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "cls_agnostic_bbox_reg": box_head.CLS_AGNOSTIC_BBOX_REG,
            "smooth_l1_beta": box_head.SMOOTH_L1_BETA,
            "test_score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "test_nms_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    def forward(self, name: str, features: Tensor) -> Tensor:
        """The raw output of one predictor for the features (R, D) of its tower."""
        return self.predictors[name](features)

    def losses(
        self, predictions: dict[str, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """
        The weighted losses (section 4, Eq. 1-3); all towers see the same RoIs and targets.

        Args:
            predictions: outputs of all predictors for the RoIs.
            proposals: per image, with `proposal_boxes`, `gt_classes`, and `gt_boxes` where the
                image has any.

        Returns:
            A scalar for each predictor: `loss_cls_fc`, `loss_box_reg_fc`, `loss_cls_conv`,
            `loss_box_reg_conv`. Without RoIs, or without foreground for the boxes, a zero with a
            gradient.
        """
        gt_classes = cat([p.gt_classes for p in proposals])
        foreground = nonzero_tuple((gt_classes >= 0) & (gt_classes < self.num_classes))[0]
        gt_deltas = self._gt_deltas(proposals, foreground)
        losses = {}
        for name, weight in self.plan.loss_weights.items():
            kind, task = name.split("_")
            if task == "cls":
                loss = cross_entropy(predictions[name], gt_classes)
                log_classification(predictions[name], gt_classes, f"double_head/{kind}")
                losses[f"loss_cls_{kind}"] = loss * weight
            else:
                loss = self._box_loss(predictions[name], gt_deltas, gt_classes, foreground)
                losses[f"loss_box_reg_{kind}"] = loss * weight
        return losses

    def predict_probs(
        self, predictions: dict[str, Tensor], proposals: list[Instances], score: str | None = None
    ) -> list[Tensor]:
        """
        Class probabilities, fused where two classifiers take part (section 4.2, Eq. 4).

        Args:
            score: "fc", "conv" or a fusion; by default what the config asks for.

        Returns:
            Per image (R_i, K+1). Fused rows do not sum to 1.
        """
        score = score or self.plan.score
        probs = [F.softmax(predictions[name], dim=-1) for name in classifiers_of(score)]
        fused = fuse_scores(*probs, score) if len(probs) == 2 else probs[0]
        return list(fused.split([len(p) for p in proposals]))

    def predict_boxes(
        self, predictions: dict[str, Tensor], proposals: list[Instances], box: str | None = None
    ) -> list[Tensor]:
        """
        Decoded boxes, not clipped: per image (R_i, 4B).

        Args:
            box: "fc" or "conv"; by default what the config asks for.
        """
        boxes = cat([p.proposal_boxes.tensor for p in proposals])
        deltas = predictions[f"{box or self.plan.box}_reg"]
        decoded = self.box2box_transform.apply_deltas(deltas, boxes)
        return list(decoded.split([len(p) for p in proposals]))

    def inference(
        self,
        boxes: list[Tensor],
        probs: list[Tensor],
        proposals: list[Instances],
    ) -> tuple[list[Instances], list[Tensor]]:
        """
        Threshold, per-class NMS and top-k.

        Args:
            boxes: per image (R_i, 4B), of `predict_boxes`.
            probs: per image (R_i, K+1), of `predict_probs`.
            proposals: per image, for the size of the image.

        Returns:
            Per image the detections, and the row of each in `boxes`.
        """
        return fast_rcnn_inference(
            boxes,
            probs,
            [p.image_size for p in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )

    def _gt_deltas(self, proposals: list[Instances], foreground: Tensor) -> Tensor:
        """Targets (F, 4) of the F foreground rows."""
        boxes = cat([p.proposal_boxes.tensor for p in proposals])
        # An image without objects carries no `gt_boxes`; none of its rows is foreground.
        gt_boxes = cat(
            [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
        )
        return self.box2box_transform.get_deltas(boxes[foreground], gt_boxes[foreground])

    def _box_loss(
        self, deltas: Tensor, gt_deltas: Tensor, gt_classes: Tensor, foreground: Tensor
    ) -> Tensor:
        """Smooth L1 over the foreground rows, divided by the number of all rows."""
        selected = of_class(deltas[foreground], gt_classes[foreground])
        loss = smooth_l1_loss(selected, gt_deltas, self.smooth_l1_beta, reduction="sum")
        return loss / max(gt_classes.numel(), 1)
