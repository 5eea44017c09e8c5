"""Random changes of the colours; where an image blends with another, weights may be below 0."""

import numpy as np
from fvcore.transforms.transform import BlendTransform, Transform

from detectron2.data.transforms.augmentation import Augmentation


class _RandomIntensity(Augmentation):
    """Blends the image with a degraded one; intensity 1 is the image, 0 the degraded one."""

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        """
        Args:
            intensity_min, intensity_max: range of the intensity; above 1 the effect is amplified.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        degraded = self._degrade(image)
        intensity = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=degraded, src_weight=1 - intensity, dst_weight=intensity)

    def _degrade(self, image: np.ndarray) -> np.ndarray | float:
        raise NotImplementedError


class RandomContrast(_RandomIntensity):
    """Random contrast: blends with the mean grey of the image."""

    def _degrade(self, image: np.ndarray) -> float:
        return image.mean()


class RandomBrightness(_RandomIntensity):
    """Random brightness: blends with black."""

    def _degrade(self, image: np.ndarray) -> float:
        return 0


class RandomSaturation(_RandomIntensity):
    """Random saturation of an RGB image: blends with its luminance."""

    def _degrade(self, image: np.ndarray) -> np.ndarray:
        assert image.shape[-1] == 3, f"Saturation needs an RGB image, got shape {image.shape}."
        return image.dot([0.299, 0.587, 0.114])[:, :, None]


class RandomLighting(Augmentation):
    """Adds a random colour to an RGB image along the principal axes of ImageNet's colours.

    "Fancy PCA" of AlexNet (Krizhevsky et al., NIPS 2012, section 4.1).
    """

    def __init__(self, scale: float) -> None:
        """
        Args:
            scale: standard deviation of the random weight of each axis.
        """
        super().__init__()
        self._init(locals())
        self.eigen_vecs = np.array(
            [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
        )
        self.eigen_vals = np.array([0.2175, 0.0188, 0.0045])

    def get_transform(self, image: np.ndarray) -> Transform:
        assert image.shape[-1] == 3, f"Lighting needs an RGB image, got shape {image.shape}."
        weights = np.random.normal(scale=self.scale, size=3)
        color = self.eigen_vecs.dot(weights * self.eigen_vals)
        return BlendTransform(src_image=color, src_weight=1.0, dst_weight=1.0)
