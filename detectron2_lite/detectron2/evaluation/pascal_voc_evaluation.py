"""Average precision as in the Pascal VOC challenges."""

import functools
import logging
import os
import tempfile
import xml.etree.ElementTree as ET
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from detectron2.data import MetadataCatalog
from detectron2.evaluation.evaluator import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager


class PascalVOCDetectionEvaluator(DatasetEvaluator):
    """Mean AP over the classes, at IoU 0.50, 0.75 and averaged over 0.50, 0.55, ..., 0.95.

    Scores are rounded to 3 decimals and boxes to 1, as in the result files of the challenges.
    All processes must call :meth:`evaluate`.
    """

    def __init__(self, dataset_name: str) -> None:
        """
        Args:
            dataset_name: a dataset registered by ``register_pascal_voc``.
        """
        meta = MetadataCatalog.get(dataset_name)
        annotation_dir = PathManager.get_local_path(os.path.join(meta.dirname, "Annotations/"))
        assert meta.year in (2007, 2012), (
            f"VOC's AP is defined for the years 2007 and 2012, '{dataset_name}' has {meta.year}."
        )
        self._dataset_name = dataset_name
        self._anno_file_template = os.path.join(annotation_dir, "{}.xml")
        self._image_set_path = os.path.join(meta.dirname, "ImageSets", "Main", meta.split + ".txt")
        self._class_names = meta.thing_classes
        self._is_2007 = meta.year == 2007
        self._cpu_device = torch.device("cpu")
        self._logger = logging.getLogger(__name__)

    def reset(self) -> None:
        self._predictions: dict[int, list[str]] = defaultdict(list)  # class: lines of a file

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        for sample, output in zip(inputs, outputs):
            instances = output["instances"].to(self._cpu_device)
            boxes = instances.pred_boxes.tensor.numpy()
            scores = instances.scores.tolist()
            classes = instances.pred_classes.tolist()
            for (x0, y0, x1, y1), score, category in zip(boxes, scores, classes):
                # Back to VOC's pixels, which count from 1.
                self._predictions[category].append(
                    f"{sample['image_id']} {score:.3f} {x0 + 1:.1f} {y0 + 1:.1f} {x1:.1f} {y1:.1f}"
                )

    def evaluate(self) -> dict | None:
        """
        Returns:
            "AP", "AP50" and "AP75" under "bbox", in the main process.
        """
        gathered = comm.gather(self._predictions, dst=0)
        if not comm.is_main_process():
            return None
        lines = defaultdict(list)
        for predictions in gathered:
            for category, of_process in predictions.items():
                lines[category].extend(of_process)
        self._logger.info(
            f"AP of {self._dataset_name} by the rules of {2007 if self._is_2007 else 2012}; "
            "the official program, in Matlab, may differ slightly."
        )
        thresholds = range(50, 100, 5)
        aps = {threshold: [] for threshold in thresholds}
        with tempfile.TemporaryDirectory(prefix="pascal_voc_eval_") as dirname:
            template = os.path.join(dirname, "{}.txt")
            for category, name in enumerate(self._class_names):
                with open(template.format(name), "w") as f:
                    f.write("\n".join(lines[category]))
                for threshold in thresholds:
                    _, _, ap = voc_eval(
                        template,
                        self._anno_file_template,
                        self._image_set_path,
                        name,
                        ovthresh=threshold / 100.0,
                        use_07_metric=self._is_2007,
                    )
                    aps[threshold].append(ap * 100)
        mean = {threshold: np.mean(of_classes) for threshold, of_classes in aps.items()}
        return OrderedDict(
            bbox={"AP": np.mean(list(mean.values())), "AP50": mean[50], "AP75": mean[75]}
        )


