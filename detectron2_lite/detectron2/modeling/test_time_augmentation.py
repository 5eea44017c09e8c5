"""Detections from several views of an image: resized, and mirrored."""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2._left_out import left_out_error
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image
from detectron2.structures import Instances

__all__ = ["DatasetMapperTTA", "GeneralizedRCNNWithTTA"]

# A merged detection scores above it: what the model found passed its own threshold before.
_MERGE_SCORE_THRESH = 1e-8


class DatasetMapperTTA:
    """Makes the views of an image that ``TEST.AUG`` describes."""

    @configurable
    def __init__(self, min_sizes: list[int], max_size: int, flip: bool) -> None:
        """
        Args:
            min_sizes: lengths of the shorter edge, one view each.
            max_size: limit of the longer edge.
            flip: whether each view comes mirrored as well.
        """
        self.min_sizes = min_sizes
        self.max_size = max_size
        self.flip = flip

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        aug = cfg.TEST.AUG
        return {"min_sizes": aug.MIN_SIZES, "max_size": aug.MAX_SIZE, "flip": aug.FLIP}

    def __call__(self, dataset_dict: dict) -> list[dict]:
        """
        Args:
            dataset_dict: an input of a model: "image" (C, H, W), "height" and "width" of the
                original image.

        Returns:
            Copies of it with the "image" of each view, a mirrored one behind its original, and
            with "transforms", a `TransformList` from the original image to the view.
        """
        image = dataset_dict["image"].permute(1, 2, 0).numpy()
        height, width = dataset_dict["height"], dataset_dict["width"]
        before = T.NoOpTransform()
        if image.shape[:2] != (height, width):  # the loader has resized it
            before = T.ResizeTransform(height, width, *image.shape[:2])
        views = []
        for min_size in self.min_sizes:
            resize = T.ResizeShortestEdge(min_size, self.max_size)
            for flips in ([], [T.RandomFlip(prob=1.0)])[: 1 + bool(self.flip)]:
                pixels, transforms = T.apply_augmentations([resize, *flips], image.copy())
                view = copy.deepcopy(dataset_dict)
                view["image"] = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
                view["transforms"] = before + transforms
                views.append(view)
        return views


class GeneralizedRCNNWithTTA(nn.Module):
    """A :class:`GeneralizedRCNN` that detects in several views of each image and merges by NMS.

    Called as the model itself is, in evaluation mode.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        tta_mapper: Callable[[dict], list[dict]] | None = None,
        batch_size: int = 3,
    ) -> None:
        """
        Args:
            cfg: that of the model.
            model: a :class:`GeneralizedRCNN`, perhaps wrapped for several processes.
            tta_mapper: from an input to its views; by default `DatasetMapperTTA(cfg)`.
            batch_size: views that go through the model at once.
        """
        super().__init__()
        if isinstance(model, DistributedDataParallel):
            model = model.module
        assert isinstance(model, GeneralizedRCNN), (
            f"Test-time augmentation here is for a GeneralizedRCNN, got a {type(model).__name__}."
        )
        if cfg.MODEL.MASK_ON or cfg.MODEL.KEYPOINT_ON:
            raise left_out_error("Test-time augmentation of masks and keypoints")
        assert not cfg.MODEL.LOAD_PROPOSALS, (
            "Test-time augmentation cannot map given proposals: set MODEL.LOAD_PROPOSALS False."
        )
        self.cfg = cfg.clone()
        self.model = model
        self.tta_mapper = DatasetMapperTTA(cfg) if tta_mapper is None else tta_mapper
        self.batch_size = batch_size

    def __call__(self, batched_inputs: list[dict]) -> list[dict]:
        """
        Args:
            batched_inputs: as in :meth:`GeneralizedRCNN.forward`; an input without "image" has
                "file_name".

        Returns:
            For each image a dict with "instances" in the frame of the original.
        """
        return [{"instances": self._detect(self._complete(x))} for x in batched_inputs]

    def _complete(self, given: dict) -> dict:
        """A copy that surely has "image", "height" and "width"."""
        filled = dict(given)
        if "image" not in filled:
            pixels = read_image(filled.pop("file_name"), self.model.input_format)
            filled["image"] = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        if "height" not in filled and "width" not in filled:
            filled["height"], filled["width"] = filled["image"].shape[1:]
        return filled

    def _detect(self, given: dict) -> Instances:
        views = self.tta_mapper(given)
        transforms = [view.pop("transforms") for view in views]
        found = []
        for start in range(0, len(views), self.batch_size):
            batch = views[start : start + self.batch_size]
            found += self.model.inference(batch, do_postprocess=False)
        boxes = torch.cat(
            [_map_back(x.pred_boxes.tensor, t) for x, t in zip(found, transforms, strict=True)]
        )
        scores = torch.cat([x.scores for x in found])
        classes = torch.cat([x.pred_classes for x in found])
        return self._merge(boxes, scores, classes, (given["height"], given["width"]))

    def _merge(
        self,
        boxes: torch.Tensor,
        scores: torch.Tensor,
        classes: torch.Tensor,
        image_shape: tuple[int, int],
    ) -> Instances:
        """One NMS of what was found in all views, by the thresholds of the config."""
        heads = self.cfg.MODEL.ROI_HEADS
        # Rows as the second stage gives them: a score for each class, the background last.
        per_class = scores.new_zeros(len(scores), heads.NUM_CLASSES + 1)
        per_class[torch.arange(len(scores), device=scores.device), classes] = scores
        merged, _ = fast_rcnn_inference_single_image(
            boxes,
            per_class,
            image_shape,
            _MERGE_SCORE_THRESH,
            heads.NMS_THRESH_TEST,
            self.cfg.TEST.DETECTIONS_PER_IMAGE,
        )
        return merged


def _map_back(boxes: torch.Tensor, transforms: T.TransformList) -> torch.Tensor:
    """Boxes (R, 4) of a view in the frame of the original image."""
    original = transforms.inverse().apply_box(boxes.cpu().numpy())
    return torch.from_numpy(original).to(boxes.device)
