"""Evaluation on COCO and VOC data, through Detectron2's evaluators."""

from clsloc.evaluation.build import build_evaluator
from clsloc.evaluation.coco import BoxEvaluator

__all__ = ["BoxEvaluator", "build_evaluator"]
