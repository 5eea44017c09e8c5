"""All augmentations: flips, resizing and rotation here, crops and colours in files of their own."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import (
    HFlipTransform,
    NoOpTransform,
    Transform,
    VFlipTransform,
)
from PIL import Image

from detectron2.data.transforms._color import (
    RandomBrightness,
    RandomContrast,
    RandomLighting,
    RandomSaturation,
)
from detectron2.data.transforms._crop import (
    FixedSizeCrop,
    MinIoURandomCrop,
    RandomCrop,
    RandomCrop_CategoryAreaConstraint,
    RandomExtent,
)
from detectron2.data.transforms.augmentation import Augmentation, _transform_to_aug
from detectron2.data.transforms.transform import (
    ResizeTransform,
    RotationTransform,
)

__all__ = [
    "FixedSizeCrop",
    "RandomApply",
    "RandomBrightness",
    "RandomContrast",
    "RandomCrop",
    "RandomExtent",
    "RandomFlip",
    "RandomSaturation",
    "RandomLighting",
    "RandomRotation",
    "Resize",
    "ResizeScale",
    "ResizeShortestEdge",
    "RandomCrop_CategoryAreaConstraint",
    "RandomResize",
    "MinIoURandomCrop",
]


class RandomApply(Augmentation):
    """Applies an augmentation or a transform with a probability, else nothing."""

    def __init__(self, tfm_or_aug: Transform | Augmentation, prob: float = 0.5) -> None:
        """
        Args:
            tfm_or_aug: what to apply.
            prob: between 0 and 1.
        """
        self.aug = _transform_to_aug(tfm_or_aug)
        assert 0.0 <= prob <= 1.0, f"A probability is between 0 and 1, got {prob}."
        self.prob = prob

    def get_transform(self, *args: Any) -> Transform:
        return self.aug.get_transform(*args) if self._happens() else NoOpTransform()

    def __call__(self, aug_input: Any) -> Transform:
        return self.aug(aug_input) if self._happens() else NoOpTransform()

    def _happens(self) -> bool:
        return self._rand_range() < self.prob


class RandomFlip(Augmentation):
    """Flips the image in one direction with a probability."""

    def __init__(
        self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False
    ) -> None:
        """
        Args:
            prob: of a flip.
            horizontal, vertical: the direction; exactly one must be True.
        """
        super().__init__()
        if horizontal == vertical:
            raise ValueError(
                f"One RandomFlip flips in one direction, got horizontal={horizontal} and "
                f"vertical={vertical}; use two for both."
            )
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(w) if self.horizontal else VFlipTransform(h)


class Resize(Augmentation):
    """Resizes to a fixed size."""

    def __init__(self, shape: int | Sequence[int], interp: int = Image.BILINEAR) -> None:
        """
        Args:
            shape: height and width, or one number for both.
            interp: interpolation of PIL.
        """
        shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        return ResizeTransform(*image.shape[:2], *self.shape, self.interp)


class ResizeShortestEdge(Augmentation):
    """Resizes so that the shorter edge gets a random length, and the longer stays within a limit.

    The aspect ratio is kept: where the longer edge would be over the limit, both get smaller.
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = Image.BILINEAR,
    ) -> None:
        """
        Args:
            short_edge_length: one length; or with the style "range" the smallest and the largest,
                with "choice" all that are possible. Length 0 leaves the image as it is.
            max_size: limit of the longer edge.
            sample_style: "range" or "choice".
            interp: interpolation of PIL.
        """
        super().__init__()
        assert sample_style in ("range", "choice"), (
            f"sample_style is 'range' or 'choice', got '{sample_style}'."
        )
        self.is_range = sample_style == "range"
        if isinstance(short_edge_length, int):
            short_edge_length = (short_edge_length, short_edge_length)
        assert not self.is_range or len(short_edge_length) == 2, (
            f"With sample_style='range' give two lengths, got {short_edge_length}."
        )
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        if self.is_range:
            smallest, largest = self.short_edge_length
            size = np.random.randint(smallest, largest + 1)
        else:
            size = np.random.choice(self.short_edge_length)
        if size == 0:
            return NoOpTransform()
        return ResizeTransform(h, w, *self.get_output_shape(h, w, size, self.max_size), self.interp)

    @staticmethod
    def get_output_shape(
        oldh: int, oldw: int, short_edge_length: int, max_size: int
    ) -> tuple[int, int]:
        """Height and width after resizing an image of ``oldh`` x ``oldw``."""
        new_short = short_edge_length * 1.0
        new_long = new_short / min(oldh, oldw) * max(oldh, oldw)
        if new_long > max_size:
            shrink = max_size * 1.0 / new_long
            new_short, new_long = new_short * shrink, new_long * shrink
        short, long = int(new_short + 0.5), int(new_long + 0.5)
        return (short, long) if oldh < oldw else (long, short)


