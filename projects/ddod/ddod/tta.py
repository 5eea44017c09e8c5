"""Detections from several sizes of an image and their mirror images."""

from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from clsloc.prediction import batches_of_one_size
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from detectron2.data.transforms import TransformList
from detectron2.modeling import DatasetMapperTTA
from detectron2.structures import Boxes, Instances

__all__ = ["DDODWithTTA"]

View = dict[str, Any]


class DDODWithTTA(nn.Module):
    """
    What Detectron2's `GeneralizedRCNNWithTTA` is for R-CNNs, for all detectors of this project.

    The candidates of all views, with their scores as they rank detections (class probability times
    quality), are mapped to the original image; the NMS of the config then runs once.

    NOTE(paper): the authors' code merges probabilities without the quality.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        tta_mapper: Callable[[View], list[View]] | None = None,
        batch_size: int | None = None,
    ):
        """
        Args:
            cfg: ``TEST.AUG`` is read.
            model: a `DDOD`.
            tta_mapper: from an input of the model to its views; by default `DatasetMapperTTA(cfg)`.
            batch_size: most views that go through the model at once. Only views of one size do,
                as padding would change what norms over a whole map give. By default 3, and 1 on
                a CPU, where several large views are slower together.
        """
        super().__init__()
        self.model = model
        self.input_format = cfg.INPUT.FORMAT
        self.tta_mapper = DatasetMapperTTA(cfg) if tta_mapper is None else tta_mapper
        self.batch_size = batch_size or (1 if self.model.device.type == "cpu" else 3)

    def forward(self, batched_inputs: list[View]) -> list[dict[str, Instances]]:
        """
        Args:
            batched_inputs: as for the model; an input without "image" has "file_name".

        Returns:
            For each image a dict with "instances" in the frame of the original.
        """
        return [{"instances": self._detect(self._complete(x))} for x in batched_inputs]

    def _complete(self, given: View) -> View:
        """A copy that surely has "image", "height" and "width"."""
        given = copy(given)
        if "image" not in given:
            pixels = read_image(given["file_name"], self.input_format)
            given["image"] = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        height, width = given["image"].shape[1:]
        return {"height": height, "width": width, **given}

    def _detect(self, given: View) -> Instances:
        views = self.tta_mapper(given)
        transforms = [view.pop("transforms") for view in views]
        found = []
        for batch in batches_of_one_size(((v, v["image"]) for v in views), self.batch_size):
            found += self.model.candidates([view for view, _ in batch])
        size = (given["height"], given["width"])
        merged = [_map_back(x, t, size) for x, t in zip(found, transforms, strict=True)]
        detections = self.model.inference.select(Instances.cat(merged))
        return self.model.inference.without_low(detections[detections.pred_boxes.nonempty()])


def _map_back(candidates: Instances, transforms: TransformList, size: tuple[int, int]) -> Instances:
    """Candidates of a view in the frame of the original image, which has this size."""
    boxes = candidates.pred_boxes.tensor
    original = transforms.inverse().apply_box(boxes.cpu().numpy())
    original = Boxes(torch.from_numpy(original).to(boxes))
    original.clip(size)
    fields = candidates.get_fields() | {"pred_boxes": original}
    return Instances(size, **fields)
