"""RoI heads of G-RCN: each proposal is pooled from a map for each task."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from clsloc.checkpoint.copies import fill_copies
from clsloc.config import check_box_head
from clsloc.lazy import (
    foreground_rows,
    rows_are_independent,
    rows_of_batch,
    spread_rows,
    surviving_rows,
    take_rows,
)
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from grcn.context import GlobalContext, attention_entropy
from grcn.heads import Res5Head, build_head
from grcn.output_layers import GRCNOutputLayers
from grcn.switches import check_switches

__all__ = ["GRCNROIHeads"]

TASKS = ("cls", "loc")
# That of Detectron2's writers: the entropy copies all attention weights, tens of megabytes.
LOG_PERIOD = 20


@ROI_HEADS_REGISTRY.register()
class GRCNROIHeads(StandardROIHeads):
    """
    Scores come from one map, boxes from another ("G-RCN: Optimizing the Gap between Classification
    and Localization Tasks for Object Detection", 2020).

    Differs from `StandardROIHeads` in the box branch alone: `box_pooler` has a pooler for each
    task, `box_head` one head, or two. Where nothing tells the tasks apart, features are pooled and
    the head is run once.
    """

    @configurable
    def __init__(
        self,
        *,
        task_features: dict[str, list[str]],
        task_heads: dict[str, list[str]],
        context: nn.ModuleDict,
        whole_image_pooler: nn.ModuleDict,
        lazy_localisation: bool = True,
        **kwargs: Any,
    ):
        """
        Args:
            task_features: names of the maps that "cls" and "loc" pool from.
            task_heads: names of the heads of each task, whose outputs are concatenated.
            context: a `GlobalContext` for each task that has one.
            whole_image_pooler: for each of these, pools the image.
            lazy_localisation: give the localisation path, where it is one of its own, the RoIs for
                which it matters: at inference those whose score passes the threshold, in training
                the foreground.
            kwargs: arguments of `StandardROIHeads`; `box_pooler` and `box_head` are dicts.
        """
        super().__init__(**kwargs)
        self.task_features = task_features
        self.task_heads = task_heads
        self.context = context
        self.whole_image_pooler = whole_image_pooler
        self.lazy_localisation = lazy_localisation
        self.one_map = task_features["cls"] == task_features["loc"]
        self.one_path = self.one_map and not len(context) and task_heads["cls"] == task_heads["loc"]
        copies = list(self.box_head)
        fill_copies(self.box_head, dict.fromkeys(copies[1:], copies[0]))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        check_box_head(cfg, "G-RCN", ["TRAIN_ON_PRED_BOXES"])
        check_switches(cfg)
        return super().from_config(cfg, input_shape) | {
            "lazy_localisation": cfg.CLSLOC.LAZY_LOCALISATION,
        }

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        features = _task_features(cfg.MODEL.ROI_HEADS.IN_FEATURES, input_shape)
        resolution = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        channels = input_shape[features["cls"][0]].channels
        heads, task_heads = _build_heads(
            cfg, ShapeSpec(channels=channels, height=resolution, width=resolution)
        )
        width = sum(heads[name].output_shape.channels for name in task_heads["cls"])
        context, context_poolers = nn.ModuleDict(), nn.ModuleDict()
        node = cfg.MODEL.GRCN.CONTEXT
        for task in TASKS:
            if node[task.upper()]:
                context[task] = _build_context(cfg, channels)
                context_poolers[task] = _build_pooler(cfg, input_shape, features[task], node.POOL)
        return {
            "box_in_features": features["cls"],
            "box_pooler": nn.ModuleDict(
                {t: _build_pooler(cfg, input_shape, features[t], resolution) for t in TASKS}
            ),
            "box_head": heads,
            "box_predictor": GRCNOutputLayers(cfg, ShapeSpec(channels=width)),
            "task_features": features,
            "task_heads": task_heads,
            "context": context,
            "whole_image_pooler": context_poolers,
        }

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        """Losses in training, detections at inference."""
        pooled = self._pool("cls", features, proposals)
        x_cls = self._task_vector("cls", pooled, features, proposals)
        if self.one_path:
            scores, deltas = self.box_predictor(x_cls, x_cls)
        else:
            scores, deltas = self.box_predictor.cls_score(x_cls), None
        if self.training:
            if deltas is None:
                deltas = self._deltas_for_losses(features, proposals, pooled)
            return self.box_predictor.losses((scores, deltas), proposals)

        probs = self.box_predictor.predict_probs((scores, None), proposals)
        if deltas is None and self.lazy_localisation:
            rows = surviving_rows(probs, self.box_predictor.test_score_thresh)
            deltas = self._localise(features, proposals, pooled, rows)
            probs, proposals = take_rows(probs, rows), take_rows(proposals, rows)
        elif deltas is None:
            deltas = self._localise(features, proposals, pooled)
        return self.box_predictor.detect(probs, deltas, proposals)

    def _deltas_for_losses(
        self, features: dict[str, Tensor], proposals: list[Instances], pooled: Tensor
    ) -> Tensor:
        """Deltas of all rows; those of background, which enter no loss, may be zeros instead."""
        heads = [self.box_head[name] for name in self.task_heads["loc"]]
        if not self.lazy_localisation or not all(map(rows_are_independent, heads)):
            return self._localise(features, proposals, pooled)
        rows = foreground_rows(proposals, self.num_classes)
        deltas = self._localise(features, proposals, pooled, rows)
        return spread_rows(deltas, rows, [len(p) for p in proposals])

    def _localise(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        pooled: Tensor,
        rows: list[Tensor] | None = None,
    ) -> Tensor:
        """
        Deltas from the localisation path, of some rows of each image or of all.

        Args:
            pooled: (R, D, height, width), what classification pooled for all rows; read again where
                both tasks have one map.
        """
        if rows is not None and self.one_map:
            pooled = pooled[rows_of_batch(rows, [len(p) for p in proposals])]
        if rows is not None:
            proposals = take_rows(proposals, rows)
        if not self.one_map:
            pooled = self._pool("loc", features, proposals)
        return self.box_predictor.bbox_pred(self._task_vector("loc", pooled, features, proposals))

    def _pool(self, task: str, features: dict[str, Tensor], proposals: list[Instances]) -> Tensor:
        maps = [features[name] for name in self.task_features[task]]
        return self.box_pooler[task](maps, [p.proposal_boxes for p in proposals])

    def _task_vector(
        self, task: str, pooled: Tensor, features: dict[str, Tensor], proposals: list[Instances]
    ) -> Tensor:
        """Context and head: (R, D, height, width) to (R, C)."""
        if task in self.context:
            pooled = self._add_context(task, pooled, features, proposals)
        vectors = [self.box_head[name](pooled) for name in self.task_heads[task]]
        return torch.cat(vectors, dim=1) if len(vectors) > 1 else vectors[0]

    def _add_context(
        self, task: str, pooled: Tensor, features: dict[str, Tensor], proposals: list[Instances]
    ) -> Tensor:
        # The true size of each image: what is padded is no context.
        boxes = [Boxes(pooled.new_tensor([[0, 0, *p.image_size[::-1]]])) for p in proposals]
        maps = [features[name] for name in self.task_features[task]]
        whole = self.whole_image_pooler[task](maps, boxes)
        enriched, weights = self.context[task](pooled, whole, [len(p) for p in proposals])
        if self.training:
            _log_context(task, pooled, enriched, weights)
        return enriched


def _task_features(names: list[str], input_shape: dict[str, ShapeSpec]) -> dict[str, list[str]]:
    """The maps of each task: `names`, and the same with "loc" for "cls" where the backbone has
    them."""
    of_loc = [name.replace("cls", "loc", 1) for name in names]
    return {"cls": names, "loc": of_loc if set(of_loc) <= set(input_shape) else names}


def _build_pooler(
    cfg: CfgNode, input_shape: dict[str, ShapeSpec], names: list[str], resolution: int
) -> ROIPooler:
    return ROIPooler(
        output_size=resolution,
        scales=tuple(1.0 / input_shape[name].stride for name in names),
        sampling_ratio=cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO,
        pooler_type=cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE,
    )


def _build_heads(cfg: CfgNode, shape: ShapeSpec) -> tuple[nn.ModuleDict, dict[str, list[str]]]:
    """
    The heads by name, the second one a copy of the first, and the names that each task reads.

    A pretrained file holds "res5" or "head"; the name of a copy must not end in that of its source,
    or Detectron2 would refuse to match the file with both.
    """
    head = build_head(cfg, shape)
    name = "res5" if isinstance(head, Res5Head) and not cfg.MODEL.GRCN.RES_DET else "head"
    copy = f"{name}_copy"
    match cfg.MODEL.GRCN.HEAD:
        case "separate":
            readers = {"cls": [name], "loc": [copy]}
        case "double":
            readers = {task: [name, copy] for task in TASKS}
        case _:
            return nn.ModuleDict({name: head}), {task: [name] for task in TASKS}
    return nn.ModuleDict({name: head, copy: deepcopy(head)}), readers


def _build_context(cfg: CfgNode, channels: int) -> GlobalContext:
    node = cfg.MODEL.GRCN.CONTEXT
    return GlobalContext(
        channels,
        key_dim=node.KEY_DIM,
        num_heads=node.NUM_HEADS,
        value_proj=node.VALUE_PROJ,
        init_std=node.INIT_STD,
    )


@torch.no_grad()
def _log_context(task: str, pooled: Tensor, enriched: Tensor, weights: list[Tensor]) -> None:
    """Put the mean entropy of the attention, and the size of what it adds, in the storage, in the
    iterations that Detectron2 writes."""
    storage = get_event_storage()
    if (storage.iter + 1) % LOG_PERIOD or not len(pooled):
        return
    ratio = (enriched - pooled).float().norm() / pooled.float().norm().clamp(min=1e-12)
    entropy, ratio = torch.stack([attention_entropy(weights), ratio]).tolist()
    suffix = "" if task == "cls" else "_loc"
    storage.put_scalar(f"grcn/context_entropy{suffix}", entropy)
    storage.put_scalar(f"grcn/context_ratio{suffix}", ratio)
