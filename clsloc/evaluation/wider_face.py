"""Average precision on WIDER FACE by its official protocol ("WIDER FACE: A Face Detection
Benchmark", CVPR 2016), for the subsets easy, medium and hard.

Shapes: N detections and M faces of one image. Detections are (N, 5) arrays of left, top, width,
height and score.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from clsloc.boxes import intersection_and_union
from clsloc.errors import UserError
from clsloc.evaluation.wider_face_truth import SUBSETS, FaceTruth, load_truth
from clsloc.files import write_error
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

__all__ = ["WIDERFaceEvaluator", "face_average_precision"]

logger = logging.getLogger(__name__)

LEAST_IOU = 0.5
# Scores at which precision and recall are measured: 0.999, 0.998, ..., 0.
THRESHOLDS = 1 - np.arange(1, 1001) / 1000
# Bounds the memory of an image with thousands of detections and faces.
PAIRS_AT_ONCE = 1_000_000


class WIDERFaceEvaluator(DatasetEvaluator):
    """Reports the task ``face``: ``easy``, ``medium`` and ``hard`` in percent, NaN where no face
    counts, over the images that the dataset has. The detections are written as the benchmark
    wants them submitted; images without ground truth, those of the test set, are written alone."""

    def __init__(
        self, dataset_name: str, output_dir: str | None = None, *, distributed: bool = True
    ) -> None:
        """
        Args:
            dataset_name: registered by :func:`clsloc.data.registration.register_wider_face`.
            output_dir: where ``wider_face/<event>/<image>.txt`` are written; None: nowhere.
            distributed: gather the detections of all processes.

        Raises:
            UserError: the ground truth cannot be read.
        """
        self._name = dataset_name
        self._output_dir = output_dir
        self._distributed = distributed
        self._found: dict[str, np.ndarray] = {}
        folder = MetadataCatalog.get(dataset_name).ground_truth
        evaluates = folder is not None and (not distributed or comm.is_main_process())
        # Read now: what is wrong with it should not be known only after hours of inference.
        self._truth = load_truth(folder) if evaluates else None

    def reset(self) -> None:
        self._found = {}

    def process(
        self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]
    ) -> None:
        for image, output in zip(inputs, outputs):
            found = output["instances"]
            boxes = found.pred_boxes.tensor
            sides = boxes[:, 2:] - boxes[:, :2]
            rows = torch.cat([boxes[:, :2], sides, found.scores[:, None]], dim=1)
            self._found[image["image_id"]] = rows.float().cpu().numpy()

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        found = self._found
        if self._distributed:
            comm.synchronize()
            parts = comm.gather(found, dst=0)
            if not comm.is_main_process():
                return None
            found = {image: rows for part in parts for image, rows in part.items()}
        if self._output_dir:
            folder = os.path.join(self._output_dir, "wider_face")
            write_submission(folder, found)
            logger.info("%s: detections of %d images are in %s.", self._name, len(found), folder)
        if self._truth is None:
            logger.info("%s has no ground truth; the benchmark's authors score it.", self._name)
            return {}
        truth = self._truth_of(found)
        aps = face_average_precision(truth, found)
        self._explain(truth, found, aps)
        return {"face": {subset: 100 * ap for subset, ap in aps.items()}}

    def _truth_of(self, images: Iterable[str]) -> dict[str, FaceTruth]:
        try:
            return {image: self._truth[image] for image in images}
        except KeyError as error:
            raise UserError(
                f"The image {error.args[0]!r} of {self._name!r} is not in the ground truth of "
                "WIDER FACE, which has the official validation images alone."
            ) from error

    def _explain(
        self,
        truth: Mapping[str, FaceTruth],
        found: Mapping[str, np.ndarray],
        aps: Mapping[str, float],
    ) -> None:
        if len(truth) < len(self._truth):
            logger.warning(
                "%s: %d of the %d images of the benchmark were evaluated; the figures are not "
                "those of the benchmark.",
                self._name,
                len(truth),
                len(self._truth),
            )
        for subset, ap in aps.items():
            if np.isnan(ap):
                logger.warning("%s: %s has no value: no face counts.", self._name, subset)
        if not any(map(len, found.values())):
            logger.warning("%s: AP is 0: the model predicts nothing.", self._name)


def write_submission(folder: str, found: Mapping[str, np.ndarray]) -> None:
    """Write ``folder/<event>/<image>.txt`` for every image: its name, the number of detections,
    and for each, best first, left, top, width, height and score.

    Args:
        found: (N, 5) detections by image, named ``<event>/<image>``.

    Raises:
        UserError: the folder cannot be written.
    """
    for image, rows in found.items():
        path = os.path.join(folder, f"{image}.txt")
        best_first = rows[_best_first(rows)].tolist()
        lines = [os.path.basename(image), str(len(rows))]
        lines += ["{:.2f} {:.2f} {:.2f} {:.2f} {:.8g}".format(*row) for row in best_first]
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
        except OSError as error:
            raise write_error(path, error) from error


def face_average_precision(
    truth: Mapping[str, FaceTruth], found: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """
    AP of each subset over all images together.

    - Scores are stretched to the range from 0 to 1 of all detections of all images; if all are
      equal, they are 1.
    - The face of a detection is the one that it overlaps most, of all faces of the image, if by
      an IoU of half or more. Pixels are counted as in the official code, where a box from 3 to 5
      is 3 pixels wide.
    - A detection of a face that does not count is neither right nor wrong. Of the others, the
      best one of each face is right; further ones of it, and those without a face, are wrong.
    - An image without any annotated face is left out, with its detections.
    - AP is the area below the precision at 1,000 thresholds of the score, the largest at the same
      or a larger recall.

    Args:
        truth: the images to evaluate.
        found: (N, 5) by image; an image without detections may be absent.

    Returns:
        In [0, 1], NaN for a subset without faces.
    """
    low, high = _score_range(found.values())
    # Detections that are right or wrong, and right ones, by the first threshold they reach.
    shape = (len(SUBSETS), len(THRESHOLDS))
    judged, right = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    faces = [sum(int(image.counts[s].sum()) for image in truth.values()) for s in SUBSETS]
    for name, image in truth.items():
        rows = found.get(name)
        if rows is None or not len(rows) or not len(image.boxes):
            continue
        rows = rows[_best_first(rows)].astype(np.float64)
        spread = high - low
        scores = (rows[:, 4] - low) / spread if spread > 0 else np.ones(len(rows))
        reached = _first_threshold(scores)
        face, iou = _nearest_faces(rows[:, :4], image.boxes)
        for number, subset in enumerate(SUBSETS):
            is_judged, is_right = _judge(face, iou >= LEAST_IOU, image.counts[subset])
            judged[number] += np.bincount(reached[is_judged], minlength=len(THRESHOLDS))
            right[number] += np.bincount(reached[is_right], minlength=len(THRESHOLDS))
    return {
        subset: _area(judged[number].cumsum(), right[number].cumsum(), faces[number])
        for number, subset in enumerate(SUBSETS)
    }


def _best_first(rows: np.ndarray) -> np.ndarray:
    return np.argsort(-rows[:, 4], kind="stable")  # equal scores in the order of the detector


def _score_range(found: Iterable[np.ndarray]) -> tuple[float, float]:
    filled = [rows[:, 4] for rows in found if len(rows)]
    if not filled:
        return 0.0, 1.0
    return float(min(map(np.min, filled))), float(max(map(np.max, filled)))


def _first_threshold(scores: np.ndarray) -> np.ndarray:
    """(N,) index of the largest of ``THRESHOLDS`` that each score in [0, 1] reaches."""
    return len(THRESHOLDS) - np.searchsorted(THRESHOLDS[::-1], scores, side="right")


def _nearest_faces(boxes: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The face that each box overlaps most, the first of equals.

    Args:
        boxes: (N, 4) and
        faces: (M, 4), M > 0: left, top, width, height.

    Returns:
        (N,) indices and (N,) IoUs.
    """
    given, wanted = (torch.as_tensor(_with_last_pixel(side)) for side in (boxes, faces))
    indices, ious = [], []
    for part in given.split(max(PAIRS_AT_ONCE // len(faces), 1)):
        intersection, union = intersection_and_union(part[:, None], wanted)
        iou = torch.where(intersection > 0, intersection / union, 0.0).numpy()
        index = iou.argmax(axis=1)
        indices.append(index)
        ious.append(iou[np.arange(len(iou)), index])
    return np.concatenate(indices), np.concatenate(ious)


def _with_last_pixel(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:] + 1], axis=1)


def _judge(
    face: np.ndarray, found: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections of an image, best first, are right or wrong, and which are right.

    Args:
        face: (N,) index of the face of each.
        found: (N,) bool: whether the overlap is enough.
        counts: (M,) bool.

    Returns:
        Two (N,) bool.
    """
    is_judged = ~(found & ~counts[face])
    of_a_face = np.flatnonzero(found & counts[face])
    _, first = np.unique(face[of_a_face], return_index=True)
    is_right = np.zeros(len(face), dtype=bool)
    is_right[of_a_face[first]] = True
    return is_judged, is_right


def _area(judged: np.ndarray, right: np.ndarray, faces: int) -> float:
    """AP from the detections at each threshold or above.

    Args:
        judged: (T,) int, rising, that are right or wrong.
        right: (T,) int, rising.
        faces: that count.
    """
    if not faces:
        return float("nan")
    precision = right / np.maximum(judged, 1)
    largest = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(right, prepend=0) * largest).sum() / faces)
