"""Evaluation on COCO, VOC and WIDER FACE data, through Detectron2's evaluator hooks."""

from clsloc.evaluation.build import METRICS_OF_TASKS, build_evaluator
from clsloc.evaluation.coco import BoxEvaluator
from clsloc.evaluation.wider_face import WIDERFaceEvaluator

__all__ = ["METRICS_OF_TASKS", "BoxEvaluator", "WIDERFaceEvaluator", "build_evaluator"]
