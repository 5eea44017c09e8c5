"""Average precision at many IoU thresholds."""

import contextlib
import io
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from clsloc.evaluation.reasons import explain
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator

logger = logging.getLogger(__name__)

METRICS = ("AP", "AP50", "AP60", "AP70", "AP75", "AP80", "AP90", "APs", "APm", "APl")
"""What tables show."""
AP_BY_IOU = {percent / 100: f"AP{percent}" for percent in range(50, 100, 5)}
"""The metric at each of COCO's thresholds, whose mean is AP."""
REPORTED = tuple(dict.fromkeys([*METRICS, *AP_BY_IOU.values()]))


class BoxEvaluator(COCOEvaluator):
    """Detectron2's COCO evaluator for boxes with more thresholds.

    Its task ``bbox`` has the metrics of ``REPORTED`` in this order, in percent, NaN where there is
    nothing to measure, and on request ``AP-<class>`` for every class. Any dataset of Detectron2
    can be evaluated: without a JSON file of its own it is converted, anew each time.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        per_class: bool = False,
        distributed: bool = True,
    ) -> None:
        """
        Args:
            dataset_name: a registered dataset.
            output_dir: where ``coco_instances_results.json`` is written, with the dataset's own
                category ids; needed for a dataset without a JSON file.
            per_class: report every class, too.
            distributed: gather the predictions of all processes.
        """
        # A converted file may stem from an earlier state of the dataset: never reuse one, and do
        # not leave it in the metadata, where it would pass for the dataset's own file.
        metadata = MetadataCatalog.get(dataset_name)
        converts = not hasattr(metadata, "json_file")
        super().__init__(dataset_name, ("bbox",), distributed, output_dir, allow_cached_coco=False)
        if converts:
            del metadata.json_file
        self._per_class = per_class
        self._complete_annotations()
        self._number_annotations()
        self._warn_of_empty_boxes()

    def _complete_annotations(self) -> None:
        """Give what pycocotools reads and no training needs the value it has for plain boxes."""
        incomplete = 0
        for annotation in self._coco_api.anns.values():
            if annotation.get("area") is None or annotation.get("iscrowd") is None:
                *_, width, height = annotation["bbox"]
                given = {key: value for key, value in annotation.items() if value is not None}
                annotation.update({"area": width * height, "iscrowd": 0} | given)
                incomplete += 1
        if incomplete:
            logger.warning(
                "%s: %d objects have no area or no iscrowd; a missing area is taken as width times "
                "height, a missing iscrowd as 0.",
                self._metadata.name,
                incomplete,
            )

    def _number_annotations(self) -> None:
        """pycocotools takes the id 0 for no match, and a text for a number."""
        annotations = self._coco_api.dataset.get("annotations", [])
        if all(isinstance(item["id"], int) and item["id"] > 0 for item in annotations):
            return
        for number, item in enumerate(annotations, start=1):
            item["id"] = number
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api.createIndex()

    def _warn_of_empty_boxes(self) -> None:
        boxes = [annotation["bbox"] for annotation in self._coco_api.anns.values()]
        count = sum(width <= 0 or height <= 0 for *_, width, height in boxes)
        if count:
            logger.warning(
                "%s: %d of %d objects have a box without area, which nothing can match, so that AP "
                "comes out too low; tools/check_dataset.py drops them with --fix.",
                self._metadata.name,
                count,
                len(boxes),
            )

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Adds the thresholds that COCO's summary leaves out, and says why a value is missing."""
        classes = class_names if self._per_class else None
        results = super()._derive_coco_results(coco_eval, iou_type, classes)
        for threshold, metric in AP_BY_IOU.items():
            if metric not in results:
                results[metric] = ap_at(coco_eval, threshold) if coco_eval else float("nan")
        for sentence in explain(results, coco_eval):
            logger.warning("%s: %s", self._metadata.name, sentence)
        return {metric: results.pop(metric) for metric in REPORTED} | results


def ap_at(coco_eval: Any, iou: float) -> float:
    """The AP of all classes and object sizes at one IoU threshold.

    Args:
        coco_eval: a ``COCOeval`` after ``accumulate``.
        iou: one of its thresholds, up to rounding: COCO's 0.6 and 0.7 are sums of steps.

    Returns:
        Percent; NaN if no class has an object.
    """
    (index,) = np.flatnonzero(np.isclose(coco_eval.params.iouThrs, iou))
    # Axes: threshold, recall, class, area range (all first), detections per image (most last).
    precision = coco_eval.eval["precision"][index, :, :, 0, -1]
    measured = precision[precision > -1]
    return float(100 * measured.mean()) if measured.size else float("nan")
