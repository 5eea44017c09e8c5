"""Chooses the evaluator of a dataset."""

import os

from clsloc.errors import UserError
from clsloc.evaluation.coco import REPORTED, BoxEvaluator
from clsloc.evaluation.voc import OfficialVOCEvaluator
from clsloc.evaluation.wider_face import WIDERFaceEvaluator
from clsloc.evaluation.wider_face_truth import SUBSETS
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

METRICS_OF_TASKS = {"bbox": REPORTED, "voc": ("AP", "AP50", "AP75", "AP70"), "face": SUBSETS}
"""The metrics of each task that an evaluator below reports, besides those of single classes."""


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """The evaluator for the dataset's ``evaluator_type``.

    Args:
        cfg: names the output folder; ``CLSLOC.TEST`` is read.
        dataset_name: a registered dataset. ``coco`` data, which includes most that the core
            registers, is scored by :class:`BoxEvaluator`; the official VOC sets (``pascal_voc``)
            by the official measure as well, under the task ``voc``; WIDER FACE (``wider_face``)
            by its own alone, under the task ``face``.
        output_folder: where the predictions are written; ``inference`` in OUTPUT_DIR if None,
            with a folder for each dataset if there are several.

    Raises:
        UserError: the dataset has another evaluator type.
    """
    if output_folder is None:
        several = len(cfg.DATASETS.TEST) > 1
        output_folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name if several else "")
    per_class = cfg.CLSLOC.TEST.PER_CLASS
    match MetadataCatalog.get(dataset_name).get("evaluator_type"):
        case "coco":
            return BoxEvaluator(dataset_name, output_folder, per_class=per_class)
        case "pascal_voc":
            boxes = BoxEvaluator(dataset_name, output_folder, per_class=per_class)
            official = OfficialVOCEvaluator(dataset_name, per_class=per_class)
            return DatasetEvaluators([boxes, official])
        case "wider_face":
            return WIDERFaceEvaluator(dataset_name, output_folder)
        case other:
            raise UserError(
                f"The dataset {dataset_name!r} has evaluator_type {other!r}, for which there is no "
                "evaluator of boxes; register it with evaluator_type 'coco'."
            )
