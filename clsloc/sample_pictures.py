"""Pictures of what a training step trains on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from clsloc.sample_record import SampleGroup
from detectron2.structures import Boxes, Instances, pairwise_iou

__all__ = ["as_rgb", "draw_samples", "sample_figures"]

TRUTH, NEGATIVE = "#4db8ff", "#ff5a4f"
# Of positives, by what they train.
COLOURS = {"classification": "#ffc400", "localisation": "#e07bff"}
POSITIVE = "#00e05a"
SHORTER_SIDE = 400  # pixels of a panel at least: levels cannot be read on less
HEADER = 34
COLUMNS = 3


def draw_samples(
    image: np.ndarray,
    truth: Instances,
    class_names: Sequence[str],
    groups: Sequence[SampleGroup],
    index: int,
    level_names: Sequence[str] = (),
) -> Image.Image:
    """
    One picture of an image: a panel with the objects, and one for each group of samples.

    Boxes without objects are thin and red, the others green, or yellow and violet where the two
    tasks have samples of their own. Samples with levels, anchors, have a dot in their centre, the
    larger the coarser the level; of them only those that stand for an object are drawn.

    Args:
        image: RGB (H, W, 3) of uint8, as the model gets it.
        truth: with "gt_boxes" and "gt_classes".
        class_names: of each class; where there are too few, the number is written.
        groups: of the batch.
        index: of the image in the batch.
        level_names: of the pyramid.
    """
    scale = max(1.0, SHORTER_SIDE / min(image.shape[:2]))
    height, width = (round(side * scale) for side in image.shape[:2])
    plain = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    drawn = _draw_truth(plain, truth, class_names, scale)
    panels = [("ground truth", f"{len(truth)} objects", {}, drawn)]
    for group in groups:
        figures = sample_figures(group, index, truth, level_names)
        drawn = _draw_group(plain, truth, group, index, scale)
        panels.append((group.name, _caption(figures), figures.get("levels", {}), drawn))
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    picture = Image.new("RGB", (columns * width, rows * (height + HEADER)), "white")
    draw = ImageDraw.Draw(picture)
    for number, (title, caption, levels, panel) in enumerate(panels):
        x, y = number % columns * width, number // columns * (height + HEADER)
        draw.text((x + 4, y + 2), title, fill="black", font=_font(13))
        draw.text((x + 4, y + 18), caption, fill="#444444", font=_font(11))
        _draw_legend(draw, x + width, y, levels, _colour(title), level_names)
        picture.paste(panel, (x, y + HEADER))
    return picture


def sample_figures(
    group: SampleGroup, index: int, truth: Instances, level_names: Sequence[str] = ()
) -> dict[str, Any]:
    """
    Of one image: how many samples are positive and negative, the mean IoU of the positives with
    the object that each overlaps most (None without any), and their number by level.
    """
    positive = group.positive[index]
    boxes = group.boxes[index][positive]
    figures: dict[str, Any] = {
        "positives": int(positive.sum()),
        "negatives": int((~positive).sum()),
        "mean_iou": None,
    }
    if len(boxes) and len(truth):
        iou = pairwise_iou(Boxes(boxes), truth.gt_boxes.to("cpu")).max(dim=1).values
        figures["mean_iou"] = round(float(iou.mean()), 4)
    if group.levels is not None:
        levels = group.levels[index][positive].tolist()
        names = [_level_name(level, level_names) for level in levels]
        figures["levels"] = {name: names.count(name) for name in sorted(set(names))}
    return figures


def _caption(figures: dict[str, Any]) -> str:
    text = f"{figures['positives']} positive"
    if figures["negatives"]:
        text += f", {figures['negatives']} negative"
    if figures["mean_iou"] is not None:
        text += f"; mean IoU {figures['mean_iou']:.2f}"
    return text


def _draw_truth(
    plain: Image.Image, truth: Instances, class_names: Sequence[str], scale: float
) -> Image.Image:
    panel = plain.copy()
    draw = ImageDraw.Draw(panel)
    classes = truth.gt_classes.tolist()
    for box, label in zip(truth.gt_boxes.tensor.cpu(), classes, strict=True):
        corners = _corners(box, scale)
        draw.rectangle(corners, outline=TRUTH, width=3)
        name = class_names[label] if label < len(class_names) else str(label)
        _write(draw, corners[:2], name, TRUTH)
    return panel


def _draw_group(
    plain: Image.Image, truth: Instances, group: SampleGroup, index: int, scale: float
) -> Image.Image:
    panel = plain.copy()
    draw = ImageDraw.Draw(panel, "RGBA")
    for box in truth.gt_boxes.tensor.cpu():
        draw.rectangle(_corners(box, scale), outline=TRUTH, width=3)
    boxes, positive = group.boxes[index], group.positive[index]
    if group.levels is None:
        for box in boxes[~positive]:
            draw.rectangle(_corners(box, scale), outline=NEGATIVE + "90", width=1)
    colour = _colour(group.name)
    for box in boxes[positive]:
        draw.rectangle(_corners(box, scale), outline=colour + "b0", width=1)
    if group.levels is not None:
        levels = group.levels[index][positive]
        for row in levels.argsort(descending=True).tolist():  # small dots on large ones
            x0, y0, x1, y1 = _corners(boxes[positive][row], scale)
            _dot(draw, (x0 + x1) / 2, (y0 + y1) / 2, int(levels[row]), colour)
    return panel


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    right: int,
    top: int,
    levels: dict[str, int],
    colour: str,
    level_names: Sequence[str],
) -> None:
    """Dot, name and number of anchors of each level, in the upper right corner of a panel."""
    names = [_level_name(i, level_names) for i in range(max(len(level_names), len(levels)))]
    for name in reversed(levels):
        text = f"{name}: {levels[name]}"
        right -= int(_font(11).getlength(text)) + 6
        draw.text((right, top + 3), text, fill="#444444", font=_font(11))
        level = names.index(name) if name in names else int(name)
        right -= _radius(level) + 3
        _dot(draw, right, top + 10, level, colour)
        right -= _radius(level) + 4


def _colour(name: str) -> str:
    return COLOURS.get(name.partition(",")[0], POSITIVE)


def _radius(level: int) -> int:
    return 2 + 2 * min(level, 4)


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, level: int, colour: str) -> None:
    r = _radius(level)
    draw.ellipse((x - r, y - r, x + r, y + r), fill=colour, outline="black")


def _level_name(level: int, names: Sequence[str]) -> str:
    return names[level] if level < len(names) else str(level)


def _corners(box: Tensor, scale: float) -> tuple[float, ...]:
    x0, y0, x1, y1 = (box * scale).tolist()
    return x0, y0, max(x0, x1), max(y0, y1)


def _write(
    draw: ImageDraw.ImageDraw, where: tuple[float, ...], text: str, colour: str, size: int = 12
) -> None:
    x, y = max(where[0], 0) + 1, max(where[1], 0)
    draw.text((x, y), text, fill=colour, font=_font(size), stroke_width=2, stroke_fill="black")


def _font(size: int) -> ImageFont.ImageFont:
    return ImageFont.load_default(size)


def as_rgb(image: Tensor, channel_order: str) -> np.ndarray:
    """(3, H, W) as the data loader gives it, in the order of ``INPUT.FORMAT``."""
    array = image.to(torch.uint8).permute(1, 2, 0).numpy()
    return np.ascontiguousarray(array[:, :, ::-1] if channel_order == "BGR" else array)
