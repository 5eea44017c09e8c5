"""Drawing detections on the frames of a video, with colours that follow the objects."""

from dataclasses import dataclass

import numpy as np
import torch

from detectron2._left_out import left_out_error
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.colormap import colormap, random_color, random_colors
from detectron2.utils.visualizer import ColorMode, VisImage, Visualizer, _create_text_labels

_MIN_IOU = 0.6
_FRAMES_TO_LIVE = 8
"""For how many frames an object that is not detected keeps its colour."""


@dataclass
class _DetectedInstance:
    """A detection; ``bbox`` is XYXY, ``ttl`` the frames for which it is still remembered."""

    label: int
    bbox: np.ndarray
    color: np.ndarray | None
    ttl: int = _FRAMES_TO_LIVE


class VideoVisualizer:
    """Draws frame after frame of one video.

    A detection takes the colour of the detection of its class in the frames before that it
    overlaps most. If a tracker has numbered the objects (field ``ID``), a colour goes with each
    number; a field ``COLOR`` settles the colours.

    Args:
        metadata: of the dataset; ``thing_classes`` is used if it is set.
        instance_mode: IMAGE or IMAGE_BW.
    """

    def __init__(self, metadata: Metadata, instance_mode: ColorMode = ColorMode.IMAGE) -> None:
        assert instance_mode in (ColorMode.IMAGE, ColorMode.IMAGE_BW), (
            f"{instance_mode} is not available for videos; use IMAGE or IMAGE_BW."
        )
        self.metadata = metadata
        self._instance_mode = instance_mode
        self._old_instances: list[_DetectedInstance] = []
        self._id_colors: dict[int, np.ndarray] = {}
        self._free_colors = random_colors(len(colormap()), rgb=True, maximum=1)

    def draw_instance_predictions(self, frame: np.ndarray, predictions: Instances) -> VisImage:
        """Draw the detections of the next frame.

        Args:
            frame: (H, W, 3) RGB in [0, 255].
            predictions: on CPU, with ``pred_boxes`` and ``pred_classes``.
        """
        for field in ("pred_masks", "pred_masks_rle", "pred_keypoints"):
            if predictions.has(field):
                raise left_out_error(f"detectron2.utils.video_visualizer with {field}")
        visualizer = Visualizer(frame, self.metadata)
        if len(predictions) == 0:
            return visualizer.output
        classes = predictions.pred_classes.tolist()
        labels = _create_text_labels(
            classes,
            predictions.scores if predictions.has("scores") else None,
            self.metadata.get("thing_classes", None),
        )
        if self._instance_mode == ColorMode.IMAGE_BW:
            visualizer.output.reset_image(visualizer._create_grayscale_image())
        return visualizer.overlay_instances(
            boxes=predictions.pred_boxes,
            labels=labels,
            assigned_colors=self._colors(predictions, classes),
            alpha=0.5,
        )

    def _colors(self, predictions: Instances, classes: list[int]) -> list[np.ndarray]:
        if predictions.has("COLOR"):
            return list(predictions.COLOR)
        if predictions.has("ID"):
            return self._assign_colors_by_id(predictions)
        boxes = predictions.pred_boxes.tensor.numpy()
        return self._assign_colors(
            [_DetectedInstance(label, box, color=None) for label, box in zip(classes, boxes)]
        )

    def _assign_colors(self, instances: list[_DetectedInstance]) -> list[np.ndarray]:
        """Colours for the detections of a frame, which are then remembered."""
        unmatched = list(range(len(instances)))
        forgotten = []
        ious = self._overlaps(instances)
        for old_index, old in enumerate(self._old_instances):
            best = max(unmatched, key=lambda new: ious[old_index, new], default=None)
            if best is not None and ious[old_index, best] > _MIN_IOU:
                instances[best].color = old.color
                unmatched.remove(best)
            else:
                old.ttl -= 1
                forgotten.append(old)
        for index in unmatched:
            instances[index].color = random_color(rgb=True, maximum=1)
        self._old_instances = instances + [old for old in forgotten if old.ttl > 0]
        return [instance.color for instance in instances]

    def _overlaps(self, instances: list[_DetectedInstance]) -> np.ndarray:
        """(remembered, new) IoU; 0 between different classes."""
        if not self._old_instances:
            return np.zeros((0, len(instances)))
        old, new = (
            Boxes(torch.as_tensor(np.stack([instance.bbox for instance in group])))
            for group in (self._old_instances, instances)
        )
        same_class = np.equal.outer(
            [instance.label for instance in self._old_instances],
            [instance.label for instance in instances],
        )
        return pairwise_iou(old, new).numpy() * same_class

    def _assign_colors_by_id(self, instances: Instances) -> list[np.ndarray]:
        """A colour per object number; numbers that are gone give theirs back."""
        ids = [int(number) for number in instances.ID]
        for gone in set(self._id_colors) - set(ids):
            self._free_colors.append(self._id_colors.pop(gone))
        for number in ids:
            if number not in self._id_colors:
                color = self._free_colors.pop() if self._free_colors else None
                self._id_colors[number] = random_color(True, 1) if color is None else color
        return [self._id_colors[number] for number in ids]
