"""DDOD: labels, features and supervision of the two tasks of a dense detector apart."""

from ddod.backbone import build_ddod_resnet_fpn_backbone
from ddod.config import add_ddod_config
from ddod.head import DDODHead
from ddod.meta_arch import DDOD
from ddod.reweight import PyramidReweighter, level_weights
from ddod.tta import DDODWithTTA

__all__ = [
    "DDOD",
    "DDODHead",
    "DDODWithTTA",
    "PyramidReweighter",
    "add_ddod_config",
    "build_ddod_resnet_fpn_backbone",
    "level_weights",
]
