"""IoU-uniform R-CNN: localisation learns from boxes drawn evenly over IoU intervals."""

from iou_uniform.cascade import IoUUniformCascadeROIHeads
from iou_uniform.config import add_iou_uniform_config
from iou_uniform.output_layers import IoUUniformOutputLayers
from iou_uniform.plan import HeadPlan
from iou_uniform.roi_heads import IoUUniformROIHeads, RawOutputs

__all__ = [
    "HeadPlan",
    "IoUUniformCascadeROIHeads",
    "IoUUniformOutputLayers",
    "IoUUniformROIHeads",
    "RawOutputs",
    "add_iou_uniform_config",
]
