"""Samplers that make training boxes of their own."""

from clsloc.samplers.iou_uniform import IoUUniformSampler, UniformSamples
from clsloc.samplers.jitter import jitter_boxes

__all__ = ["IoUUniformSampler", "UniformSamples", "jitter_boxes"]
