"""Evaluators, and the loop that runs a model over a dataset for them."""

from detectron2._left_out import left_out
from detectron2.evaluation.coco_evaluation import COCOEvaluator
from detectron2.evaluation.evaluator import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_context,
    inference_on_dataset,
)
from detectron2.evaluation.pascal_voc_evaluation import PascalVOCDetectionEvaluator
from detectron2.evaluation.testing import print_csv_format, verify_results

CityscapesInstanceEvaluator = left_out("detectron2.evaluation.CityscapesInstanceEvaluator")
CityscapesSemSegEvaluator = left_out("detectron2.evaluation.CityscapesSemSegEvaluator")
COCOPanopticEvaluator = left_out("detectron2.evaluation.COCOPanopticEvaluator")
LVISEvaluator = left_out("detectron2.evaluation.LVISEvaluator")
RotatedCOCOEvaluator = left_out("detectron2.evaluation.RotatedCOCOEvaluator")
SemSegEvaluator = left_out("detectron2.evaluation.SemSegEvaluator")

__all__ = [
    "COCOEvaluator",
    "COCOPanopticEvaluator",
    "CityscapesInstanceEvaluator",
    "CityscapesSemSegEvaluator",
    "DatasetEvaluator",
    "DatasetEvaluators",
    "LVISEvaluator",
    "PascalVOCDetectionEvaluator",
    "RotatedCOCOEvaluator",
    "SemSegEvaluator",
    "inference_context",
    "inference_on_dataset",
    "print_csv_format",
    "verify_results",
]
