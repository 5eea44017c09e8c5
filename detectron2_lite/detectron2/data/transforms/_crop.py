"""Augmentations that cut a part out of the image."""

from collections.abc import Sequence

import numpy as np
import torch
from fvcore.transforms.transform import (
    CropTransform,
    NoOpTransform,
    PadTransform,
    Transform,
    TransformList,
)

from detectron2.data.transforms.augmentation import Augmentation
from detectron2.data.transforms.transform import ExtentTransform
from detectron2.structures import Boxes, pairwise_iou


class FixedSizeCrop(Augmentation):
    """Crops at a random place to a size, and pads right and bottom where the image is smaller."""

    def __init__(
        self,
        crop_size: tuple[int, int],
        pad: bool = True,
        pad_value: float = 128.0,
        seg_pad_value: int = 255,
    ) -> None:
        """
        Args:
            crop_size: height and width.
            pad: whether to pad; without it a smaller image stays smaller.
            pad_value, seg_pad_value: new pixels of the image and of the segmentation.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> TransformList:
        crop = self._get_crop(image)
        return TransformList([crop, self._get_pad(image)] if self.pad else [crop])

    def _get_crop(self, image: np.ndarray) -> Transform:
        size, crop_size = np.array(image.shape[:2]), np.array(self.crop_size)
        # One random number for both directions.
        room = np.maximum(size - crop_size, 0)
        y0, x0 = np.round(room * np.random.uniform(0.0, 1.0)).astype(int)
        return CropTransform(x0, y0, *self.crop_size[::-1], *image.shape[1::-1])

    def _get_pad(self, image: np.ndarray) -> Transform:
        (h, w), (crop_h, crop_w) = image.shape[:2], self.crop_size
        return PadTransform(
            0,
            0,
            max(crop_w - w, 0),
            max(crop_h - h, 0),
            min(w, crop_w),
            min(h, crop_h),
            self.pad_value,
            self.seg_pad_value,
        )


class RandomCrop(Augmentation):
    """Crops a rectangle at a random place."""

    def __init__(self, crop_type: str, crop_size: tuple[float, float]) -> None:
        """
        Args:
            crop_type: how the size of the rectangle follows from ``crop_size`` (a, b):
                "relative": a and b times the image's height and width.
                "relative_range": the same with numbers drawn from [a, 1] and [b, 1].
                "absolute": a and b pixels, at most the image.
                "absolute_range": height and width both drawn from [a, b], at most the image.
            crop_size: a, b.
        """
        super().__init__()
        types = ("relative_range", "relative", "absolute", "absolute_range")
        assert crop_type in types, f"crop_type is one of {', '.join(types)}, got '{crop_type}'."
        self._init({"crop_type": crop_type, "crop_size": crop_size})

    def get_transform(self, image: np.ndarray) -> Transform:
        x0, y0, w, h = self._random_window(image.shape[:2])
        return CropTransform(x0, y0, w, h)

    def _random_window(self, image_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """x0, y0, width and height of a random crop."""
        h, w = image_size
        crop_h, crop_w = self.get_crop_size(image_size)
        assert h >= crop_h and w >= crop_w, (
            f"A crop of {crop_h}x{crop_w} does not fit into an image of {h}x{w}."
        )
        y0 = np.random.randint(h - crop_h + 1)
        x0 = np.random.randint(w - crop_w + 1)
        return x0, y0, crop_w, crop_h

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a crop, drawn where they are random.

        Args:
            image_size: height and width of the image.
        """
        h, w = image_size
        if self.crop_type == "absolute":
            return min(self.crop_size[0], h), min(self.crop_size[1], w)
        if self.crop_type == "absolute_range":
            low, high = self.crop_size
            assert low <= high, f"crop_size must be a range, got {self.crop_size}."
            crop_h = np.random.randint(min(h, low), min(h, high) + 1)
            crop_w = np.random.randint(min(w, low), min(w, high) + 1)
            return crop_h, crop_w
        ratio_h, ratio_w = self.crop_size
        if self.crop_type == "relative_range":
            smallest = np.asarray(self.crop_size, dtype=np.float32)
            ratio_h, ratio_w = smallest + np.random.rand(2) * (1 - smallest)
        return int(h * ratio_h + 0.5), int(w * ratio_w + 0.5)


