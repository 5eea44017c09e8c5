"""RoI heads of Double-Head and Double-Head-Ext."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from clsloc.config import check_box_head
from clsloc.lazy import (
    foreground_rows,
    rows_are_independent,
    rows_of_batch,
    spread_rows,
    surviving_rows,
    take_rows,
)
from clsloc.poolers import build_box_pooler
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads, build_box_head
from detectron2.structures import Instances
from double_head.conv_head import DoubleHeadConvHead
from double_head.output_layers import DoubleHeadOutputLayers
from double_head.plan import HeadPlan, kind_of, resolve_test_sources

__all__ = ["DoubleHeadROIHeads", "RawOutputs"]


@dataclass
class RawOutputs:
    """
    What all towers say about given boxes; R rows everywhere, in the order of the boxes.

    Attributes:
        predictions: class logits (R, K+1) and box deltas (R, 4K), by the predictor's name.
        pooled: input of each tower, (R, C, H, W), by the tower's name.
        conv_maps: last map of each conv tower before its mean over positions, (R, CONV_DIM, H, W).
    """

    predictions: dict[str, Tensor]
    pooled: dict[str, Tensor]
    conv_maps: dict[str, Tensor]


@ROI_HEADS_REGISTRY.register()
class DoubleHeadROIHeads(StandardROIHeads):
    """
    An fc tower and a conv tower for the two tasks of detection ("Rethinking Classification and
    Localization for Object Detection", CVPR 2020).

    Differs from `StandardROIHeads` in the box branch alone: `box_head` is a dict of towers, each
    with its own scale of the pooling window, `box_predictor` holds up to four predictors.
    """

    @configurable
    def __init__(self, *, lazy_localisation: bool = True, **kwargs: Any):
        """
        Args:
            lazy_localisation: give a tower that only regresses boxes the RoIs for which it
                matters, where this changes nothing: at inference those whose score passes the
                threshold, in training the foreground, if the tower has no batch norm.
            kwargs: arguments of `StandardROIHeads`.
        """
        super().__init__(**kwargs)
        self.lazy_localisation = lazy_localisation

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        check_box_head(cfg, "Double-Head")
        return super().from_config(cfg, input_shape) | {
            "lazy_localisation": cfg.CLSLOC.LAZY_LOCALISATION,
        }

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        pooler, shape = build_box_pooler(cfg, input_shape)
        builders = {"fc": build_box_head, "conv": DoubleHeadConvHead}
        towers = nn.ModuleDict(
            {name: builders[kind_of(name)](cfg, shape) for name in HeadPlan.from_config(cfg).towers}
        )
        shapes = {name: tower.output_shape for name, tower in towers.items()}
        return {
            "box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "box_pooler": pooler,
            "box_head": towers,
            "box_predictor": DoubleHeadOutputLayers(cfg, shapes),
        }

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        """Losses in training, detections at inference."""
        plan = self.box_predictor.plan
        if self.training:
            predictions = self._predict_for_losses(features, proposals)
            return self.box_predictor.losses(predictions, proposals)
        if self.lazy_localisation and plan.scores_without_box_tower:
            return self._detect_lazily(features, proposals)
        needed = [*plan.classifiers, plan.regressor]
        pooled = self._pool(features, proposals, map(plan.tower_of, needed))
        return self.detect(self._run_towers(pooled, needed).predictions, proposals)

    def _predict_for_losses(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """All predictions; deltas that enter no loss may be zeros instead."""
        plan = self.box_predictor.plan
        lazy = [name for name in plan.loss_weights if self._needs_foreground_only(name)]
        eager = [name for name in plan.loss_weights if name not in lazy]
        pooled = self._pool(features, proposals, map(plan.tower_of, eager))
        predictions = self._run_towers(pooled, eager).predictions
        if lazy:
            rows = foreground_rows(proposals, self.num_classes)
            sizes = [len(p) for p in proposals]
        for name in lazy:
            deltas = self._run_on_rows(name, features, proposals, rows, pooled)
            predictions[name] = spread_rows(deltas, rows, sizes)
        return predictions

    def _needs_foreground_only(self, predictor: str) -> bool:
        plan = self.box_predictor.plan
        return (
            self.lazy_localisation
            and plan.tower_only_regresses(predictor)
            and rows_are_independent(self.box_head[plan.tower_of(predictor)])
        )

    def _detect_lazily(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> list[Instances]:
        """Score all proposals, localise those that pass the threshold."""
        predictor, plan = self.box_predictor, self.box_predictor.plan
        pooled = self._pool(features, proposals, map(plan.tower_of, plan.classifiers))
        scores = self._run_towers(pooled, plan.classifiers).predictions
        probs = predictor.predict_probs(scores, proposals)
        rows = surviving_rows(probs, predictor.test_score_thresh)
        deltas = self._run_on_rows(plan.regressor, features, proposals, rows, pooled)
        survivors = take_rows(proposals, rows)
        boxes = predictor.predict_boxes({plan.regressor: deltas}, survivors)
        return predictor.inference(boxes, take_rows(probs, rows), survivors)[0]

    def detect(
        self,
        predictions: dict[str, Tensor],
        proposals: list[Instances],
        score: str | None = None,
        box: str | None = None,
    ) -> list[Instances]:
        """
        Detections from raw predictions, for any evaluation mode of Figure 8.

        Args:
            predictions: of `raw_outputs`.
            proposals: the boxes that they belong to.
            score, box: sources of scores and boxes, see `HeadPlan`; by default what the config
                asks for.

        Raises:
            UserError: if a source is not trained.
        """
        plan = self.box_predictor.plan
        score, box = resolve_test_sources(plan.loss_weights, score or plan.score, box or plan.box)
        probs = self.box_predictor.predict_probs(predictions, proposals, score)
        boxes = self.box_predictor.predict_boxes(predictions, proposals, box)
        return self.box_predictor.inference(boxes, probs, proposals)[0]

    def raw_outputs(self, features: dict[str, Tensor], proposals: list[Instances]) -> RawOutputs:
        """
        Run every tower and predictor once on the given boxes.

        Args:
            features: maps of the backbone.
            proposals: per image, with `proposal_boxes`; any boxes, also none.
        """
        plan = self.box_predictor.plan
        pooled = self._pool(features, proposals, plan.towers)
        return self._run_towers(pooled, plan.loss_weights)

    def _pool(
        self, features: dict[str, Tensor], proposals: list[Instances], towers: Iterable[str]
    ) -> dict[float, Tensor]:
        """Pool the proposals once for each scale that the towers look at: {scale: (R, C, H, W)}."""
        maps = [features[name] for name in self.box_in_features]
        boxes = [p.proposal_boxes for p in proposals]
        scales = dict.fromkeys(map(self.box_predictor.plan.scale_of, towers))
        return {scale: self.box_pooler(maps, boxes, scale) for scale in scales}

    def _run_on_rows(
        self,
        predictor: str,
        features: dict[str, Tensor],
        proposals: list[Instances],
        rows: list[Tensor],
        pooled: dict[float, Tensor],
    ) -> Tensor:
        """One predictor on some rows of each image; pooled features of all rows are reused."""
        plan = self.box_predictor.plan
        tower = plan.tower_of(predictor)
        scale = plan.scale_of(tower)
        if scale in pooled:
            pooled = {scale: pooled[scale][rows_of_batch(rows, [len(p) for p in proposals])]}
        else:
            pooled = self._pool(features, take_rows(proposals, rows), [tower])
        return self._run_towers(pooled, [predictor]).predictions[predictor]

    def _run_towers(self, pooled: dict[float, Tensor], predictors: Iterable[str]) -> RawOutputs:
        """Run the predictors with these names, and each tower that they read once."""
        plan = self.box_predictor.plan
        outputs = RawOutputs({}, {}, {})
        vectors: dict[str, Tensor] = {}
        for name in predictors:
            tower = plan.tower_of(name)
            if tower not in vectors:
                outputs.pooled[tower] = x = pooled[plan.scale_of(tower)]
                head = self.box_head[tower]
                if kind_of(tower) == "conv":
                    outputs.conv_maps[tower] = x = head.feature_map(x)
                    vectors[tower] = head.pool(x)
                else:
                    vectors[tower] = head(x)
            outputs.predictions[name] = self.box_predictor(name, vectors[tower])
        return outputs
