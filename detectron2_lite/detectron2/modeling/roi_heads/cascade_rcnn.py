"""Cascade R-CNN: box heads in sequence, each on the boxes of the one before (arXiv:1712.00726)."""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import Function

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage

from .box_head import build_box_head
from .fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from .roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads, _require_targets


class _ScaleGradient(Function):
    """Identity whose gradient is multiplied by ``scale``."""

    @staticmethod
    def forward(ctx, input: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.scale = scale
        return input.view_as(input)

    @staticmethod
    def backward(ctx, grad_output: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad_output * ctx.scale, None


@ROI_HEADS_REGISTRY.register()
class CascadeROIHeads(StandardROIHeads):
    """Box heads in sequence, each trained at a higher IoU (section 4)."""

    @configurable
    def __init__(
        self,
        *,
        box_in_features: list[str],
        box_pooler: ROIPooler,
        box_heads: list[nn.Module],
        box_predictors: list[nn.Module],
        proposal_matchers: list[Matcher],
        **kwargs,
    ) -> None:
        """
        Args:
            box_in_features: names of the feature maps to pool from.
            box_pooler: pools regions from them, for all stages.
            box_heads: one box head per stage.
            box_predictors: one predictor per stage; the boxes of each are class-agnostic.
            proposal_matchers: one matcher per stage; the first serves the sampling of proposals.
            kwargs: other arguments of :class:`StandardROIHeads`.
        """
        if "proposal_matcher" in kwargs:
            raise ValueError(
                "CascadeROIHeads has one matcher per stage: give 'proposal_matchers' in place of "
                "'proposal_matcher'."
            )
        counts = len(box_heads), len(box_predictors), len(proposal_matchers)
        if len(set(counts)) != 1:
            raise ValueError(
                "CascadeROIHeads needs as many box heads as predictors and matchers, not {}, {} "
                "and {}.".format(*counts)
            )
        super().__init__(
            box_in_features=box_in_features,
            box_pooler=box_pooler,
            box_head=nn.ModuleList(box_heads),
            box_predictor=nn.ModuleList(box_predictors),
            proposal_matcher=proposal_matchers[0],
            **kwargs,
        )
        self.num_cascade_stages = len(box_heads)
        self.proposal_matchers = proposal_matchers

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        ret = super().from_config(cfg, input_shape)
        del ret["proposal_matcher"]
        return ret

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Build the pooler, and one head, predictor and matcher per stage."""
        cls._check_config(cfg)
        pooler, channels = cls._build_box_pooler(cfg, input_shape)
        size = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        pooled_shape = ShapeSpec(channels=channels, height=size, width=size)
        cascade = cfg.MODEL.ROI_BOX_CASCADE_HEAD
        heads, predictors, matchers = [], [], []
        for iou, weights in zip(cascade.IOUS, cascade.BBOX_REG_WEIGHTS, strict=True):
            heads.append(build_box_head(cfg, pooled_shape))
            transform = Box2BoxTransform(weights=weights)
            predictors.append(
                FastRCNNOutputLayers(cfg, heads[-1].output_shape, box2box_transform=transform)
            )
            matchers.append(Matcher([iou], [0, 1], allow_low_quality_matches=False))
        return {
            "box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "box_pooler": pooler,
            "box_heads": heads,
            "box_predictors": predictors,
            "proposal_matchers": matchers,
        }

    @staticmethod
    def _check_config(cfg: CfgNode) -> None:
        cascade = cfg.MODEL.ROI_BOX_CASCADE_HEAD
        if len(cascade.IOUS) != len(cascade.BBOX_REG_WEIGHTS):
            raise ValueError(
                "MODEL.ROI_BOX_CASCADE_HEAD needs one IoU and one set of weights per stage, but "
                f"IOUS is {cascade.IOUS} and BBOX_REG_WEIGHTS is {cascade.BBOX_REG_WEIGHTS}."
            )
        if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
            raise ValueError(
                "CascadeROIHeads passes one box per proposal on to the next stage: set "
                "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG to True."
            )
        if cascade.IOUS[0] != cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0]:
            raise ValueError(
                "The first stage trains on the sampled proposals, so the first of "
                f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS {cascade.IOUS} must equal "
                f"MODEL.ROI_HEADS.IOU_THRESHOLDS {cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS}."
            )

    def forward(self, images, features, proposals, targets=None):
        """See :meth:`ROIHeads.forward`."""
        if not self.training:
            detections = self._forward_box(features, proposals)
            return self.forward_with_given_boxes(features, detections), {}
        _require_targets(targets)
        proposals = self.label_and_sample_proposals(proposals, targets)
        losses = self._forward_box(features, proposals, targets)
        losses.update(self._forward_mask(features, proposals))
        losses.update(self._forward_keypoint(features, proposals))
        return proposals, losses

    def _forward_box(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> dict[str, torch.Tensor] | list[Instances]:
        """Run all stages.

        Args:
            features: feature maps by name.
            proposals: N Instances with "proposal_boxes", in training also the "gt_" fields.
            targets: N Instances with "gt_boxes" and "gt_classes"; needed in training.

        Returns:
            In training the losses of all stages, at inference N Instances of detections.
        """
        maps = [features[name] for name in self.box_in_features]
        image_sizes = [p.image_size for p in proposals]
        outputs = []  # (predictor, its predictions, the proposals they are for) of each stage
        for stage, predictor in enumerate(self.box_predictor):
            if stage > 0:
                boxes = outputs[-1][0].predict_boxes(*outputs[-1][1:])
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
                if self.training:
                    proposals = self._match_and_label_boxes(proposals, stage, targets)
            predictions = self._run_stage(maps, proposals, stage)
            outputs.append((predictor, predictions, proposals))
        return self._stage_losses(outputs) if self.training else self._detections(outputs)

    @staticmethod
    def _stage_losses(outputs: list[tuple[Any, Any, list[Instances]]]) -> dict[str, torch.Tensor]:
        storage = get_event_storage()
        losses = {}
        for stage, (predictor, predictions, proposals) in enumerate(outputs):
            with storage.name_scope(f"stage{stage}"):
                stage_losses = predictor.losses(predictions, proposals)
            losses.update({f"{name}_stage{stage}": loss for name, loss in stage_losses.items()})
        return losses

    @staticmethod
    def _detections(outputs: list[tuple[Any, Any, list[Instances]]]) -> list[Instances]:
        """Boxes of the last stage with the scores of all stages averaged (section 4.3)."""
        scores_per_stage = [
            predictor.predict_probs(predictions, proposals)
            for predictor, predictions, proposals in outputs
        ]
        scores = [
            sum(image_scores) / len(outputs) for image_scores in zip(*scores_per_stage, strict=True)
        ]
        predictor, predictions, proposals = outputs[-1]
        detections, _ = fast_rcnn_inference(
            predictor.predict_boxes(predictions, proposals),
            scores,
            [p.image_size for p in proposals],
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
        )
        return detections

    @torch.no_grad()
    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances]
    ) -> list[Instances]:
        """Match with ground truth at the stage's IoU; all boxes train the stage, none is sampled.

        Args:
            proposals: N Instances with "proposal_boxes".
            stage: number of the stage, from 0.
            targets: N Instances with "gt_boxes" and "gt_classes".

        Returns:
            The proposals with "gt_classes" and "gt_boxes"; background has arbitrary boxes.
        """
        for image_proposals, image_targets in zip(proposals, targets, strict=True):
            boxes = image_proposals.proposal_boxes
            matched, labels = self.proposal_matchers[stage](
                pairwise_iou(image_targets.gt_boxes, boxes)
            )
            if len(image_targets) > 0:
                classes = image_targets.gt_classes[matched]
                classes[labels == 0] = self.num_classes
                gt_boxes = image_targets.gt_boxes[matched]
            else:
                classes = torch.full_like(matched, self.num_classes)
                gt_boxes = Boxes(torch.zeros_like(boxes.tensor))
            image_proposals.gt_classes = classes
            image_proposals.gt_boxes = gt_boxes
        self._log_sample_counts(proposals, f"stage{stage}/roi_head")
        return proposals

    def _run_stage(
        self, features: list[torch.Tensor], proposals: list[Instances], stage: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The predictions of one stage.

        Args:
            features: feature maps in the order of ``box_in_features``.
            proposals: N Instances with "proposal_boxes".
            stage: number of the stage, from 0.
        """
        box_features = self.box_pooler(features, [p.proposal_boxes for p in proposals])
        if self.training:
            # The losses of the stages are summed, so that each head learns at full rate; the
            # features below should see their mean.
            box_features = _ScaleGradient.apply(box_features, 1.0 / self.num_cascade_stages)
        return self.box_predictor[stage](self.box_head[stage](box_features))

    def _create_proposals_from_boxes(
        self, boxes: list[torch.Tensor], image_sizes: list[tuple[int, int]]
    ) -> list[Instances]:
        """Turn a stage's boxes into the next one's proposals: detached and clipped; empty ones are
        dropped in training, and kept at inference where rows are matched with scores.

        Args:
            boxes: N tensors (R_i, 4).
            image_sizes: N pairs (height, width).
        """
        proposals = []
        for image_boxes, image_size in zip(boxes, image_sizes, strict=True):
            image_boxes = Boxes(image_boxes.detach())
            image_boxes.clip(image_size)
            if self.training:
                image_boxes = image_boxes[image_boxes.nonempty()]
            proposals.append(Instances(image_size, proposal_boxes=image_boxes))
        return proposals