class RandomCrop_CategoryAreaConstraint(Augmentation):
    """A :class:`RandomCrop` in which no category of the segmentation covers too much.

    Ten places are tried; where none will do the last is taken.
    """

    def __init__(
        self,
        crop_type: str,
        crop_size: tuple[float, float],
        single_category_max_area: float = 1.0,
        ignored_category: int | None = None,
    ) -> None:
        """
        Args:
            crop_type, crop_size: see :class:`RandomCrop`.
            single_category_max_area: largest part of the labelled area for one category; 1 for
                any.
            ignored_category: a label that does not count.
        """
        self.crop_aug = RandomCrop(crop_type, crop_size)
        self._init(locals())

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> Transform:
        if self.single_category_max_area >= 1.0:
            return self.crop_aug.get_transform(image)
        for _ in range(10):
            x0, y0, w, h = self.crop_aug._random_window(sem_seg.shape)
            if self._is_mixed(sem_seg[y0 : y0 + h, x0 : x0 + w]):
                break
        return CropTransform(x0, y0, w, h)

    def _is_mixed(self, labels: np.ndarray) -> bool:
        categories, areas = np.unique(labels, return_counts=True)
        if self.ignored_category is not None:
            areas = areas[categories != self.ignored_category]
        return len(areas) > 1 and areas.max() < areas.sum() * self.single_category_max_area


class RandomExtent(Augmentation):
    """Cuts out a rectangle of random scale and place; black where it reaches beyond the image."""

    def __init__(self, scale_range: tuple[float, float], shift_range: tuple[float, float]) -> None:
        """
        Args:
            scale_range: range of the rectangle's size relative to the image's.
            shift_range: (x, y); the rectangle's centre lies up to half of these parts of the
                image's width and height away from the image's.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        size = np.array(image.shape[1::-1])  # width, height
        half = 0.5 * size * np.random.uniform(*self.scale_range)
        shift = np.array([part * (np.random.rand() - 0.5) for part in self.shift_range]) * size
        corners = [corner + shift + 0.5 * size for corner in (-half, half)]
        out_w, out_h = (int(length) for length in corners[1] - corners[0])
        return ExtentTransform(src_rect=(*corners[0], *corners[1]), output_size=(out_h, out_w))


class MinIoURandomCrop(Augmentation):
    """Crops such that all boxes overlap the crop enough, and the centre of at least one is inside.

    How much is enough is drawn anew in each round; a round may also choose the whole image. This
    is the sampling of SSD (arXiv:1512.02325, section 2.2).
    """

    def __init__(
        self,
        min_ious: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
        min_crop_size: float = 0.3,
        mode_trials: int = 1000,
        crop_trials: int = 50,
    ) -> None:
        """
        Args:
            min_ious: smallest IoU of box and crop, one of which is drawn in each round; 0 and the
                whole image are drawn as often as each of them.
            min_crop_size: smallest height and width relative to the image's.
            mode_trials: number of rounds.
            crop_trials: number of crops tried in each round.
        """
        super().__init__()
        self.sample_mode = (1, *min_ious, 0)
        self._init(locals())

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> Transform:
        """
        Args:
            boxes: float array of shape (N, 4) in XYXY_ABS; with N = 0 any crop will do.
        """
        height, width = image.shape[:2]
        for _ in range(self.mode_trials):
            mode = np.random.choice(self.sample_mode)
            if mode == 1:
                return NoOpTransform()
            for _ in range(self.crop_trials):
                w = np.random.uniform(self.min_crop_size * width, width)
                h = np.random.uniform(self.min_crop_size * height, height)
                if not 0.5 <= h / w <= 2:
                    continue
                x0, y0 = np.random.uniform(width - w), np.random.uniform(height - h)
                patch = np.array((x0, y0, x0 + w, y0 + h)).astype(int)
                if self._is_valid(patch, boxes, min_iou=mode):
                    return CropTransform(int(x0), int(y0), int(w), int(h))
        return NoOpTransform()

    @staticmethod
    def _is_valid(patch: np.ndarray, boxes: np.ndarray, min_iou: float) -> bool:
        if (patch[2:] == patch[:2]).any():
            return False
        if len(boxes) == 0:
            return True
        one_box = torch.from_numpy(patch[None].astype(np.float32))
        ious = pairwise_iou(Boxes(torch.as_tensor(boxes)), Boxes(one_box))
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((centers > patch[:2]) & (centers < patch[2:])).all(axis=1)
        return bool(ious.min() >= min_iou) and bool(inside.any())
