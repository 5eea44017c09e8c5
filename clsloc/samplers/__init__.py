"""Samplers that make training boxes of their own."""

from clsloc.samplers.iou_uniform import IoUUniformSampler, UniformSamples, rank_in_groups
from clsloc.samplers.jitter import jitter_boxes

__all__ = ["IoUUniformSampler", "UniformSamples", "jitter_boxes", "rank_in_groups"]
