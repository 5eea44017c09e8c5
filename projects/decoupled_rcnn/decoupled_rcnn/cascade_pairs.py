"""Cascade R-CNN with the test stages of Table X."""

from typing import Any

import torch
from torch import Tensor

from decoupled_rcnn.plan import TestStages
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Instances

__all__ = ["CascadePairsROIHeads"]


@ROI_HEADS_REGISTRY.register()
class CascadePairsROIHeads(CascadeROIHeads):
    """
    `CascadeROIHeads` whose boxes and scores come from the stages that
    `MODEL.DECOUPLED.TEST_REG_STAGE` and `TEST_CLS_STAGES` name.

    Differs at inference alone: a stage scores the boxes that it begins with, and any regressor can
    be paired with any classifier. By default it is `CascadeROIHeads`: the last regressor, and the
    mean of all classifiers.
    """

    @configurable
    def __init__(self, *, test_stages: TestStages, **kwargs: Any):
        super().__init__(**kwargs)
        self.test_stages = test_stages

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        stages = len(cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS)
        return super().from_config(cfg, input_shape) | {
            "test_stages": TestStages.from_config(cfg, stages, stages)
        }

    def _forward_box(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> dict[str, Tensor] | list[Instances]:
        if self.training:
            return super()._forward_box(features, proposals, targets)
        maps = [features[name] for name in self.box_in_features]
        sizes = [p.image_size for p in proposals]
        wanted, probs, boxes = self.test_stages, [], []
        for stage in range(max(wanted.reg, *wanted.cls) + 1):
            if stage > 0:
                proposals = self._create_proposals_from_boxes(boxes[-1], sizes)
            predictor = self.box_predictor[stage]
            predictions = self._run_stage(maps, proposals, stage)
            boxes.append(predictor.predict_boxes(predictions, proposals))
            if stage in wanted.cls:
                probs.append(predictor.predict_probs(predictions, proposals))
        return fast_rcnn_inference(
            boxes[wanted.reg],
            [torch.stack(image_probs).mean(dim=0) for image_probs in zip(*probs, strict=True)],
            sizes,
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
        )[0]
