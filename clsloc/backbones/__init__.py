"""Backbones that Detectron2 lacks, or for which it needs its compiled part."""

from clsloc.backbones.deform_resnet import build_deform_resnet_backbone, make_deformable

__all__ = ["build_deform_resnet_backbone", "make_deformable"]
