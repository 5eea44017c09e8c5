"""Deterministic transforms of an image and the coordinates in it, beside those of fvcore.

Coordinates are float arrays of shape (N, 2) holding (x, y) in pixels, with (0, 0) at the upper left
corner of the upper left pixel.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import CropTransform, NoOpTransform, Transform, TransformList
from PIL import Image

__all__ = [
    "ExtentTransform",
    "ResizeTransform",
    "RotationTransform",
    "ColorTransform",
    "PILColorTransform",
]

# OpenCV is imported only where an image is rotated, so that nothing else needs it.
_CV2_INTER_NEAREST, _CV2_INTER_LINEAR = 0, 1


class ExtentTransform(Transform):
    """Cuts a rectangle out of the image, which may reach beyond it, and scales it."""

    def __init__(
        self,
        src_rect: tuple[float, float, float, float],
        output_size: tuple[int, int],
        interp: int = Image.BILINEAR,
        fill: float = 0,
    ) -> None:
        """
        Args:
            src_rect: x0, y0, x1, y1 in the input.
            output_size: height and width of the output.
            interp: interpolation of PIL.
            fill: value of the pixels outside the input.
        """
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        plane = img[:, :, 0] if img.ndim == 3 and img.shape[2] == 1 else img
        result = Image.fromarray(plane).transform(
            size=self.output_size[::-1],
            method=Image.EXTENT,
            data=self.src_rect,
            resample=interp or self.interp,  # NEAREST is 0: as in the API it cannot be asked for
            fill=self.fill,
        )
        return np.asarray(result).reshape(*self.output_size, *img.shape[2:])

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        x0, y0, x1, y1 = self.src_rect
        height, width = self.output_size
        coords = coords.astype(np.float32)
        for axis, low, high, size in ((0, x0, x1, width), (1, y0, y1, height)):
            coords[:, axis] -= 0.5 * (low + high)
            coords[:, axis] *= size / (high - low)
            coords[:, axis] += 0.5 * size
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.NEAREST)


class ResizeTransform(Transform):
    """Scales an image to a given size, by PIL if it is uint8 and by torch otherwise.

    PIL filters when it shrinks, torch does not.
    """

    _TORCH_MODES = {
        Image.NEAREST: "nearest",
        Image.BILINEAR: "bilinear",
        Image.BICUBIC: "bicubic",
    }

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None) -> None:
        """
        Args:
            h, w: size of the input.
            new_h, new_w: size of the output.
            interp: interpolation of PIL, by default bilinear.
        """
        super().__init__()
        if interp is None:
            interp = Image.BILINEAR
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        assert img.shape[:2] == (self.h, self.w), (
            f"This transform resizes images of {self.h}x{self.w}, got one of shape {img.shape}."
        )
        method = self.interp if interp is None else interp
        resize = self._resize_uint8 if img.dtype == np.uint8 else self._resize_float
        return resize(img, method)

    def _resize_uint8(self, img: np.ndarray, interp: int) -> np.ndarray:
        one_channel = img.ndim == 3 and img.shape[2] == 1
        image = Image.fromarray(img[:, :, 0] if one_channel else img)
        result = np.asarray(image.resize((self.new_w, self.new_h), interp))
        return result[:, :, None] if one_channel else result

    def _resize_float(self, img: np.ndarray, interp: int) -> np.ndarray:
        mode = self._TORCH_MODES[interp]
        planes = torch.from_numpy(np.ascontiguousarray(img)).reshape(self.h, self.w, -1)
        result = F.interpolate(
            planes.permute(2, 0, 1)[None],
            (self.new_h, self.new_w),
            mode=mode,
            align_corners=None if mode == "nearest" else False,
        )
        result = result[0].permute(1, 2, 0)
        return result.reshape(self.new_h, self.new_w, *img.shape[2:]).numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords[:, 0] = coords[:, 0] * (self.new_w / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h / self.h)
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.NEAREST)

    def inverse(self) -> Transform:
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class RotationTransform(Transform):
    """Rotates an image counter-clockwise around a point."""

    def __init__(
        self,
        h: int,
        w: int,
        angle: float,
        expand: bool = True,
        center: tuple[float, float] | None = None,
        interp: int | None = None,
    ) -> None:
        """
        Args:
            h, w: size of the input.
            angle: in degrees.
            expand: whether the output is as large as the whole rotated image; else it keeps the
                size of the input and corners are cut off.
            center: x, y of the fixed point, by default the image's centre. Without effect where
                ``expand`` is set, because the result is centred then.
            interp: interpolation of OpenCV, by default ``cv2.INTER_LINEAR``.
        """
        super().__init__()
        self.h, self.w, self.angle, self.expand = h, w, angle, expand
        self.image_center = np.array((w / 2, h / 2))
        self.center = self.image_center if center is None else center
        self.interp = _CV2_INTER_LINEAR if interp is None else interp
        self.bound_w, self.bound_h = w, h
        if expand:
            cos, sin = abs(np.cos(np.deg2rad(angle))), abs(np.sin(np.deg2rad(angle)))
            bounds = np.rint([h * sin + w * cos, h * cos + w * sin])
            self.bound_w, self.bound_h = bounds.astype(int)
        self.rm_coords = self.create_rotation_matrix()
        # OpenCV puts (0, 0) at the centre of the upper left pixel, half a pixel further in.
        self.rm_image = self.create_rotation_matrix(offset=-0.5)

    def create_rotation_matrix(self, offset: float = 0) -> np.ndarray:
        """The 2x3 matrix that maps (x, y, 1) of the input to the output.

        Args:
            offset: of the coordinate system's origin.
        """
        cos, sin = np.cos(np.deg2rad(self.angle)), np.sin(np.deg2rad(self.angle))
        rotation = np.array([[cos, sin], [-sin, cos]])
        if self.expand:
            fixed = self.image_center + offset
            target = np.array((self.bound_w / 2, self.bound_h / 2)) + offset
        else:
            # OpenCV's points, hence its own rotation matrices, have a centre in single precision.
            fixed = target = np.add(self.center, offset).astype(np.float32)
        return np.hstack([rotation, (target - rotation @ fixed)[:, None]])

    def _is_identity(self) -> bool:
        return self.angle % 360 == 0

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        if len(img) == 0 or self._is_identity():
            return img
        assert img.shape[:2] == (self.h, self.w), (
            f"This transform rotates images of {self.h}x{self.w}, got one of shape {img.shape}."
        )
        import cv2

        size = (int(self.bound_w), int(self.bound_h))
        method = self.interp if interp is None else interp
        return cv2.warpAffine(img, self.rm_image, size, flags=method)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords = np.asarray(coords, dtype=float)
        if len(coords) == 0 or self._is_identity():
            return coords
        return coords @ self.rm_coords[:, :2].T + self.rm_coords[:, 2]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=_CV2_INTER_NEAREST)

    def inverse(self) -> Transform:
        """Rotates back, then cuts out what was the input."""
        if not self.expand:
            raise NotImplementedError(
                "A rotation with expand=False cuts corners off and cannot be inverted."
            )
        back = RotationTransform(self.bound_h, self.bound_w, -self.angle, True, None, self.interp)
        crop = CropTransform(
            (back.bound_w - self.w) // 2, (back.bound_h - self.h) // 2, self.w, self.h
        )
        return TransformList([back, crop])


class ColorTransform(Transform):
    """Changes pixel values by a function of the image; coordinates stay as they are."""

    def __init__(self, op: Callable[[np.ndarray], np.ndarray]) -> None:
        """
        Args:
            op: makes an image of the same size from an image.
        """
        if not callable(op):
            raise ValueError(f"op must be a function of the image, got {op!r}.")
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self.op(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def inverse(self) -> Transform:
        return NoOpTransform()


class PILColorTransform(ColorTransform):
    """A :class:`ColorTransform` whose function takes and returns a PIL image."""

    def __init__(self, op: Callable[[Image.Image], Image.Image]) -> None:
        """
        Args:
            op: makes a PIL image of the same size from a PIL image.
        """
        super().__init__(op)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return np.asarray(super().apply_image(Image.fromarray(img)))
