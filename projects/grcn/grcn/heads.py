"""Heads of a RoI: from pooled features to the vector that the predictors read."""

from typing import Any

import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling.roi_heads import (
    ROI_BOX_HEAD_REGISTRY,
    FastRCNNConvFCHead,
    build_box_head,
)
from grcn.resnet import make_res_stage

__all__ = ["Res5Head", "VGGFCHead", "build_head"]


@ROI_BOX_HEAD_REGISTRY.register()
class VGGFCHead(nn.Module):
    """fc6 and fc7 of VGG16, each followed by ReLU and dropout."""

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, fc_dim: int = 4096, dropout: float = 0.5):
        """
        Args:
            input_shape: channels, height and width of the pooled features.
            fc_dim: outputs of both layers.
            dropout: share of the outputs that training drops.
        """
        super().__init__()
        self.fc6 = nn.Linear(input_shape.channels * input_shape.height * input_shape.width, fc_dim)
        self.fc7 = nn.Linear(fc_dim, fc_dim)
        for layer in (self.fc6, self.fc7):
            weight_init.c2_xavier_fill(layer)
        self.dropout = nn.Dropout(dropout)
        self.output_shape = ShapeSpec(channels=fc_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {
            "input_shape": input_shape,
            "fc_dim": cfg.MODEL.ROI_BOX_HEAD.FC_DIM,
            "dropout": cfg.MODEL.GRCN.VGG_DROPOUT,
        }

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, H, W) to (R, fc_dim); R may be 0."""
        x = self.dropout(F.relu(self.fc6(x.flatten(1))))
        return self.dropout(F.relu(self.fc7(x)))


class Res5Head(nn.Sequential):
    """Bottlenecks, then the mean over positions: (R, C, H, W) to (R, out_channels)."""

    def __init__(self, blocks: list[nn.Module]):
        super().__init__(*blocks)
        self.output_shape = ShapeSpec(channels=blocks[-1].out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(dim=(2, 3))


class ConvHead(nn.Sequential):
    """Two 3x3 convolutions, each with ReLU, then the mean over positions."""

    def __init__(self, in_channels: int, channels: int):
        convs = [
            Conv2d(before, channels, 3, padding=1, activation=F.relu_)
            for before in (in_channels, channels)
        ]
        super().__init__(*convs)
        for conv in convs:
            weight_init.c2_msra_fill(conv)
        self.output_shape = ShapeSpec(channels=channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(dim=(2, 3))


def build_head(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """
    The head of ResNet-det if this is one, else `MODEL.ROI_BOX_HEAD.NAME`, else conv5.

    Args:
        input_shape: channels, height and width of the pooled features.
    """
    node, box_head = cfg.MODEL.GRCN, cfg.MODEL.ROI_BOX_HEAD
    if node.RES_DET:
        match node.RES_DET_HEAD:
            case "fc2":
                dims = [box_head.FC_DIM] * 2
                return FastRCNNConvFCHead(input_shape, conv_dims=[], fc_dims=dims)
            case "conv2":
                return ConvHead(input_shape.channels, box_head.CONV_DIM)
            case _:
                channels = input_shape.channels
                return Res5Head(make_res_stage(cfg, 5, stride=1, in_channels=channels))
    if box_head.NAME:
        return build_box_head(cfg, input_shape)
    return Res5Head(make_res_stage(cfg, 5, stride=node.RES5_STRIDE))
