"""Pyramids with P6 and P7 on the backbones of the paper."""

import torch.nn.functional as F
from torch import Tensor

from clsloc.backbones import build_deform_resnet_backbone, build_res2net_backbone
from clsloc.config import check_choice
from ddod.path_aggregation import PathAggregation
from ddod.ssh import SSHPyramid
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7

__all__ = ["TopLevels", "build_ddod_res2net_fpn_backbone", "build_ddod_resnet_fpn_backbone"]

PYRAMIDS = {"fpn": FPN, "pafpn": PathAggregation, "ssh": SSHPyramid}


class TopLevels(LastLevelP6P7):
    """P6 and P7 of RetinaNet, with the ReLU between them only on request."""

    def __init__(self, in_channels: int, out_channels: int, in_feature: str, relu: bool):
        """
        Args:
            in_channels, out_channels: of the two convolutions.
            in_feature: "p5" of the pyramid or "res5" of the backbone.
            relu: whether a ReLU stands before P7.
        """
        super().__init__(in_channels, out_channels, in_feature)
        self.relu = relu

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, in_channels, H, W) to maps of 1/2 and 1/4 of the size."""
        p6 = self.p6(x)
        return [p6, self.p7(F.relu(p6) if self.relu else p6)]


@BACKBONE_REGISTRY.register()
def build_ddod_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """ResNet, deformable or not, with a pyramid, P6 and P7: ``MODEL.RESNETS``, ``MODEL.FPN`` and
    ``MODEL.DDOD.FPN``."""
    return _pyramid(cfg, build_deform_resnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_ddod_res2net_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Res2Net with the same pyramid."""
    return _pyramid(cfg, build_res2net_backbone(cfg, input_shape))


def _pyramid(cfg: CfgNode, bottom_up: Backbone) -> Backbone:
    node, channels = cfg.MODEL.DDOD.FPN, cfg.MODEL.FPN.OUT_CHANNELS
    check_choice("MODEL.DDOD.FPN.P6_FROM", node.P6_FROM, ("p5", "res5"))
    check_choice("MODEL.DDOD.FPN.TYPE", node.TYPE, PYRAMIDS)
    in_channels = channels if node.P6_FROM == "p5" else bottom_up.output_shape()["res5"].channels
    return PYRAMIDS[node.TYPE](
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=TopLevels(in_channels, channels, node.P6_FROM, node.RELU_BEFORE_P7),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
