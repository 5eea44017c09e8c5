"""RoI heads of IoU-uniform R-CNN on Faster R-CNN."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from clsloc.config import check_box_head
from clsloc.lazy import foreground_rows, rows_of_batch, surviving_rows, take_rows
from clsloc.poolers import build_box_pooler
from clsloc.sample_record import record_samples
from clsloc.samplers import IoUUniformSampler
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads, build_box_head
from detectron2.structures import Boxes, Instances
from iou_uniform.output_layers import IoUUniformOutputLayers
from iou_uniform.plan import HeadPlan, sampler_from_config
from iou_uniform.samples import draw_samples, foreground_samples

__all__ = ["IoUUniformROIHeads", "RawOutputs", "Scored", "Stage"]


class Stage(NamedTuple):
    """The towers and the predictors of one stage, which belong to the RoI heads."""

    towers: nn.ModuleDict
    predictor: IoUUniformOutputLayers

    def run(self, pooled: Tensor, outputs: list[str]) -> dict[str, Tensor]:
        """These outputs for pooled features (R, C, H, W); each tower runs once."""
        features = {}
        for tower in dict.fromkeys(map(self.predictor.plan.towers.get, outputs)):
            features[tower] = self.towers[tower](pooled)
        towers = self.predictor.plan.towers
        return {output: self.predictor(output, features[towers[output]]) for output in outputs}


@dataclass
class Scored:
    """
    Proposals with class probabilities, not localised yet.

    Attributes:
        stage: the stage that localises them.
        proposals: N Instances with "proposal_boxes", R in all.
        pooled: their features (R, C, H, W).
        outputs: of the stage's "cls" tower: "cls", and "reg" where the tower is shared.
        probs: per image (R_i, K+1).
    """

    stage: Stage
    proposals: list[Instances]
    pooled: Tensor
    outputs: dict[str, Tensor]
    probs: list[Tensor]

    def take(self, rows: list[Tensor]) -> "Scored":
        """Some rows of each image."""
        index = rows_of_batch(rows, [len(p) for p in self.proposals])
        return Scored(
            self.stage,
            take_rows(self.proposals, rows),
            self.pooled[index],
            {name: output[index] for name, output in self.outputs.items()},
            take_rows(self.probs, rows),
        )


@dataclass
class RawOutputs:
    """
    What the heads say about given boxes before NMS; one entry per image, rows as in the boxes.

    Attributes:
        boxes: (R_i, 4), refined and clipped.
        probs: (R_i, K+1), the background in the last column.
        iou: (R_i,), predicted from features pooled at the refined boxes; None without an IoU
            branch.
        iou_without_efo: (R_i,), predicted from the features that the boxes were refined with.
    """

    boxes: list[Tensor]
    probs: list[Tensor]
    iou: list[Tensor] | None
    iou_without_efo: list[Tensor] | None


@ROI_HEADS_REGISTRY.register()
class IoUUniformROIHeads(StandardROIHeads):
    """
    A classification branch, trained on proposals, and a branch for boxes and their IoU, trained on
    boxes drawn around the objects ("IoU-uniform R-CNN", arXiv:1912.05190).

    Differs from `StandardROIHeads` in the box branch: `box_head` is a dict of towers,
    `box_predictor` holds the predictors; training needs the targets themselves.
    """

    @configurable
    def __init__(
        self, *, samplers: list[IoUUniformSampler], lazy_localisation: bool = True, **kwargs: Any
    ):
        """
        Args:
            samplers: one for each stage; here there is one.
            lazy_localisation: at inference, localise only RoIs that pass the score threshold.
            kwargs: arguments of `StandardROIHeads`.
        """
        super().__init__(**kwargs)
        self.samplers = samplers
        self.lazy_localisation = lazy_localisation

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        check_box_head(cfg, "IoU-uniform R-CNN")
        return super().from_config(cfg, input_shape) | {
            "samplers": cls._build_samplers(cfg),
            "lazy_localisation": cfg.CLSLOC.LAZY_LOCALISATION,
        }

    @classmethod
    def _build_samplers(cls, cfg: CfgNode) -> list[IoUUniformSampler]:
        return [sampler_from_config(cfg)]

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        pooler, shape = build_box_pooler(cfg, input_shape)
        towers = cls._build_towers(cfg, shape)
        shapes = {name: tower.output_shape for name, tower in towers.items()}
        return {
            "box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "box_pooler": pooler,
            "box_head": towers,
            "box_predictor": IoUUniformOutputLayers(cfg, shapes),
        }

    @staticmethod
    def _build_towers(cfg: CfgNode, shape: ShapeSpec) -> nn.ModuleDict:
        names = HeadPlan.from_config(cfg).tower_names
        return nn.ModuleDict({name: build_box_head(cfg, shape) for name in names})

    @property
    def stages(self) -> list[Stage]:
        """All stages, in order."""
        return [Stage(self.box_head, self.box_predictor)]

    def forward(
        self,
        images: Any,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """As that of `StandardROIHeads`, which does not hand the targets on."""
        if not self.training:
            detections = self._forward_box(features, proposals)
            return self.forward_with_given_boxes(features, detections), {}
        proposals = self.label_and_sample_proposals(proposals, targets)
        losses = self._forward_box(features, proposals, targets)
        losses.update(self._forward_mask(features, proposals))
        losses.update(self._forward_keypoint(features, proposals))
        return proposals, losses

    def _forward_box(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> dict[str, Tensor] | list[Instances]:
        """Losses in training, detections at inference."""
        if self.training:
            return self._losses(features, proposals, targets)
        return self._detect(features, self._score(features, proposals))

    # --- training ---

    def _losses(
        self, features: dict[str, Tensor], proposals: list[Instances], targets: list[Instances]
    ) -> dict[str, Tensor]:
        pooled = self._pool(features, [p.proposal_boxes for p in proposals])
        return self._stage_losses(0, features, pooled, proposals, targets)

    def _stage_losses(
        self,
        number: int,
        features: dict[str, Tensor],
        pooled: Tensor,
        proposals: list[Instances],
        targets: list[Instances],
    ) -> dict[str, Tensor]:
        """
        Losses of a stage: `loss_cls`, `loss_box_reg` and `loss_iou`.

        Args:
            pooled: features (R, C, H, W) of the sampled proposals.
        """
        stage = self.stages[number]
        predictor, plan = stage.predictor, stage.predictor.plan
        outputs = stage.run(pooled, plan.outputs_of("cls"))
        losses = {"loss_cls": predictor.classification_loss(outputs.pop("cls"), proposals)}

        if on_proposals := plan.trained_on("rpn"):
            rows, samples = foreground_samples(proposals, self.num_classes)
            others = [output for output in on_proposals if output not in outputs]
            found = {name: output[rows] for name, output in outputs.items()}
            found |= stage.run(pooled[rows], others)
            losses |= predictor.localisation_losses(found, samples)
        if on_uniform := plan.trained_on("uniform"):
            counts = self._most_samples(proposals, plan)
            samples = draw_samples(self.samplers[number], targets, counts)
            record_samples(f"localisation, stage {number + 1}", samples.boxes)
            found = stage.run(self._pool(features, samples.boxes), on_uniform)
            losses |= predictor.localisation_losses(found, samples)
        return losses

    def _most_samples(self, proposals: list[Instances], plan: HeadPlan) -> list[int]:
        """How many uniform samples to train on in each image at most."""
        if plan.match_factor is None:
            return [plan.max_samples] * len(proposals)
        foreground = map(len, foreground_rows(proposals, self.num_classes))
        return [min(round(plan.match_factor * count), plan.max_samples) for count in foreground]

    # --- inference ---

    def _score(self, features: dict[str, Tensor], proposals: list[Instances]) -> Scored:
        """Class probabilities of all proposals."""
        (stage,) = self.stages
        pooled = self._pool(features, [p.proposal_boxes for p in proposals])
        outputs = stage.run(pooled, stage.predictor.plan.outputs_of("cls"))
        probs = outputs["cls"].softmax(dim=1).split([len(p) for p in proposals])
        return Scored(stage, proposals, pooled, outputs, list(probs))

    def _detect(self, features: dict[str, Tensor], scored: Scored) -> list[Instances]:
        """Localise the rows that can become a detection, and rank them."""
        predictor = scored.stage.predictor
        threshold = predictor.test_score_thresh if self.lazy_localisation else -math.inf
        survivors = scored.take(surviving_rows(scored.probs, threshold))
        at_proposals = predictor.plan.with_iou and not predictor.plan.efo
        boxes, iou = self._refine(survivors, with_iou=at_proposals)
        if predictor.plan.efo:
            iou = self._predict_iou(features, survivors.stage, boxes)
        image_sizes = [p.image_size for p in scored.proposals]
        return predictor.inference(boxes, survivors.probs, iou, image_sizes)

    def raw_outputs(self, features: dict[str, Tensor], proposals: list[Instances]) -> RawOutputs:
        """
        Boxes, class probabilities and predicted IoUs of given boxes, before NMS.

        Args:
            features: maps of the backbone.
            proposals: per image, with `proposal_boxes`; any boxes, also none.
        """
        scored = self._score(features, proposals)
        with_iou = scored.stage.predictor.plan.with_iou
        boxes, before = self._refine(scored, with_iou=with_iou)
        iou = self._predict_iou(features, scored.stage, boxes) if with_iou else None
        return RawOutputs(boxes, scored.probs, iou, before)

    def _refine(self, scored: Scored, with_iou: bool) -> tuple[list[Tensor], list[Tensor] | None]:
        """Refined boxes per image, and the IoU as the proposals' own features tell it, or None."""
        stage, proposals = scored.stage, scored.proposals
        missing = [name for name in ("reg", "iou")[: 1 + with_iou] if name not in scored.outputs]
        outputs = scored.outputs | stage.run(scored.pooled, missing)
        boxes = stage.predictor.predict_boxes(outputs["reg"], proposals)
        if not with_iou:
            return boxes, None
        return boxes, stage.predictor.predict_iou(outputs["iou"], [len(p) for p in proposals])

    def _predict_iou(
        self, features: dict[str, Tensor], stage: Stage, boxes: list[Tensor]
    ) -> list[Tensor]:
        """The IoU of boxes from features pooled there: no feature offset (section 3.3)."""
        # A box that is not finite is dropped later; until then it must not be pooled.
        pooled = self._pool(features, [Boxes(b.nan_to_num()) for b in boxes])
        return stage.predictor.predict_iou(
            stage.run(pooled, ["iou"])["iou"], [len(b) for b in boxes]
        )

    def _pool(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        return self.box_pooler([features[name] for name in self.box_in_features], boxes)
