"""COCO's average precision of detections and average recall of proposals."""

import contextlib
import copy
import io
import itertools
import json
import logging
import os
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from detectron2._left_out import left_out_error
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation._proposal_recall import _evaluate_box_proposals
from detectron2.evaluation.evaluator import DatasetEvaluator
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

_NO_PREDICTIONS = "The model made no predictions."


class COCOEvaluator(DatasetEvaluator):
    """AP of boxes, and AR of proposals where outputs have them, in 0-100 as COCO defines them.

    NaN stands for what cannot be computed, for example where there are no objects or no
    predictions at all. Datasets that are not in COCO's format are converted to it.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
    ) -> None:
        """
        Args:
            dataset_name: a registered dataset.
            tasks: ``("bbox",)`` or None, which means the same; masks and keypoints are not
                supported.
            distributed: gather the predictions of all processes in the main one; else each
                process evaluates its own.
            output_dir: folder for "instances_predictions.pth" (all predictions),
                "coco_instances_results.json" (detections with the dataset's own category ids) and
                "box_proposals.pkl". Needed if the dataset has to be converted.
            max_dets_per_image: use only this many best detections of an image (at least 10; 100
                by default).
            use_fast_impl: without effect; pycocotools computes everything.
            kpt_oks_sigmas: without effect.
            allow_cached_coco: use the result of an earlier conversion again.
        """
        self._logger = logging.getLogger(__name__)
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets_per_image = 100 if max_dets_per_image is None else max_dets_per_image
        if isinstance(tasks, CfgNode):
            self._logger.warning("COCOEvaluator takes tasks, not a config, which is ignored.")
            tasks = None
        for task in tasks or ():
            if task in ("segm", "keypoints"):
                raise left_out_error(f"detectron2.evaluation.COCOEvaluator for the task '{task}'")
            assert task == "bbox", f"COCOEvaluator knows the task 'bbox', got '{task}'."
        self._cpu_device = torch.device("cpu")

        self._metadata = MetadataCatalog.get(dataset_name)
        if not hasattr(self._metadata, "json_file"):
            self._convert_dataset(dataset_name, allow_cached_coco)
        json_file = PathManager.get_local_path(self._metadata.json_file)
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api = COCO(json_file)
        # The test sets of COCO come without annotations; only the files are written for them.
        self._do_evaluation = "annotations" in self._coco_api.dataset

    def _convert_dataset(self, dataset_name: str, allow_cached: bool) -> None:
        if self._output_dir is None:
            raise ValueError(
                f"'{dataset_name}' is not in COCO's format and has to be converted; "
                "give COCOEvaluator an output_dir for that."
            )
        cache_path = os.path.join(self._output_dir, f"{dataset_name}_coco_format.json")
        self._metadata.json_file = cache_path
        convert_to_coco_json(dataset_name, cache_path, allow_cached=allow_cached)

    def reset(self) -> None:
        self._predictions: list[dict] = []

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """
        Args:
            inputs: samples with "image_id".
            outputs: dicts with "instances" (boxes, scores and classes) or "proposals" (boxes and
                objectness), in pixels of the original images.
        """
        for sample, output in zip(inputs, outputs):
            prediction = {"image_id": sample["image_id"]}
            if "instances" in output:
                instances = output["instances"].to(self._cpu_device)
                prediction["instances"] = instances_to_coco_json(instances, sample["image_id"])
            if "proposals" in output:
                prediction["proposals"] = output["proposals"].to(self._cpu_device)
            if len(prediction) > 1:
                self._predictions.append(prediction)

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict:
        """
        Args:
            img_ids: images to evaluate; None for all of the dataset.

        Returns:
            metrics under "bbox" and, if there are proposals, "box_proposals"; an empty dict in
            processes other than the main one.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(itertools.chain.from_iterable(comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return {}
        if not predictions:
            self._logger.warning(_NO_PREDICTIONS)
            return {}
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            path = os.path.join(self._output_dir, "instances_predictions.pth")
            with PathManager.open(path, "wb") as f:
                torch.save(predictions, f)

        self._results: OrderedDict = OrderedDict()
        if "proposals" in predictions[0]:
            self._eval_box_proposals(predictions)
        if "instances" in predictions[0]:
            self._eval_predictions(predictions, img_ids)
        return copy.deepcopy(self._results)  # so that a user may change what it gets

    def _eval_predictions(
        self, predictions: list[dict], img_ids: Sequence[int] | None = None
    ) -> None:
        """Write the detections of all images and put their AP into the results."""
        detections = list(itertools.chain.from_iterable(p["instances"] for p in predictions))
        id_map = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if id_map is not None:
            detections = _with_dataset_ids(detections, id_map)
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            self._logger.info(f"Writing detections to {path}")
            with PathManager.open(path, "w") as f:
                json.dump(detections, f)
        if not self._do_evaluation:
            self._logger.info("The dataset has no annotations to evaluate the detections with.")
            return
        coco_eval = None
        if detections:
            coco_eval = _evaluate_predictions_on_coco(
                self._coco_api,
                detections,
                "bbox",
                img_ids=img_ids,
                max_dets_per_image=self._max_dets_per_image,
            )
        self._results["bbox"] = self._derive_coco_results(
            coco_eval, "bbox", class_names=self._metadata.get("thing_classes")
        )

    def _eval_box_proposals(self, predictions: list[dict]) -> None:
        """Write the proposals of all images and put their AR into the results."""
        if self._output_dir:
            proposals = [p["proposals"] for p in predictions]
            content = {
                "boxes": [p.proposal_boxes.tensor.numpy() for p in proposals],
                "objectness_logits": [p.objectness_logits.numpy() for p in proposals],
                "ids": [p["image_id"] for p in predictions],
                "bbox_mode": BoxMode.XYXY_ABS.value,
            }
            path = os.path.join(self._output_dir, "box_proposals.pkl")
            with PathManager.open(path, "wb") as f:
                pickle.dump(content, f)
        if not self._do_evaluation:
            self._logger.info("The dataset has no annotations to evaluate the proposals with.")
            return
        results = {}
        areas = {"all": "", "small": "s", "medium": "m", "large": "l"}
        for limit, (area, suffix) in itertools.product((100, 1000), areas.items()):
            stats = _evaluate_box_proposals(predictions, self._coco_api, area=area, limit=limit)
            results[f"AR{suffix}@{limit}"] = float(stats["ar"].item() * 100)
        self._logger.info("Recall of proposals:\n" + create_small_table(results))
        self._results["box_proposals"] = results

    def _derive_coco_results(
        self,
        coco_eval: COCOeval | None,
        iou_type: str,
        class_names: Sequence[str] | None = None,
    ) -> dict[str, float]:
        """The metrics of an evaluation.

        Args:
            coco_eval: after ``summarize()``; None if there are no predictions.
            iou_type: "bbox".
            class_names: to give also "AP-<class>" for each, if there are several.
        """
        metrics = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
        if coco_eval is None:
            self._logger.warning(_NO_PREDICTIONS)
            return {metric: float("nan") for metric in metrics}
        results = {
            metric: float(value * 100 if value >= 0 else "nan")
            for metric, value in zip(metrics, coco_eval.stats)
        }
        self._logger.info(f"Results for {iou_type}:\n" + create_small_table(results))
        if class_names is None or len(class_names) <= 1:
            return results

        precisions = coco_eval.eval["precision"]  # IoU, recall, class, area, number of detections
        assert len(class_names) == precisions.shape[2], (
            f"The metadata name {len(class_names)} classes, the annotations "
            f"{precisions.shape[2]}: {class_names}."
        )
        per_class = {}
        for i, name in enumerate(class_names):
            precision = precisions[:, :, i, 0, -1]
            precision = precision[precision > -1]
            per_class[name] = float(precision.mean() * 100) if precision.size else float("nan")
        self._logger.info(f"{iou_type} AP of each category:\n" + _table_of_classes(per_class))
        results.update({f"AP-{name}": ap for name, ap in per_class.items()})
        return results


def _with_dataset_ids(detections: list[dict], id_map: dict[int, int]) -> list[dict]:
    """Copies with the dataset's own category ids, which are the keys of ``id_map``."""
    dataset_ids = {contiguous: dataset_id for dataset_id, contiguous in id_map.items()}
    for detection in detections:
        assert detection["category_id"] in dataset_ids, (
            f"A detection has class {detection['category_id']}, but the dataset has "
            f"{len(id_map)} classes, 0 to {len(id_map) - 1}; check the model's number of classes."
        )
    return [{**d, "category_id": dataset_ids[d["category_id"]]} for d in detections]


def _table_of_classes(per_class: dict[str, float]) -> str:
    cells = list(per_class.items())
    columns = min(3, len(cells))
    rows = [sum(cells[i : i + columns], ()) for i in range(0, len(cells), columns)]
    headers = ["category", "AP"] * columns
    return tabulate(rows, headers=headers, tablefmt="pipe", floatfmt=".3f", numalign="left")


def instances_to_coco_json(instances: Instances, img_id: Any) -> list[dict]:
    """Detections of one image in COCO's result format, boxes as XYWH_ABS.

    Args:
        instances: with "pred_boxes", "scores" and "pred_classes", on the CPU.
        img_id: id of the image.
    """
    for field in ("pred_masks", "pred_masks_rle", "pred_keypoints"):
        if instances.has(field):
            raise left_out_error(f"detectron2.evaluation.instances_to_coco_json with {field}")
    boxes = BoxMode.convert(
        instances.pred_boxes.tensor.numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS
    ).tolist()
    return [
        {"image_id": img_id, "category_id": category, "bbox": box, "score": score}
        for box, score, category in zip(
            boxes, instances.scores.tolist(), instances.pred_classes.tolist()
        )
    ]


def _evaluate_predictions_on_coco(
    coco_gt: COCO,
    coco_results: list[dict],
    iou_type: str,
    img_ids: Sequence[int] | None = None,
    max_dets_per_image: int = 100,
) -> COCOeval:
    """Run COCO's evaluation on at least one detection; its table goes to the log."""
    table = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()):
        coco_dt = coco_gt.loadRes(coco_results)
        eval_class = COCOeval if max_dets_per_image == 100 else COCOevalMaxDets
        coco_eval = eval_class(coco_gt, coco_dt, iou_type)
        coco_eval.params.maxDets = [1, 10, max_dets_per_image]
        if img_ids is not None:
            coco_eval.params.imgIds = img_ids
        coco_eval.evaluate()
        coco_eval.accumulate()
    with contextlib.redirect_stdout(table):
        coco_eval.summarize()
    logging.getLogger(__name__).info(f"COCO's evaluation of {iou_type}:\n{table.getvalue()}")
    return coco_eval


class COCOevalMaxDets(COCOeval):
    """COCO's evaluation where the largest number of detections of an image is not 100."""

    def summarize(self) -> None:
        """Fill ``stats`` as the original does, with that number in the place of 100."""
        areas = ("all", "small", "medium", "large")
        precision = [self._mean_precision("all", iou) for iou in (None, 0.5, 0.75)]
        precision += [self._mean_precision(area) for area in areas[1:]]
        recall = [self._mean_recall("all", i) for i in range(len(self.params.maxDets))]
        recall += [self._mean_recall(area) for area in areas[1:]]
        self.stats = np.array(precision + recall)

    def _mean_precision(self, area: str, iou: float | None = None) -> float:
        of_ious = np.ones(len(self.params.iouThrs), dtype=bool)
        if iou is not None:
            of_ious = np.isclose(self.params.iouThrs, iou)
        area_index = self.params.areaRngLbl.index(area)
        return self._mean_of_valid(self.eval["precision"][of_ious, :, :, area_index, -1])

    def _mean_recall(self, area: str, max_dets_index: int = -1) -> float:
        area_index = self.params.areaRngLbl.index(area)
        return self._mean_of_valid(self.eval["recall"][:, :, area_index, max_dets_index])

    @staticmethod
    def _mean_of_valid(values: np.ndarray) -> float:
        values = values[values > -1]
        return float(values.mean()) if values.size else -1.0
