"""Assigners of dense detectors: which anchor learns which object, behind one interface."""

from clsloc.assigners.atss import ATSSAssigner
from clsloc.assigners.base import Anchors, Assignment, DenseAssigner, Predictions
from clsloc.assigners.cost import CostAssigner, matching_quality
from clsloc.assigners.crowd import anchors_in_crowds
from clsloc.assigners.max_iou import MaxIoUAssigner
from clsloc.assigners.padding import valid_anchors

__all__ = [
    "ATSSAssigner",
    "Anchors",
    "Assignment",
    "CostAssigner",
    "DenseAssigner",
    "MaxIoUAssigner",
    "Predictions",
    "anchors_in_crowds",
    "matching_quality",
    "valid_anchors",
]
