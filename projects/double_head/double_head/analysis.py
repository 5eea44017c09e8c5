"""
What the towers say about windows around objects, and how alike their cells are (section 3).

Shape shorthand in this module:

    M: number of objects in an image
    R: number of windows
    P: cells of the pooled features, 49 for 7x7
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clsloc.analysis import (
    BinnedStatistics,
    PearsonCorrelation,
    clip_windows,
    fc_cell_features,
    fc_weight_correlation,
    iou_bins,
    sliding_windows,
    spatial_correlation,
)
from clsloc.analysis.windows import NUM_BINS
from clsloc.boxes import elementwise_iou
from detectron2.structures import Boxes, Instances, pairwise_iou
from double_head.plan import KINDS, kind_of

__all__ = ["HeadAnalysis", "difficulty_of_classes"]

SIZES = (("small", 32**2), ("medium", 96**2), ("large", float("inf")))
DIFFICULTIES = ("easy", "medium difficulty", "hard")
ROWS_AT_ONCE = 2048


class HeadAnalysis:
    """
    Statistics over the windows around all objects that are added; nothing is kept of a window.

    NOTE(paper): it leaves open which windows, and what the correlation of proposals and detections
    is taken over. Here: 14,175 windows an object; of the proposals that touch an object the
    probability of its class; of the detections the IoU with the best object of their class, 0
    without one.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        difficulties: Mapping[int, str] | None = None,
        windows: int | None = None,
        seed: int = 0,
    ) -> None:
        """
        Args:
            model: a `GeneralizedRCNN` with `DoubleHeadROIHeads`, in evaluation mode.
            difficulties: group of each class, of `difficulty_of_classes`; none by default.
            windows: how many windows of an object, drawn by `seed`; all by default.
        """
        self._model = model
        self._heads = model.roi_heads
        trained = self._heads.box_predictor.plan.loss_weights
        self.scorers = [kind for kind in KINDS if f"{kind}_cls" in trained]
        self.regressors = [kind for kind in KINDS if f"{kind}_reg" in trained]
        self._difficulties = difficulties or {}
        self._windows = windows
        self._generator = torch.Generator().manual_seed(seed)
        self._groups: dict[str, _Group] = {}
        self._of_proposals = {kind: PearsonCorrelation() for kind in self.scorers}
        self._of_detections = PearsonCorrelation()
        self._spatial: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, item: Mapping[str, Any]) -> None:
        """
        Args:
            item: what the model takes in training: `image`, `instances` with `gt_boxes` and
                `gt_classes`, and `height` and `width` of the original. Without objects nothing is
                counted.
        """
        objects = item["instances"]
        if not len(objects):
            return
        images = self._model.preprocess_image([item])
        features = self._model.backbone(images.tensor)
        objects = objects.to(self._model.device)
        scale = item["height"] * item["width"] / (objects.image_size[0] * objects.image_size[1])
        boxes, classes = objects.gt_boxes.tensor, objects.gt_classes
        for box, label, area in zip(boxes, classes.tolist(), objects.gt_boxes.area().tolist()):
            groups = [self._group(name) for name in self._groups_of(area * scale, label)]
            for group in groups:
                group.num_objects += 1
            self._add_windows(features, objects.image_size, box, label, groups)
        self._add_proposals(images, features, boxes, classes)
        self._add_cells(features, objects)

    def _groups_of(self, area: float, label: int) -> Iterable[str]:
        """Names of the groups of an object, by its area in pixels of the original image."""
        yield "all"
        yield next(name for name, limit in SIZES if area < limit)
        if label in self._difficulties:
            yield self._difficulties[label]

    def _group(self, name: str) -> "_Group":
        return self._groups.setdefault(name, _Group(self.scorers, self.regressors))

    def _add_windows(
        self,
        features: dict[str, Tensor],
        image_size: tuple[int, int],
        box: Tensor,
        label: int,
        groups: Sequence["_Group"],
    ) -> None:
        exact = box[None].double()  # many windows have an IoU on the border of two bins
        windows = sliding_windows(exact)
        if self._windows is not None:
            chosen = torch.randperm(windows.shape[1], generator=self._generator)[: self._windows]
            windows = windows[:, chosen.to(windows.device)]
        kept, _, ious = clip_windows(windows, exact, image_size)
        for rows, iou in zip(kept.split(ROWS_AT_ONCE), ious.split(ROWS_AT_ONCE)):
            scores, boxes = self._ask(features, image_size, rows.to(box), label)
            after = {kind: elementwise_iou(b, box.expand_as(b)) for kind, b in boxes.items()}
            for group in groups:
                group.update(iou, scores, after)

    def _ask(
        self, features: dict[str, Tensor], image_size: tuple[int, int], windows: Tensor, label: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Probability of a class (R,) and its regressed, clipped box (R, 4), by kind of tower."""
        predictor = self._heads.box_predictor
        given = [Instances(image_size, proposal_boxes=Boxes(windows))]
        predictions = self._heads.raw_outputs(features, given).predictions
        scores = {
            kind: predictor.predict_probs(predictions, given, kind)[0][:, label]
            for kind in self.scorers
        }
        boxes = {}
        for kind in self.regressors:
            decoded = predictor.predict_boxes(predictions, given, kind)[0]
            decoded = decoded.view(len(windows), -1, 4)
            of_class = Boxes(decoded[:, label if decoded.shape[1] > 1 else 0])
            of_class.clip(image_size)
            boxes[kind] = of_class.tensor
        return scores, boxes

    def _add_proposals(self, images, features, boxes: Tensor, classes: Tensor) -> None:
        """Figure 3, right: real boxes in place of windows."""
        predictor = self._heads.box_predictor
        proposals, _ = self._model.proposal_generator(images, features, None)
        predictions = self._heads.raw_outputs(features, proposals).predictions
        iou, nearest = pairwise_iou(proposals[0].proposal_boxes, Boxes(boxes)).max(dim=1)
        touching = iou > 0
        for kind, pearson in self._of_proposals.items():
            probs = predictor.predict_probs(predictions, proposals, kind)[0]
            of_class = probs.gather(1, classes[nearest][:, None])[:, 0]
            pearson.update(iou[touching], of_class[touching])
        (found,) = self._heads.detect(predictions, proposals)
        iou = pairwise_iou(found.pred_boxes, Boxes(boxes))
        iou = iou * (found.pred_classes[:, None] == classes)
        self._of_detections.update(iou.amax(dim=1), found.scores)

    def _add_cells(self, features: dict[str, Tensor], objects: Instances) -> None:
        """Figure 4: objects in the place of proposals."""
        given = [Instances(objects.image_size, proposal_boxes=objects.gt_boxes)]
        outputs = self._heads.raw_outputs(features, given)
        maps = {f"{tower} map": x for tower, x in outputs.conv_maps.items()}
        for tower, x in outputs.pooled.items():
            if kind_of(tower) == "fc" and (weight := self._first_fc(tower, x)) is not None:
                maps[f"{tower} map"] = fc_cell_features(weight, x)
        for name, x in maps.items():
            total = spatial_correlation(x).double().sum(dim=0).cpu()
            self._spatial[name] = self._spatial.get(name, 0) + total

    def _first_fc(self, tower: str, pooled: Tensor) -> Tensor | None:
        """(D, C * P); None where convolutions come first."""
        first = getattr(self._heads.box_head[tower], "fc1", None)
        reads_cells = first is not None and first.weight.shape[1] == pooled[0].numel()
        return first.weight if reads_cells else None

    def report(self) -> dict[str, Any]:
        """
        Returns:
            `bins`: lower ends of the IoU bins; `groups`: by name `objects`, `count` (per bin),
            `score` and `iou` (per kind of tower the `mean` and the population's `std` of each bin)
            and `pcc` (per kind, of IoU and score); `proposals` and `detections`: the same
            coefficient; `cells`: (P, P) cosine similarities of the maps, the mean over the objects,
            and of the weights of fc towers. NaN where there is nothing to say.
        """
        everything = self._groups.get("all")
        num_objects = everything.num_objects if everything else 0
        cells = {name: (total / num_objects).tolist() for name, total in self._spatial.items()}
        for name in list(cells):
            tower = name.removesuffix(" map")
            if kind_of(tower) == "fc":
                weight = self._heads.box_head[tower].fc1.weight.detach()
                correlation = fc_weight_correlation(weight, *self._heads.box_pooler.output_size)
                cells[f"{tower} weights"] = correlation.cpu().tolist()
        return {
            "bins": [i / NUM_BINS for i in range(NUM_BINS)],
            "groups": {name: group.report() for name, group in self._groups.items()},
            "proposals": {kind: pearson.value for kind, pearson in self._of_proposals.items()},
            "detections": self._of_detections.value,
            "cells": cells,
        }


class _Group:
    """The statistics of some of the objects."""

    def __init__(self, scorers: Sequence[str], regressors: Sequence[str]) -> None:
        self.num_objects = 0
        self._score = {kind: BinnedStatistics(NUM_BINS) for kind in scorers}
        self._iou = {kind: BinnedStatistics(NUM_BINS) for kind in regressors}
        self._pearson = {kind: PearsonCorrelation() for kind in scorers}

    def update(
        self, iou: Tensor, scores: Mapping[str, Tensor], after: Mapping[str, Tensor]
    ) -> None:
        """
        Args:
            iou: (R,) of the windows; R may be 0.
            scores: (R,) by kind of tower.
            after: IoU (R,) of the regressed boxes by kind of tower.
        """
        bins = iou_bins(iou)
        for kind, values in scores.items():
            self._score[kind].update(bins, values)
            self._pearson[kind].update(iou, values)
        for kind, values in after.items():
            self._iou[kind].update(bins, values)

    def report(self) -> dict[str, Any]:
        statistics = {"score": self._score, "iou": self._iou}
        return {
            "objects": self.num_objects,
            "count": next(iter(self._score.values())).count.tolist(),
            **{
                what: {
                    kind: {"mean": binned.mean.tolist(), "std": binned.std.tolist()}
                    for kind, binned in by_kind.items()
                }
                for what, by_kind in statistics.items()
            },
            "pcc": {kind: pearson.value for kind, pearson in self._pearson.items()},
        }


def difficulty_of_classes(aps: Mapping[int, float]) -> dict[int, str]:
    """
    Classes in thirds by the AP of a baseline, the easy ones first; of 80 classes 27, 27, 26.

    >>> difficulty_of_classes({0: 10.0, 1: 50.0, 2: 30.0})
    {1: 'easy', 2: 'medium difficulty', 0: 'hard'}
    """
    ranked = sorted(aps, key=lambda label: -aps[label])
    thirds = np.array_split(np.array(ranked, dtype=int), len(DIFFICULTIES))
    return {int(i): name for name, third in zip(DIFFICULTIES, thirds) for i in third}
