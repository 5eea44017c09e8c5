"""A palette of colours that are easy to tell apart.

Colours are float arrays of three channels, BGR unless ``rgb`` is set, scaled to ``maximum``.
"""

import colorsys
import random

import numpy as np

__all__ = ["colormap", "random_color", "random_colors"]

_GOLDEN_RATIO = (5**0.5 - 1) / 2
_TONES = ((0.85, 0.95), (0.60, 1.00), (1.00, 0.70))
"""Saturation and value of vivid, light and dark variants."""


def _make_palette(hues: int = 24) -> np.ndarray:
    """RGB in [0, 1], (3 x hues, 3); steps of the golden ratio keep neighbours far apart."""
    colors = []
    for saturation, value in _TONES:
        for _ in range(hues):
            hue = len(colors) * _GOLDEN_RATIO % 1.0
            colors.append(colorsys.hsv_to_rgb(hue, saturation, value))
    return np.array(colors, dtype=np.float32)


_COLORS = _make_palette()


def colormap(rgb: bool = False, maximum: float = 255) -> np.ndarray:
    """The whole palette.

    Args:
        rgb: RGB instead of BGR.
        maximum: 255 or 1.

    Returns:
        (N, 3) float32.
    """
    assert maximum in (255, 1), f"maximum has to be 255 or 1, not {maximum}."
    colors = _COLORS * maximum
    return colors if rgb else colors[:, ::-1]


def random_color(rgb: bool = False, maximum: float = 255) -> np.ndarray:
    """One colour of the palette, drawn with numpy's generator.

    Returns:
        (3,) float32.
    """
    return colormap(rgb, maximum)[np.random.randint(len(_COLORS))]


def random_colors(N: int, rgb: bool = False, maximum: float = 255) -> list[np.ndarray]:
    """``N`` different colours of the palette, drawn with Python's generator.

    Raises:
        ValueError: the palette has fewer than ``N``.
    """
    colors = colormap(rgb, maximum)
    return [colors[index] for index in random.sample(range(len(colors)), N)]
