"""Drawing on Pillow images: colours, outlines, lines, texts. Coordinates are in pixels."""

import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

Color = str | Sequence[float]

_LETTERS = {
    "b": (0, 0, 1),
    "g": (0, 0.5, 0),
    "r": (1, 0, 0),
    "c": (0, 0.75, 0.75),
    "m": (0.75, 0, 0.75),
    "y": (0.75, 0.75, 0),
    "k": (0, 0, 0),
    "w": (1, 1, 1),
}
_DASHES = {"-": None, "--": (4, 3), ":": (1, 2), "-.": (4, 2, 1, 2)}
"""Lengths of strokes and gaps in line widths."""


def to_rgb(color: Color) -> np.ndarray:
    """(3,) floats in [0, 1] of a triple, a CSS name, a hex code or one of ``bgrcmykw``."""
    if not isinstance(color, str):
        return np.array([float(value) for value in color[:3]])
    if color in _LETTERS:
        return np.array(_LETTERS[color], dtype=np.float64)
    return np.array(ImageColor.getrgb(color)[:3]) / 255


def _rgba(rgb: np.ndarray, alpha: float = 1.0) -> tuple[int, ...]:
    return tuple(round(255 * float(value)) for value in np.clip([*rgb, alpha], 0, 1))


def _pen(image: Image.Image) -> ImageDraw.ImageDraw:
    # In this mode a colour with an opacity is blended with what is below.
    return ImageDraw.Draw(image, "RGBA")


def outline_box(
    image: Image.Image,
    box: np.ndarray,
    rgb: np.ndarray,
    alpha: float,
    width: int,
    line_style: str,
) -> None:
    """Draw a box's outline, half of the line outside of it."""
    x0, y0, x1, y1 = box
    if line_style != "-":
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)])
        stroke_path(image, corners, rgb, alpha, width, line_style)
        return
    # Pillow's rectangle grows inwards and includes its last pixel.
    half = width / 2
    outer = [x0 - half, y0 - half, max(x1 - 1, x0) + half, max(y1 - 1, y0) + half]
    _pen(image).rectangle([round(value) for value in outer], None, _rgba(rgb, alpha), width)


def stroke_path(
    image: Image.Image,
    points: np.ndarray,
    rgb: np.ndarray,
    alpha: float,
    width: int,
    line_style: str,
) -> None:
    """Draw a line through (N, 2) points."""
    if line_style not in _DASHES:
        raise ValueError(f"Line style {line_style!r} is not one of {list(_DASHES)}.")
    pen = _pen(image)
    for start, end in _strokes(points, _DASHES[line_style], width):
        pen.line([*start.tolist(), *end.tolist()], fill=_rgba(rgb, alpha), width=width)


def _strokes(
    points: np.ndarray, pattern: tuple[int, ...] | None, width: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Start and end of every stroke; the pattern starts anew at each point."""
    for start, end in itertools.pairwise(points):
        length = float(np.hypot(*(end - start)))
        if pattern is None or length == 0:
            yield start, end
            continue
        direction, at = (end - start) / length, 0.0
        for index, part in enumerate(itertools.cycle(pattern)):
            if at >= length:
                break
            until = min(at + part * width, length)
            if index % 2 == 0:
                yield start + direction * at, start + direction * until
            at = until


def fill_circle(image: Image.Image, centre: np.ndarray, radius: float, rgb: np.ndarray) -> None:
    """Draw a filled circle."""
    _pen(image).ellipse([*(centre - radius), *(centre + radius)], fill=_rgba(rgb))


@functools.lru_cache(maxsize=64)
def _font(pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(pixels)


def _padding(pixels: int) -> int:
    return max(pixels // 6, 1)


def text_patch_height(pixels: int) -> int:
    """Height of the image that :func:`text_patch` returns."""
    return sum(_font(pixels).getmetrics()) + 2 * _padding(pixels)


def text_patch(text: str, pixels: int, rgb: np.ndarray) -> Image.Image:
    """A text on a dark, slightly transparent ground, as an RGBA image of its own.

    Args:
        text: the text.
        pixels: size of the letters.
        rgb: colour of the letters.
    """
    font, padding = _font(pixels), _padding(pixels)
    size = round(font.getlength(text)) + 2 * padding, text_patch_height(pixels)
    patch = Image.new("RGBA", size, (0, 0, 0, 170))
    ImageDraw.Draw(patch).text((padding, padding), text, fill=_rgba(rgb), font=font, anchor="la")
    return patch
