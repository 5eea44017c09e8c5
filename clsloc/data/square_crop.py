"""Square crops around objects, of which those stay whose centres are inside: the samples of face
detectors ("S3FD: Single Shot Scale-invariant Face Detector", ICCV 2017, section 3.4)."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from clsloc.data.crowd_mapper import CrowdMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

__all__ = ["CentreMapper", "RandomSquareCrop"]


class RandomSquareCrop(T.Augmentation):
    """A square whose side is one of some shares of the shorter edge, with at least one centre of
    an object inside, where there is one."""

    # After so many squares without a centre the next lies around one.
    ATTEMPTS = 50

    def __init__(self, shares: Sequence[float]):
        """
        Args:
            shares: above 0 and at most 1.
        """
        super().__init__()
        self.shares = shares

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> T.Transform:
        """
        Args:
            boxes: (M, 4) XYXY.
        """
        height, width = image.shape[:2]
        centres = _centres(np.zeros((0, 4)) if boxes is None else boxes)
        for _ in range(self.ATTEMPTS):
            share = self.shares[np.random.randint(len(self.shares))]
            side = max(int(share * min(height, width)), 1)
            corner = np.random.randint(0, (width - side + 1, height - side + 1))
            inside = (corner < centres) & (centres < corner + side)
            if len(centres) == 0 or inside.all(axis=1).any():
                break
        else:
            centre = centres[np.random.randint(len(centres))]
            least = np.floor(centre).astype(int) - side + 1
            corner = np.random.randint(least, np.maximum(np.ceil(centre).astype(int), least + 1))
            corner = corner.clip(0, (width - side, height - side))
        x, y = map(int, corner)
        return T.CropTransform(x, y, side, side)


class CentreMapper(CrowdMapper):
    """
    The mapper of training samples that tells augmentations the boxes of the objects, and drops
    the objects whose centre they move out of the image; the others are clipped.
    """

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        sample = copy.deepcopy(dataset_dict)
        image = utils.read_image(sample["file_name"], format=self.image_format)
        utils.check_image_size(sample, image)
        objects = [x for x in sample.get("annotations", ()) if not x.get("iscrowd", 0)]
        given = T.AugInput(image, boxes=_boxes(objects))
        transforms = self.augmentations(given)
        height, width = given.image.shape[:2]
        sample["image"] = torch.as_tensor(np.ascontiguousarray(given.image.transpose(2, 0, 1)))
        if "annotations" in sample:
            centres = transforms.apply_coords(_centres(_boxes(objects)))
            inside = ((centres > 0) & (centres < (width, height))).all(axis=1)
            crowds = [x for x in sample["annotations"] if x.get("iscrowd", 0)]
            sample["annotations"] = [x for x, kept in zip(objects, inside) if kept] + crowds
            self._transform_annotations(sample, transforms, (height, width))
        return sample


def _boxes(annotations: Sequence[dict[str, Any]]) -> np.ndarray:
    boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in annotations]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _centres(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, :2] + boxes[:, 2:]) / 2
