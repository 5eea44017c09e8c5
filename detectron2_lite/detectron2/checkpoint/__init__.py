"""Saving and loading of models, in Detectron2's own formats and in those of its predecessors."""

from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer

from detectron2.checkpoint import catalog as _catalog  # noqa: F401  (registers catalog://)
from detectron2.checkpoint.detection_checkpoint import DetectionCheckpointer

__all__ = ["Checkpointer", "DetectionCheckpointer", "PeriodicCheckpointer"]
