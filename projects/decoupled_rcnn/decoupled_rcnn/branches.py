"""
The parts of Decoupled R-CNN behind the RPN, and what each of them does.

Shape shorthand: R RoIs of all images, R_i of image i; K foreground classes.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from clsloc.config import check_box_head
from clsloc.poolers import build_box_pooler
from decoupled_rcnn.plan import DecoupledPlan
from decoupled_rcnn.predictors import BoxRegressor, class_scorer
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import StandardROIHeads, build_box_head
from detectron2.structures import Boxes

__all__ = ["DecoupledBranches"]


class DecoupledBranches(StandardROIHeads):
    """
    Classifiers and regressors that share nothing but the maps of the backbone (section IV).

    In place of the box head and box predictor of `StandardROIHeads` stand a list of each for
    either task, with an entry for each stage.
    """

    @configurable
    def __init__(
        self,
        *,
        plan: DecoupledPlan,
        cls_heads: Sequence[nn.Module],
        cls_predictors: Sequence[nn.Module],
        reg_heads: Sequence[nn.Module],
        reg_predictors: Sequence[BoxRegressor],
        reg_batch_size_per_image: int = 512,
        reg_positive_fraction: float = 0.25,
        reg_append_gt: bool = False,
        reg_roi_scale: float = 1.0,
        test_score_thresh: float = 0.05,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
        soft_nms: dict[str, Any] | None = None,
        lazy_localisation: bool = True,
        **kwargs: Any,
    ):
        """
        Args:
            plan: how the parts work together.
            cls_heads, cls_predictors: pooled features to features to logits (R, K+1), one of each
                per classifier.
            reg_heads, reg_predictors: pooled features to features to deltas, per regressor.
            reg_batch_size_per_image, reg_positive_fraction, reg_append_gt: see `sample_positives`.
            reg_roi_scale: factor on the boxes before pooling for the regressors.
            test_score_thresh, test_nms_thresh, test_topk_per_image: see `fast_rcnn_inference`.
            soft_nms: arguments of `soft_nms`; None for NMS.
            lazy_localisation: give the regressors only the RoIs whose score passes the threshold.
            kwargs: arguments of `StandardROIHeads`, without head and predictor.
        """
        super().__init__(box_head=None, box_predictor=None, **kwargs)
        self.plan = plan
        self.cls_heads = nn.ModuleList(cls_heads)
        self.cls_predictors = nn.ModuleList(cls_predictors)
        self.reg_heads = nn.ModuleList(reg_heads)
        self.reg_predictors = nn.ModuleList(reg_predictors)
        self.reg_batch_size_per_image = reg_batch_size_per_image
        self.reg_positive_fraction = reg_positive_fraction if plan.sampler == "random" else 1.0
        self.reg_append_gt = reg_append_gt
        self.reg_roi_scale = reg_roi_scale
        self.cls_matchers = [Matcher([iou], [0, 1]) for iou in plan.cls_ious]
        self.reg_matchers = [Matcher([iou], [0, 1]) for iou in plan.reg_ious]
        self.test_score_thresh = test_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_per_image = test_topk_per_image
        self.soft_nms = soft_nms
        self.lazy_localisation = lazy_localisation

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        check_box_head(cfg, "Decoupled R-CNN")
        node = cfg.MODEL.DECOUPLED
        soft_nms = {
            "method": node.SOFT_NMS_METHOD,
            "iou_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "sigma": node.SOFT_NMS_SIGMA,
            "min_score": node.SOFT_NMS_MIN_SCORE,
        }
        return super().from_config(cfg, input_shape) | {
            "reg_batch_size_per_image": node.REG_BATCH_SIZE_PER_IMAGE,
            "reg_positive_fraction": node.REG_POSITIVE_FRACTION,
            "reg_append_gt": node.REG_APPEND_GT,
            "reg_roi_scale": node.REG_ROI_SCALE,
            "test_score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "test_nms_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "soft_nms": soft_nms if node.SOFT_NMS else None,
            "lazy_localisation": cfg.CLSLOC.LAZY_LOCALISATION,
        }

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """The pooler, and the heads and predictors of both tasks."""
        plan, num_classes = DecoupledPlan.from_config(cfg), cfg.MODEL.ROI_HEADS.NUM_CLASSES
        pooler, shape = build_box_pooler(cfg, input_shape)
        cls_heads = [build_box_head(cfg, shape) for _ in plan.cls_ious]
        reg_head = ROI_BOX_HEAD_REGISTRY.get(cfg.MODEL.DECOUPLED.REG_HEAD)
        reg_heads = cls_heads if plan.shared_fc else [reg_head(cfg, shape) for _ in plan.reg_ious]
        return {
            "plan": plan,
            "box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "box_pooler": pooler,
            "cls_heads": cls_heads,
            "cls_predictors": [
                class_scorer(head.output_shape.channels, num_classes) for head in cls_heads
            ],
            "reg_heads": reg_heads,
            "reg_predictors": [
                BoxRegressor(
                    head.output_shape.channels,
                    num_classes=num_classes,
                    class_agnostic=agnostic,
                    transform=Box2BoxTransform(weights),
                    smooth_l1_beta=cfg.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA,
                )
                for head, agnostic, weights in zip(
                    reg_heads, plan.reg_agnostic, plan.reg_coder_weights, strict=True
                )
            ],
        }

    def _pool(self, maps: list[Tensor], boxes: list[Boxes], scale: float = 1.0) -> Tensor:
        """(R, C, H, W) from boxes that are scaled about their centres."""
        return self.box_pooler(maps, boxes, scale)

    def _score(self, stage: int, pooled: Tensor) -> Tensor:
        """Logits (R, K+1) of a classifier."""
        return self.cls_predictors[stage](self.cls_heads[stage](pooled))

    def _regress(
        self, stage: int, maps: list[Tensor], boxes: list[Boxes], pooled: Tensor | None = None
    ) -> Tensor:
        """Deltas of a regressor; `pooled` saves the pooling where it is that of the boxes
        as they are."""
        if pooled is None or self.reg_roi_scale != 1:
            pooled = self._pool(maps, boxes, self.reg_roi_scale)
        return self.reg_predictors[stage](self.reg_heads[stage](pooled))

    def _refine(
        self,
        stage: int,
        deltas: Tensor,
        boxes: list[Boxes],
        sizes: list[tuple[int, int]],
        classes: Tensor | None = None,
    ) -> list[Boxes]:
        """
        One box for each RoI, detached, clipped to its image; boxes that become empty stay.

        Args:
            classes: (R,) whose box to take, where each class has its own.
        """
        flat = cat([b.tensor for b in boxes])
        refined = self.reg_predictors[stage].refine(deltas, flat, classes)
        refined = [Boxes(b) for b in refined.split([len(b) for b in boxes])]
        for image_boxes, size in zip(refined, sizes, strict=True):
            image_boxes.clip(size)
        return refined
