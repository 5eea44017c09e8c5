"""Drawing boxes with labels on images.

Colours are RGB triples in [0, 1], CSS names, hex codes, or one of the letters ``bgrcmykw``.
Drawing is done by Pillow: its built-in font is scalable, and it needs no display.
"""

import logging
from collections.abc import Callable, Sequence
from enum import Enum, unique
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image

from detectron2._left_out import left_out, left_out_error
from detectron2.data import Metadata, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils._pillow import (
    Color,
    fill_circle,
    outline_box,
    stroke_path,
    text_patch,
    text_patch_height,
    to_rgb,
)
from detectron2.utils.colormap import random_color
from detectron2.utils.logger import log_first_n

__all__ = ["ColorMode", "VisImage", "Visualizer"]

_PIXELS_PER_POINT = 100 / 72
_MIN_LETTER_HEIGHT = 8
_JITTER = 0.15
"""How far a colour channel may move in SEGMENTATION mode."""

GenericMask = left_out("detectron2.utils.visualizer.GenericMask")


def _left_out_method(name: str) -> Callable[..., NoReturn]:
    def method(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise _left_out(name)

    return method


def _left_out(what: str) -> NotImplementedError:
    return left_out_error(f"detectron2.utils.visualizer.Visualizer.{what}")


@unique
class ColorMode(Enum):
    """How colours are chosen."""

    IMAGE = 0
    """A random colour for every object."""
    SEGMENTATION = 1
    """Similar colours for objects of a class, around ``metadata.thing_colors``."""
    IMAGE_BW = 2
    """As IMAGE, on an image turned grey."""


def _create_text_labels(
    classes: Sequence[int] | None,
    scores: Sequence[float] | None,
    class_names: Sequence[str] | None,
    is_crowd: Sequence[bool] | None = None,
) -> list[str] | None:
    """Texts such as ``"cat 87%"``; ``None`` if there is neither class nor score.

    Args:
        classes: class indices.
        scores: in [0, 1].
        class_names: indexed by ``classes``; without names the indices are shown.
        is_crowd: marks boxes around groups.
    """
    labels = None
    if classes is not None:
        labels = [class_names[index] if class_names else str(index) for index in classes]
    if scores is not None:
        percents = [f"{score * 100:.0f}%" for score in scores]
        labels = percents if labels is None else [f"{a} {b}" for a, b in zip(labels, percents)]
    if labels is not None and is_crowd is not None:
        labels = [label + ("|crowd" if crowd else "") for label, crowd in zip(labels, is_crowd)]
    return labels


class VisImage:
    """The picture that is drawn on.

    Args:
        img: (H, W, 3) RGB in [0, 255].
        scale: the picture's size relative to ``img``.
    """

    def __init__(self, img: np.ndarray, scale: float = 1.0) -> None:
        self.scale = scale
        self.height, self.width = img.shape[:2]
        self.reset_image(img)

    def reset_image(self, img: np.ndarray) -> None:
        """Start again from ``img``, of the same size."""
        self.img = img
        picture = Image.fromarray(np.ascontiguousarray(img, dtype=np.uint8), "RGB")
        size = round(self.width * self.scale), round(self.height * self.scale)
        self.canvas = picture if size == picture.size else picture.resize(size, Image.BILINEAR)

    def save(self, filepath: str) -> None:
        """Write the picture; the file's ending gives the format."""
        self.canvas.save(filepath)

    def get_image(self) -> np.ndarray:
        """(scaled H, scaled W, 3) uint8 RGB."""
        return np.array(self.canvas)


class Visualizer:
    """Draws predictions and annotations.

    The methods named ``draw_*`` and ``overlay_*`` draw on ``output`` and return it, so that they
    can be called one after another. Lines and letters grow with the image and with ``scale``.

    Args:
        img_rgb: (H, W, 3) RGB in [0, 255].
        metadata: of the dataset; ``thing_classes`` and ``thing_colors`` are used if they are set.
        scale: size of the picture relative to the image.
        instance_mode: how colours are chosen.
        font_size_scale: makes letters and lines larger or smaller.
    """

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: Metadata | None = None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
        font_size_scale: float = 1.0,
    ) -> None:
        self.img = np.asarray(img_rgb).clip(0, 255).astype(np.uint8)
        self.metadata = MetadataCatalog.get("__nonexist__") if metadata is None else metadata
        self.output = VisImage(self.img, scale=scale)
        side = (self.output.height * self.output.width) ** 0.5
        self._default_font_size = max(side // 90, 10 // scale) * font_size_scale
        self._instance_mode = instance_mode

    def draw_instance_predictions(self, predictions: Instances, jittering: bool = True) -> VisImage:
        """Draw a model's output for the image.

        Args:
            predictions: on CPU; of ``pred_boxes``, ``scores`` and ``pred_classes``, what is
                there.
            jittering: in SEGMENTATION mode, vary the class's colour from object to object.
        """
        for field in ("pred_masks", "pred_masks_rle", "pred_keypoints"):
            if predictions.has(field):
                raise _left_out(f"draw_instance_predictions with {field}")
        boxes = predictions.pred_boxes if predictions.has("pred_boxes") else None
        classes = predictions.pred_classes.tolist() if predictions.has("pred_classes") else None
        scores = predictions.scores if predictions.has("scores") else None
        labels = _create_text_labels(classes, scores, self.metadata.get("thing_classes", None))
        colors, alpha = self._class_colors(classes, jittering), 0.5
        if colors is not None:
            alpha = 0.8
        if self._instance_mode == ColorMode.IMAGE_BW:
            self.output.reset_image(self._create_grayscale_image())
            alpha = 0.3
        return self.overlay_instances(
            boxes=boxes, labels=labels, assigned_colors=colors, alpha=alpha
        )

    def draw_dataset_dict(self, dic: dict) -> VisImage:
        """Draw the annotations of an image.

        Args:
            dic: in the package's standard dataset format; masks and keypoints in it are not
                drawn.
        """
        annotations = dic.get("annotations")
        if not annotations:
            return self.output
        if any("segmentation" in a or "keypoints" in a for a in annotations):
            log_first_n(
                logging.WARNING,
                "Only the boxes of the annotations are drawn: "
                + str(left_out_error("drawing their masks and keypoints")),
                name=__name__,
            )
        boxes = np.array(
            [
                BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS)
                for a in annotations
            ]
        )
        classes = [annotation["category_id"] for annotation in annotations]
        labels = _create_text_labels(
            classes,
            scores=None,
            class_names=self.metadata.get("thing_classes", None),
            is_crowd=[annotation.get("iscrowd", 0) for annotation in annotations],
        )
        colors = self._class_colors(classes, jittering=True)
        return self.overlay_instances(labels=labels, boxes=boxes, assigned_colors=colors)

    def overlay_instances(
        self,
        *,
        boxes: Boxes | torch.Tensor | np.ndarray | None = None,
        labels: Sequence[str] | None = None,
        masks: Any = None,
        keypoints: Any = None,
        assigned_colors: Sequence[Color] | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw boxes with their labels; the largest first, so that they hide no other.

        Args:
            boxes: (N, 4) XYXY in the image's coordinates.
            labels: N texts.
            masks, keypoints: left out.
            assigned_colors: N colours; random ones by default.
            alpha: opacity of the lines.
        """
        if masks is not None or keypoints is not None:
            raise _left_out("overlay_instances with masks or keypoints")
        if boxes is None or len(boxes) == 0:
            return self.output
        boxes = self._convert_boxes(boxes)
        for name, values in (("labels", labels), ("assigned_colors", assigned_colors)):
            assert values is None or len(values) == len(boxes), (
                f"There are {len(values)} {name} for {len(boxes)} boxes."
            )
        if assigned_colors is None:
            assigned_colors = [random_color(rgb=True, maximum=1) for _ in boxes]
        order = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable")
        for index in order:
            self.draw_box(boxes[index], alpha=alpha, edge_color=assigned_colors[index])
        # Texts after all boxes: no line crosses them.
        if labels is not None:
            for index in order:
                self._draw_label(boxes[index], labels[index], assigned_colors[index])
        return self.output

    def _draw_label(self, box: np.ndarray, text: str, color: Color) -> None:
        """Put the text on top of the box, or inside it where the image ends."""
        if not text:
            return
        # Labels of boxes lower than a tenth of the image have smaller letters.
        side = (self.output.height * self.output.width) ** 0.5
        font_size = self._default_font_size * np.clip((box[3] - box[1]) / side * 10, 0.7, 1.0)
        height = text_patch_height(self._letter_height(font_size)) / self.output.scale
        top = box[1] - height if box[1] >= height else box[1]
        # Halfway to white: letters in a deep blue could not be read.
        self.draw_text(
            text,
            (box[0], top),
            font_size=font_size,
            color=(to_rgb(color) + 1) / 2,
            horizontal_alignment="left",
        )

    def draw_text(
        self,
        text: str,
        position: Sequence[float],
        *,
        font_size: float | None = None,
        color: Color = "g",
        horizontal_alignment: str = "center",
        rotation: float = 0,
    ) -> VisImage:
        """Draw a text on a dark ground.

        Args:
            text: the text.
            position: x and y, in the image's coordinates, of the text's upper edge.
            font_size: in points; grows with the image by default.
            color: of the letters; made light enough to be read.
            horizontal_alignment: where ``position`` is: ``"center"``, ``"left"`` or ``"right"``.
            rotation: in degrees, counter-clockwise.
        """
        shifts = {"left": 0.0, "center": 0.5, "right": 1.0}
        if horizontal_alignment not in shifts:
            raise ValueError(
                f"horizontal_alignment has to be one of {list(shifts)}, "
                f"not {horizontal_alignment!r}."
            )
        rgb = np.maximum(to_rgb(color), 0.2)
        rgb[rgb.argmax()] = max(0.8, rgb.max())
        patch = text_patch(text, self._letter_height(font_size), rgb)
        if rotation:
            patch = patch.rotate(rotation, Image.BICUBIC, expand=True)
        x, y = (float(value) * self.output.scale for value in position)
        x -= shifts[horizontal_alignment] * patch.width
        # Whatever of a text lies outside cannot be read: keep it within the picture.
        canvas = self.output.canvas
        corner = (
            round(np.clip(x, 0, max(canvas.width - patch.width, 0))),
            round(np.clip(y, 0, max(canvas.height - patch.height, 0))),
        )
        canvas.paste(patch, corner, patch)
        return self.output

    def _letter_height(self, font_size: float | None) -> int:
        """Points to pixels of the picture."""
        points = font_size or self._default_font_size
        return max(round(points * self.output.scale * _PIXELS_PER_POINT), _MIN_LETTER_HEIGHT)

    def draw_box(
        self,
        box_coord: Sequence[float],
        alpha: float = 0.5,
        edge_color: Color = "g",
        line_style: str = "-",
    ) -> VisImage:
        """Draw the outline of a box.

        Args:
            box_coord: x0, y0, x1, y1 in the image's coordinates.
            alpha: opacity.
            edge_color: its colour.
            line_style: ``"-"``, ``"--"``, ``":"`` or ``"-."``.
        """
        box = np.array([float(value) for value in box_coord]) * self.output.scale
        width = self._line_width(self._default_font_size / 5)
        outline_box(self.output.canvas, box, to_rgb(edge_color), alpha, width, line_style)
        return self.output

    def draw_line(
        self,
        x_data: Sequence[float],
        y_data: Sequence[float],
        color: Color,
        linestyle: str = "-",
        linewidth: float | None = None,
    ) -> VisImage:
        """Draw a line through points in the image's coordinates.

        Args:
            x_data, y_data: the points' coordinates.
            color: its colour.
            linestyle: as in :meth:`draw_box`.
            linewidth: in points; grows with the image by default.
        """
        if linewidth is None:
            linewidth = self._default_font_size / 5
        points = np.stack([np.asarray(x_data), np.asarray(y_data)], axis=1) * self.output.scale
        width = self._line_width(linewidth)
        stroke_path(self.output.canvas, points, to_rgb(color), 1.0, width, linestyle)
        return self.output

    def draw_circle(
        self, circle_coord: Sequence[float], color: Color, radius: float = 3
    ) -> VisImage:
        """Draw a filled circle.

        Args:
            circle_coord: x and y of its centre in the image's coordinates.
            color: its colour.
            radius: in the image's pixels.
        """
        centre = np.array([float(value) for value in circle_coord]) * self.output.scale
        fill_circle(self.output.canvas, centre, radius * self.output.scale, to_rgb(color))
        return self.output

    def _line_width(self, points: float) -> int:
        return max(round(points * self.output.scale * _PIXELS_PER_POINT), 1)

    def _class_colors(
        self, classes: Sequence[int] | None, jittering: bool
    ) -> list[np.ndarray] | None:
        """In SEGMENTATION mode the classes' own colours, if they have any; else ``None``."""
        known = self.metadata.get("thing_colors", None)
        if self._instance_mode != ColorMode.SEGMENTATION or not known or classes is None:
            return None
        colors = [np.asarray(known[index]) / 255 for index in classes]
        return [self._jitter(color) for color in colors] if jittering else colors

    def _jitter(self, color: np.ndarray) -> np.ndarray:
        """A colour near the given one."""
        return np.clip(color + np.random.uniform(-_JITTER, _JITTER, size=3), 0, 1)

    def _create_grayscale_image(self) -> np.ndarray:
        """The image without colours, still (H, W, 3)."""
        gray = self.img.astype(np.float32).mean(axis=2, keepdims=True)
        return np.repeat(gray.astype(np.uint8), 3, axis=2)

    def _convert_boxes(self, boxes: Boxes | torch.Tensor | np.ndarray) -> np.ndarray:
        """(N, 4) array on CPU."""
        if isinstance(boxes, Boxes):
            boxes = boxes.tensor
        if torch.is_tensor(boxes):
            boxes = boxes.detach().cpu().numpy()
        boxes = np.asarray(boxes, dtype=np.float64)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise _left_out(f"drawing boxes of shape {boxes.shape} (rotated boxes)")
        return boxes

    def get_output(self) -> VisImage:
        """The picture with everything drawn so far."""
        return self.output

    draw_sem_seg = _left_out_method("draw_sem_seg")
    draw_panoptic_seg = _left_out_method("draw_panoptic_seg")
    draw_panoptic_seg_predictions = _left_out_method("draw_panoptic_seg_predictions")
    overlay_rotated_instances = _left_out_method("overlay_rotated_instances")
    draw_rotated_box_with_label = _left_out_method("draw_rotated_box_with_label")
    draw_and_connect_keypoints = _left_out_method("draw_and_connect_keypoints")
    draw_binary_mask = _left_out_method("draw_binary_mask")
    draw_soft_mask = _left_out_method("draw_soft_mask")
    draw_polygon = _left_out_method("draw_polygon")
