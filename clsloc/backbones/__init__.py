"""Backbones that Detectron2 lacks, or for which it needs its compiled part."""

from clsloc.backbones.bottom_up_maps import BottomUpMaps
from clsloc.backbones.deform_resnet import build_deform_resnet_backbone, make_deformable
from clsloc.backbones.res2net import Res2Block, build_res2net_backbone

__all__ = [
    "BottomUpMaps",
    "Res2Block",
    "build_deform_resnet_backbone",
    "build_res2net_backbone",
    "make_deformable",
]
