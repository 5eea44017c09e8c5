"""Draws the images of the digits dataset.

H = W = ``IMAGE_SIZE``. Boxes are XYXY in pixels, the right and lower edges exclusive. "Ink" is
where a digit covers at least half of a pixel.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage import data as textures
from sklearn.datasets import load_digits

IMAGE_SIZE = 192
MAX_DIGITS = 6
SIZES = (18, 100)  # the longer side of a digit's box
MAX_ANGLE = math.radians(12)
MAX_STRETCH = 1.35  # of width against height
MIN_SHORT_SIDE = 6
MAX_COVERED = 0.25  # the part of a digit's ink that later digits may hide
MAX_STROKES = 4
MIN_CONTRAST = 70  # between the grey values of a digit and of what it lies on
VAL_FRACTION = 0.2  # of the source digits
TEXTURES = (  # those that come within scikit-image's wheel, without writing in them
    "astronaut brick camera chelsea coffee coins grass gravel hubble_deep_field "
    "immunohistochemistry moon rocket"
).split()

_INK_LEVEL = 0.5  # of the 8 x 8 source digits, whose values run from 0 to 1
_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_NOISE = 4.0  # standard deviation in grey values


@dataclass
class Scene:
    """One image with its n >= 1 digits, in drawing order.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        masks: (n, H, W) bool, the visible ink.
        boxes: (n, 4) int, tight around the visible ink.
        labels: n ints, 0..9.
        sources: n indices into scikit-learn's digits.
    """

    image: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray
    labels: list[int]
    sources: list[int]


class SceneMaker:
    """Makes the scenes of one split; no two splits share a source digit."""

    def __init__(self, split: str, seed: int = 0) -> None:
        digits = load_digits()
        self._glyphs = digits.images / 16.0
        self._labels = digits.target.tolist()
        order = np.random.default_rng(seed).permutation(len(self._labels))
        num_val = round(VAL_FRACTION * len(order))
        self._sources = {"val": order[:num_val], "train": order[num_val:]}[split].tolist()
        self._seed = (seed, int(split == "val"))
        self._textures = [_as_rgb(getattr(textures, name)()) for name in TEXTURES]

    def __call__(self, number: int) -> Scene:
        """Scene ``number``; depends on it, the seed and the split alone."""
        rng = np.random.default_rng((*self._seed, number))
        canvas = _crop_texture(self._textures[rng.integers(len(self._textures))], rng)
        _draw_strokes(canvas, rng)
        image = np.array(canvas, dtype=np.float32)
        digits = _Digits()
        for _ in range(rng.integers(1, MAX_DIGITS + 1)):
            source = self._sources[rng.integers(len(self._sources))]
            glyph = _draw_glyph(self._glyphs[source], rng)
            place = digits.place(glyph, source, rng)
            if place is not None:
                _paint(image[place], glyph, rng)
        image += _NOISE * rng.standard_normal((IMAGE_SIZE, IMAGE_SIZE, 1), dtype=np.float32)
        return Scene(
            image=image.clip(0, 255).astype(np.uint8),
            masks=np.stack(digits.visible),
            boxes=np.array([tight_box(mask) for mask in digits.visible]),
            labels=[self._labels[source] for source in digits.sources],
            sources=digits.sources,
        )


def _recognisable(mask: np.ndarray, least: float) -> bool:
    return mask.sum() >= least and _longer_side(mask) >= SIZES[0]


def _longer_side(mask: np.ndarray) -> int:
    x0, y0, x1, y1 = tight_box(mask)
    return max(x1 - x0, y1 - y0)


class _Digits:
    """The digits placed in a scene so far."""

    def __init__(self) -> None:
        self.visible: list[np.ndarray] = []
        self.sources: list[int] = []
        self._least_visible: list[float] = []  # pixels of each that have to stay visible

    def place(
        self, glyph: np.ndarray, source: int, rng: np.random.Generator, tries: int = 20
    ) -> tuple[slice, slice] | None:
        """Find a place where ``glyph`` covers no earlier digit too much.

        Args:
            glyph: (h, w) opacity.
            source: the index of the source digit.

        Returns:
            Its rows and columns, or None if no place was found.
        """
        height, width = glyph.shape
        for _ in range(tries):
            y = rng.integers(IMAGE_SIZE - height + 1)
            x = rng.integers(IMAGE_SIZE - width + 1)
            place = (slice(y, y + height), slice(x, x + width))
            ink = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=bool)
            ink[place] = glyph >= 0.5
            visible = [mask & ~ink for mask in self.visible]
            if all(map(_recognisable, visible, self._least_visible)):
                self.visible = [*visible, ink]
                self.sources.append(source)
                self._least_visible.append((1 - MAX_COVERED) * ink.sum())
                return place
        return None


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The smallest XYXY box that holds all true pixels of a non-empty (H, W) mask."""
    columns, rows = (np.flatnonzero(mask.any(axis)) for axis in (0, 1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _as_rgb(texture: np.ndarray) -> Image.Image:
    return Image.fromarray(texture).convert("RGB")


def _crop_texture(texture: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = int(rng.integers(IMAGE_SIZE, min(texture.size) + 1))
    x, y = (int(rng.integers(length - side + 1)) for length in texture.size)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    box = (x, y, x + side, y + side)
    return texture.resize(size, Image.Resampling.BILINEAR, box, reducing_gap=2.0)


def _draw_strokes(canvas: Image.Image, rng: np.random.Generator) -> None:
    """Draw curves that look a little like digits but are none; they lie below all digits."""
    draw = ImageDraw.Draw(canvas)
    t = np.linspace(0, 1, 12)[:, None]
    for _ in range(rng.integers(MAX_STROKES + 1)):
        start = rng.uniform(0, IMAGE_SIZE, 2)
        bend, end = start + rng.normal(scale=40, size=(2, 2))
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        colour = tuple(rng.integers(256, size=3).tolist())
        width = int(rng.integers(1, 7))
        draw.line([tuple(point) for point in curve.tolist()], colour, width, joint="curve")


def _draw_glyph(glyph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scale, stretch and turn an (8, 8) source digit; returns its (h, w) opacity, cut to the ink
    with a border of one pixel for the soft edge."""
    while True:
        size = math.exp(rng.uniform(*map(math.log, SIZES)))
        stretch = math.exp(rng.uniform(-1, 1) * math.log(MAX_STRETCH))
        alpha = _transform(glyph, size, stretch, rng.uniform(-MAX_ANGLE, MAX_ANGLE))
        x0, y0, x1, y1 = tight_box(alpha >= 0.5)
        short, long = sorted((x1 - x0, y1 - y0))
        if SIZES[0] <= long <= SIZES[1] and short >= MIN_SHORT_SIDE:
            return alpha[y0 - 1 : y1 + 1, x0 - 1 : x1 + 1]


def _transform(glyph: np.ndarray, size: float, stretch: float, angle: float) -> np.ndarray:
    """The opacity of ``glyph`` with its width stretched, turned by ``angle`` (radians), the longer
    side of its ink ``size`` pixels long, on a canvas with room around it."""
    cos, sin = math.cos(angle), math.sin(angle)
    forward = np.array([[cos, -sin], [sin, cos]]) @ np.diag([1.0, stretch])  # (y, x) of cells
    ink = np.argwhere(glyph >= _INK_LEVEL)
    centre = (ink.min(0) + ink.max(0)) / 2
    turned = (ink - centre) @ forward.T
    extent = np.ptp(turned, axis=0) + 0.6  # the ink ends outside the centres of its last cells
    scale = size / extent.max()  # pixels per cell
    shape = np.ceil((2 * np.abs(turned).max(0) + 4) * scale).astype(int)
    inverse = np.linalg.inv(forward * scale)
    offset = centre - inverse @ ((shape - 1) / 2)
    values = ndimage.affine_transform(glyph, inverse, offset, tuple(shape), order=3)
    # The edge where the values cross the ink level becomes about one pixel wide.
    return (0.5 + (values - _INK_LEVEL) * 1.5 * scale).clip(0, 1).astype(np.float32)


def _paint(image: np.ndarray, alpha: np.ndarray, rng: np.random.Generator) -> None:
    """Blend a colour that stands out from what it covers over the (h, w, 3) float ``image``."""
    below = float(image[alpha >= 0.5].mean(0) @ _GREY)
    room = (0, below - MIN_CONTRAST) if below > 127.5 else (below + MIN_CONTRAST, 255)
    grey = rng.uniform(*room)
    tint = rng.uniform(-40, 40, size=3)
    colour = (grey + tint - tint @ _GREY).clip(0, 255).astype(np.float32)
    image += alpha[..., None] * (colour - image)
