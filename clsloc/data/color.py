"""Random brightness, contrast, saturation and hue ("SSD: Single Shot MultiBox Detector", ECCV 2016,
whose code has them)."""

from types import ModuleType

import numpy as np

from clsloc.errors import UserError
from detectron2.data import transforms as T

__all__ = ["ColorDistortion", "ColorTransform"]


class ColorDistortion(T.Augmentation):
    """Each of the four in half of the images, contrast before or after saturation and hue."""

    def __init__(
        self,
        *,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        image_format: str = "RGB",
    ):
        """
        Args:
            brightness: the largest shift of values from 0 to 255.
            contrast, saturation: factors differ from 1 by at most this.
            hue: the largest turn, in degrees.
            image_format: RGB or BGR.
        """
        super().__init__()
        if image_format not in ("RGB", "BGR"):
            raise UserError(
                f"CLSLOC.INPUT.COLOR is for INPUT.FORMAT RGB or BGR, got {image_format!r}."
            )
        if saturation or hue:
            _cv2()
        self.brightness, self.contrast = brightness, contrast
        self.saturation, self.hue = saturation, hue
        self.image_format = image_format

    def get_transform(self, image: np.ndarray) -> T.Transform:
        drawn = np.random.uniform(-1, 1, 4) * np.random.randint(0, 2, 4)
        drawn *= (self.brightness, self.contrast, self.saturation, self.hue)
        brightness, contrast, saturation, hue = drawn + np.array([0, 1, 1, 0])
        return ColorTransform(
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
            contrast_first=bool(np.random.randint(2)),
            image_format=self.image_format,
        )


class ColorTransform(T.ColorTransform):
    """The change of colours itself; the arguments are those of one draw."""

    def __init__(
        self,
        *,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
        contrast_first: bool,
        image_format: str = "RGB",
    ):
        super().__init__(self._change)
        self.brightness, self.contrast = brightness, contrast
        self.saturation, self.hue = saturation, hue
        self.contrast_first = contrast_first
        self.image_format = image_format

    def _change(self, img: np.ndarray) -> np.ndarray:
        pixels = img.astype(np.float32) + self.brightness
        if self.contrast_first:
            pixels *= self.contrast
        if self.saturation != 1 or self.hue != 0:
            pixels = self._turned(pixels.clip(0, 255))
        if not self.contrast_first:
            pixels *= self.contrast
        return pixels.round().clip(0, 255).astype(img.dtype)

    def _turned(self, pixels: np.ndarray) -> np.ndarray:
        cv2 = _cv2()
        to_hsv, from_hsv = (
            getattr(cv2, f"COLOR_{name}")
            for name in (f"{self.image_format}2HSV", f"HSV2{self.image_format}")
        )
        hsv = cv2.cvtColor(pixels / 255, to_hsv)
        hsv[..., 0] = (hsv[..., 0] + self.hue) % 360
        hsv[..., 1] = (hsv[..., 1] * self.saturation).clip(0, 1)
        return cv2.cvtColor(hsv, from_hsv) * 255


def _cv2() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"CLSLOC.INPUT.COLOR needs OpenCV, which cannot be imported ({error}); install "
            "opencv-python-headless."
        ) from error
    return cv2
