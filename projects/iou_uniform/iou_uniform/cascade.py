"""RoI heads of IoU-uniform R-CNN on Cascade R-CNN."""

from typing import Any

import torch
from torch import Tensor, nn

from clsloc.config import check_choice
from clsloc.errors import UserError
from clsloc.poolers import build_box_pooler
from clsloc.samplers import IoUUniformSampler
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from iou_uniform.output_layers import IoUUniformOutputLayers
from iou_uniform.plan import stage_samplers_from_config
from iou_uniform.roi_heads import IoUUniformROIHeads, Scored, Stage

__all__ = ["IoUUniformCascadeROIHeads"]


@ROI_HEADS_REGISTRY.register()
class IoUUniformCascadeROIHeads(IoUUniformROIHeads):
    """
    `IoUUniformROIHeads` in stages: each classifies the boxes that the one before has refined, at
    a higher matching threshold, and localises boxes drawn in higher IoU intervals.

    Differs from `CascadeROIHeads`: a stage has its own classification and localisation branch,
    samples its proposals anew with the objects appended, and its gradients are not scaled.
    `box_head` and `box_predictor` are lists over stages.
    """

    @configurable
    def __init__(
        self,
        *,
        proposal_matchers: list[Matcher],
        stage_loss_weights: list[float],
        score: str = "logit",
        **kwargs: Any,
    ):
        """
        Args:
            proposal_matchers: match proposals with objects, one for each stage.
            stage_loss_weights: factor on the losses of each stage.
            score: the class probability is the softmax of mean logits ("logit") or the mean of
                probabilities ("prob") over the stages.
            kwargs: arguments of `IoUUniformROIHeads`.
        """
        super().__init__(proposal_matcher=proposal_matchers[0], **kwargs)
        self.proposal_matchers = proposal_matchers
        self.stage_loss_weights = stage_loss_weights
        self.score = score

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        ious, weights = (
            cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS,
            cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS,
        )
        if len(ious) != len(weights):
            raise UserError(
                "MODEL.ROI_BOX_CASCADE_HEAD needs one IoU and one set of weights for each stage, "
                f"got IOUS {ious} and BBOX_REG_WEIGHTS {weights}."
            )
        first = cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS
        if list(first) != list(ious[:1]):
            raise UserError(
                "The first stage trains on the sampled proposals, so the first of "
                f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS {tuple(ious)} must be that of "
                f"MODEL.ROI_HEADS.IOU_THRESHOLDS {tuple(first)}."
            )
        node = cfg.MODEL.IOU_UNIFORM.CASCADE
        check_choice("MODEL.IOU_UNIFORM.CASCADE.SCORE", node.SCORE, ("logit", "prob"))
        arguments = super().from_config(cfg, input_shape)
        del arguments["proposal_matcher"]
        return arguments | {
            "proposal_matchers": [
                Matcher([iou], [0, 1], allow_low_quality_matches=False) for iou in ious
            ],
            "stage_loss_weights": list(node.STAGE_LOSS_WEIGHTS),
            "score": node.SCORE,
        }

    @classmethod
    def _build_samplers(cls, cfg: CfgNode) -> list[IoUUniformSampler]:
        return stage_samplers_from_config(cfg)

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        pooler, shape = build_box_pooler(cfg, input_shape)
        heads, predictors = nn.ModuleList(), nn.ModuleList()
        for weights in cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS:
            heads.append(towers := cls._build_towers(cfg, shape))
            shapes = {name: tower.output_shape for name, tower in towers.items()}
            transform = Box2BoxTransform(weights=weights)
            predictors.append(IoUUniformOutputLayers(cfg, shapes, box2box_transform=transform))
        return {
            "box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "box_pooler": pooler,
            "box_head": heads,
            "box_predictor": predictors,
        }

    @property
    def stages(self) -> list[Stage]:
        return [Stage(*parts) for parts in zip(self.box_head, self.box_predictor, strict=True)]

    # --- training ---

    def _losses(
        self, features: dict[str, Tensor], proposals: list[Instances], targets: list[Instances]
    ) -> dict[str, Tensor]:
        """The losses of all stages, with their weights: `loss_cls_stage0` and so on."""
        losses, last = {}, len(self.stage_loss_weights) - 1
        for number, weight in enumerate(self.stage_loss_weights):
            with get_event_storage().name_scope(f"stage{number}"):
                if number > 0:
                    proposals = self._sample_for_stage(number, proposals, targets)
                pooled = self._pool(features, [p.proposal_boxes for p in proposals])
                found = self._stage_losses(number, features, pooled, proposals, targets)
            losses |= {f"{name}_stage{number}": loss * weight for name, loss in found.items()}
            if number < last:
                proposals = self._next_proposals(self.stages[number], pooled, proposals)
        return losses

    def _sample_for_stage(
        self, number: int, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """Append the objects, match at the threshold of the stage, and sample."""
        first = self.proposal_matcher
        self.proposal_matcher = self.proposal_matchers[number]
        try:
            return self.label_and_sample_proposals(proposals, targets)
        finally:
            self.proposal_matcher = first

    @torch.no_grad()
    def _next_proposals(
        self, stage: Stage, pooled: Tensor, proposals: list[Instances]
    ) -> list[Instances]:
        """The sampled proposals, without the appended objects, refined by a stage."""
        deltas = stage.run(pooled, ["reg"])["reg"]
        boxes = stage.predictor.predict_boxes(deltas, proposals)
        refined = []
        for image_boxes, image in zip(boxes, proposals, strict=True):
            refined_image = _to_proposals(image_boxes, image)
            keep = refined_image.proposal_boxes.nonempty() & ~_is_object(image)
            refined.append(refined_image[keep])
        return refined

    # --- inference ---

    def _score(self, features: dict[str, Tensor], proposals: list[Instances]) -> Scored:
        """Class probabilities from all stages; each looks at the boxes of the one before."""
        logits, stages = [], self.stages
        for stage in stages:
            pooled = self._pool(features, [p.proposal_boxes for p in proposals])
            outputs = stage.run(pooled, stage.predictor.plan.outputs_of("cls"))
            logits.append(outputs["cls"].float())
            scored = Scored(stage, proposals, pooled, outputs, probs=[])
            if stage is not stages[-1]:
                boxes, _ = self._refine(scored, with_iou=False)
                proposals = [_to_proposals(b.nan_to_num(), p) for b, p in zip(boxes, proposals)]
        probs = self._combine(torch.stack(logits))
        scored.probs = list(probs.split([len(p) for p in proposals]))
        return scored

    def _combine(self, logits: Tensor) -> Tensor:
        """(S, R, K+1) logits of S stages to probabilities (R, K+1)."""
        if self.score == "logit":
            return logits.mean(dim=0).softmax(dim=1)
        return logits.softmax(dim=2).mean(dim=0)


def _to_proposals(boxes: Tensor, like: Instances) -> Instances:
    """Proposals with these boxes for the image of `like`, with its objectness where it has any."""
    proposals = Instances(like.image_size, proposal_boxes=Boxes(boxes.detach()))
    if like.has("objectness_logits"):
        proposals.objectness_logits = like.objectness_logits
    return proposals


def _is_object(proposals: Instances) -> Tensor:
    """Which sampled proposals are objects that were appended: they equal their match."""
    boxes = proposals.proposal_boxes.tensor
    if not proposals.has("gt_boxes"):
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    return (boxes == proposals.gt_boxes.tensor).all(dim=1)
