"""The augmentations of a training image: Detectron2's, and those of ``CLSLOC.INPUT``."""

from collections.abc import Sequence

import numpy as np

from clsloc.data.color import ColorDistortion
from clsloc.data.square_crop import RandomSquareCrop
from clsloc.errors import UserError
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation

__all__ = ["CutOut", "CutOutTransform", "ResizeWithinRandomLimit", "build_train_augmentations"]


def build_train_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """What ``INPUT`` and ``CLSLOC.INPUT`` say: a crop, colours, a change of size, a flip, holes.

    Raises:
        UserError: a value of ``CLSLOC.INPUT`` cannot be.
    """
    node, crop = cfg.CLSLOC.INPUT, cfg.INPUT.CROP
    _check(node)
    augmentations = build_augmentation(cfg, is_train=True)
    if len(node.SQUARE_CROP.SHARES):
        augmentations[0] = T.Resize((node.SQUARE_CROP.SIZE, node.SQUARE_CROP.SIZE))
    elif len(node.MAX_SIZE_RANGE):
        sizes, style = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
        augmentations[0] = ResizeWithinRandomLimit(sizes, style, node.MAX_SIZE_RANGE)
    if any(node.COLOR.values()):
        ranges = {key.lower(): value for key, value in node.COLOR.items()}
        augmentations.insert(0, ColorDistortion(**ranges, image_format=cfg.INPUT.FORMAT))
    if len(node.SQUARE_CROP.SHARES):
        augmentations.insert(0, RandomSquareCrop(node.SQUARE_CROP.SHARES))
    if crop.ENABLED:
        random_crop = T.RandomCrop(crop.TYPE, crop.SIZE)
        if node.CROP_PROB < 1:
            random_crop = T.RandomApply(random_crop, node.CROP_PROB)
        augmentations.insert(0, random_crop)
    if node.CUTOUT.PROB > 0:
        cut_out = CutOut(node.CUTOUT.HOLES, node.CUTOUT.SIZES)
        augmentations.append(T.RandomApply(cut_out, node.CUTOUT.PROB))
    return augmentations


class ResizeWithinRandomLimit(T.Augmentation):
    """Detectron2's `ResizeShortestEdge` whose limit of the longer edge is drawn as well."""

    def __init__(self, lengths: Sequence[int], sample_style: str, limits: Sequence[int]):
        """
        Args:
            lengths, sample_style: of the shorter edge, see `ResizeShortestEdge`.
            limits: the smallest and the largest limit of the longer edge.
        """
        super().__init__()
        self.lengths, self.sample_style, self.limits = lengths, sample_style, limits

    def get_transform(self, image: np.ndarray) -> T.Transform:
        limit = int(np.random.randint(self.limits[0], self.limits[1] + 1))
        resize = T.ResizeShortestEdge(self.lengths, limit, self.sample_style)
        return resize.get_transform(image)


class CutOut(T.Augmentation):
    """Blackens rectangles at random places ("Improved Regularization of Convolutional Neural
    Networks with Cutout", 2017); objects stay as they are, also where they are covered."""

    def __init__(self, holes: Sequence[int], sizes: Sequence[tuple[int, int]]):
        """
        Args:
            holes: the smallest and the largest number of rectangles.
            sizes: their possible (height, width).
        """
        super().__init__()
        self.holes, self.sizes = holes, sizes

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        count = np.random.randint(self.holes[0], self.holes[1] + 1)
        corners = np.random.randint((0, 0), (height, width), size=(count, 2))
        sizes = np.asarray(self.sizes)[np.random.randint(len(self.sizes), size=count)]
        return CutOutTransform(np.concatenate([corners, corners + sizes], axis=1))


class CutOutTransform(T.ColorTransform):
    """Blackens rectangles."""

    def __init__(self, holes: np.ndarray):
        """
        Args:
            holes: (C, 4) of first and last row and column, the last not included: top, left,
                bottom, right.
        """
        super().__init__(self._blacken)
        self.holes = holes

    def _blacken(self, img: np.ndarray) -> np.ndarray:
        img = img.copy()
        for top, left, bottom, right in self.holes:
            img[top:bottom, left:right] = 0
        return img


def _check(node: CfgNode) -> None:
    cutout, sizes = node.CUTOUT, np.asarray(node.CUTOUT.SIZES)
    square, shares = node.SQUARE_CROP, np.asarray(node.SQUARE_CROP.SHARES)
    color = node.COLOR
    rules = [
        ("CROP_PROB", node.CROP_PROB, 0 <= node.CROP_PROB <= 1, "a probability"),
        ("CUTOUT.PROB", cutout.PROB, 0 <= cutout.PROB <= 1, "a probability"),
        ("CUTOUT.HOLES", cutout.HOLES, _is_range(cutout.HOLES, 0), "two rising numbers"),
        ("CUTOUT.SIZES", cutout.SIZES, sizes.ndim == 2 and sizes.shape[1] == 2 and sizes.min() > 0,
         "pairs of a height and a width"),
        ("MAX_SIZE_RANGE", node.MAX_SIZE_RANGE,
         len(node.MAX_SIZE_RANGE) == 0 or _is_range(node.MAX_SIZE_RANGE, 1),
         "empty or two rising lengths"),
        ("SQUARE_CROP.SHARES", square.SHARES, bool(((shares > 0) & (shares <= 1)).all()),
         "shares above 0 and at most 1"),
        ("SQUARE_CROP.SIZE", square.SIZE, square.SIZE >= 1, "at least 1"),
        ("COLOR.BRIGHTNESS", color.BRIGHTNESS, color.BRIGHTNESS >= 0, "at least 0"),
        ("COLOR.CONTRAST", color.CONTRAST, 0 <= color.CONTRAST <= 1, "between 0 and 1"),
        ("COLOR.SATURATION", color.SATURATION, 0 <= color.SATURATION <= 1, "between 0 and 1"),
        ("COLOR.HUE", color.HUE, color.HUE >= 0, "at least 0"),
    ]  # fmt: skip
    for key, value, is_valid, words in rules:
        if not is_valid:
            raise UserError(f"CLSLOC.INPUT.{key} is {words}, got {value}.")


def _is_range(value: Sequence[int], least: int) -> bool:
    return len(value) == 2 and least <= value[0] <= value[1]