@functools.cache  # each file is read for every class and threshold
def parse_rec(filename: str) -> list[dict[str, Any]]:
    """The objects of an annotation file, corners as VOC has them (from 1, the last included)."""
    with PathManager.open(filename) as f:
        root = ET.parse(f).getroot()
    return [
        {
            "name": obj.find("name").text,
            "pose": obj.find("pose").text,
            "truncated": int(obj.find("truncated").text),
            "difficult": int(obj.find("difficult").text),
            "bbox": [int(obj.find(f"bndbox/{c}").text) for c in ("xmin", "ymin", "xmax", "ymax")],
        }
        for obj in root.findall("object")
    ]


def voc_ap(rec: np.ndarray, prec: np.ndarray, use_07_metric: bool = False) -> float:
    """Average precision of a curve.

    Args:
        rec, prec: recall and precision after each detection, best first.
        use_07_metric: the mean of the best precision at recall >= 0, 0.1, ..., 1 (VOC 2007) in
            place of the area under the curve.
    """
    if use_07_metric:
        levels = np.arange(0.0, 1.1, 0.1)
        return sum(prec[rec >= level].max(initial=0.0) for level in levels) / len(levels)
    # The envelope: each precision becomes the best at this or a higher recall.
    recall = np.concatenate(([0.0], rec, [1.0]))
    precision = np.concatenate(([0.0], prec, [0.0]))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return np.sum((recall[steps + 1] - recall[steps]) * precision[steps + 1])


def _iou_with_all(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of (4,) with (N, 4) in pixels that include both ends."""
    size = np.maximum(
        np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]) + 1.0, 0.0
    )
    intersection = size.prod(axis=1)
    area = (box[2:] - box[:2] + 1.0).prod()
    areas = (boxes[:, 2:] - boxes[:, :2] + 1.0).prod(axis=1)
    return intersection / (area + areas - intersection)


def voc_eval(
    detpath: str,
    annopath: str,
    imagesetfile: str,
    classname: str,
    ovthresh: float = 0.5,
    use_07_metric: bool = False,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Precision and recall of one class.

    A detection is right if its IoU with the object it overlaps most is over the threshold and no
    better detection took that object. Those on objects marked difficult count neither way.

    Args:
        detpath: ``detpath.format(classname)`` is a file with a line of image id, score and
            corners for each detection.
        annopath: ``annopath.format(image_id)`` is an annotation file.
        imagesetfile: a file with one image id a line.
        classname: the class.
        ovthresh: IoU threshold.
        use_07_metric: see :func:`voc_ap`.

    Returns:
        recall and precision after each detection, best first, and AP.
    """
    with PathManager.open(imagesetfile) as f:
        image_ids = [line.split()[0] for line in f if line.strip()]
    objects = {}
    for image_id in image_ids:
        of_class = [o for o in parse_rec(annopath.format(image_id)) if o["name"] == classname]
        objects[image_id] = (
            np.array([o["bbox"] for o in of_class], dtype=float).reshape(-1, 4),
            np.array([o["difficult"] for o in of_class], dtype=bool),
            np.zeros(len(of_class), dtype=bool),  # taken
        )
    num_objects = sum((~difficult).sum() for _, difficult, _ in objects.values())

    with open(detpath.format(classname)) as f:
        detections = [line.strip().split(" ") for line in f]
    scores = np.array([float(detection[1]) for detection in detections])
    corners = np.array([detection[2:] for detection in detections], dtype=float).reshape(-1, 4)
    right = np.zeros(len(detections))
    wrong = np.zeros(len(detections))
    for rank, i in enumerate(np.argsort(-scores)):
        boxes, difficult, taken = objects[detections[i][0]]
        ious = _iou_with_all(corners[i], boxes)
        best = ious.argmax() if len(ious) else None
        if best is None or ious[best] <= ovthresh:
            wrong[rank] = 1
        elif not difficult[best]:
            (wrong if taken[best] else right)[rank] = 1
            taken[best] = True

    num_right, num_wrong = np.cumsum(right), np.cumsum(wrong)
    recall = num_right / float(num_objects)
    precision = num_right / np.maximum(num_right + num_wrong, np.finfo(np.float64).eps)
    return recall, precision, voc_ap(recall, precision, use_07_metric)