class ResizeScale(Augmentation):
    """Resizes to fit into a target size times a random factor, keeping the aspect ratio.

    With :class:`FixedSizeCrop` this is large-scale jittering (arXiv:2012.07177).
    """

    def __init__(
        self,
        min_scale: float,
        max_scale: float,
        target_height: int,
        target_width: int,
        interp: int = Image.BILINEAR,
    ) -> None:
        """
        Args:
            min_scale, max_scale: range of the factor.
            target_height, target_width: the size at factor 1.
            interp: interpolation of PIL.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        scale = np.random.uniform(self.min_scale, self.max_scale)
        h, w = image.shape[:2]
        ratio = min(self.target_height * scale / h, self.target_width * scale / w)
        new_h, new_w = (int(length) for length in np.round(np.multiply((h, w), ratio)))
        return ResizeTransform(h, w, new_h, new_w, self.interp)


class RandomResize(Augmentation):
    """Resizes to one of several sizes."""

    def __init__(self, shape_list: Sequence[tuple[int, int]], interp: int = Image.BILINEAR) -> None:
        """
        Args:
            shape_list: heights and widths.
            interp: interpolation of PIL.
        """
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        shape = self.shape_list[np.random.randint(low=0, high=len(self.shape_list))]
        return ResizeTransform(*image.shape[:2], *shape, self.interp)


class RandomRotation(Augmentation):
    """Rotates counter-clockwise by a random angle around a random point."""

    def __init__(
        self,
        angle: float | Sequence[float],
        expand: bool = True,
        center: Sequence[Any] | None = None,
        sample_style: str = "range",
        interp: int | None = None,
    ) -> None:
        """
        Args:
            angle: one angle in degrees; or with the style "range" the smallest and the largest,
                with "choice" all that are possible.
            expand: whether the output grows to hold the whole rotated image.
            center: one point (x, y) relative to the image's size, or the corners of a range of
                points, or all that are possible. None for the middle; without effect if
                ``expand`` is set.
            sample_style: "range" or "choice".
            interp: interpolation of OpenCV, by default linear.
        """
        super().__init__()
        assert sample_style in ("range", "choice"), (
            f"sample_style is 'range' or 'choice', got '{sample_style}'."
        )
        self.is_range = sample_style == "range"
        if isinstance(angle, (float, int)):
            angle = (angle, angle)
        if center is not None and isinstance(center[0], (float, int)):
            center = (center, center)
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        center = None
        if self.is_range:
            angle = np.random.uniform(self.angle[0], self.angle[1])
            if self.center is not None:
                (x0, y0), (x1, y1) = self.center
                center = np.random.uniform(x0, x1), np.random.uniform(y0, y1)
        else:
            angle = np.random.choice(self.angle)
            if self.center is not None:
                center = self.center[np.random.choice(len(self.center))]
        if angle % 360 == 0:
            return NoOpTransform()
        if center is not None:
            center = (w * center[0], h * center[1])
        return RotationTransform(h, w, angle, expand=self.expand, center=center, interp=self.interp)
