"""Networks that turn images into feature maps."""

from detectron2._left_out import left_out
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.modeling.backbone.build import BACKBONE_REGISTRY, build_backbone
from detectron2.modeling.backbone.fpn import FPN
from detectron2.modeling.backbone.resnet import (
    BasicStem,
    BottleneckBlock,
    ResNet,
    ResNetBlockBase,
    build_resnet_backbone,
    make_stage,
)

MViT = left_out("detectron2.modeling.backbone.MViT")
RegNet = left_out("detectron2.modeling.backbone.RegNet")
SimpleFeaturePyramid = left_out("detectron2.modeling.backbone.SimpleFeaturePyramid")
SwinTransformer = left_out("detectron2.modeling.backbone.SwinTransformer")
ViT = left_out("detectron2.modeling.backbone.ViT")
get_vit_lr_decay_rate = left_out("detectron2.modeling.backbone.get_vit_lr_decay_rate")

__all__ = [
    "BACKBONE_REGISTRY",
    "FPN",
    "Backbone",
    "BasicStem",
    "BottleneckBlock",
    "MViT",
    "RegNet",
    "ResNet",
    "ResNetBlockBase",
    "SimpleFeaturePyramid",
    "SwinTransformer",
    "ViT",
    "build_backbone",
    "build_resnet_backbone",
    "get_vit_lr_decay_rate",
    "make_stage",
]
