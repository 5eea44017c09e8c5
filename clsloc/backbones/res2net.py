"""Res2Net ("Res2Net: A New Multi-Scale Backbone Architecture", TPAMI 2021), version 1d."""

from typing import Any

import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from clsloc.backbones.deform_resnet import make_deformable
from clsloc.errors import UserError
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, ResNet

__all__ = ["Res2Block", "Res2Stem", "build_res2net_backbone"]

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
# "26w x 4s": four groups of channels, 26 each where a ResNet has 64 channels.
_WIDTH, _SCALES = 26, 4


class Res2Stem(CNNBlockBase):
    """Three 3x3 convolutions and max pooling, stride 4 together."""

    def __init__(self, in_channels: int, out_channels: int = 64, norm: str = "BN"):
        super().__init__(in_channels, out_channels, 4)
        half = out_channels // 2
        self.conv1 = _conv(in_channels, half, 3, norm, stride=2)
        self.conv2 = _conv(half, half, 3, norm)
        self.conv3 = _conv(half, out_channels, 3, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / 4, W / 4)."""
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.relu_(conv(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class Res2Block(CNNBlockBase):
    """
    Bottleneck whose 3x3 convolution is a cascade over groups of channels: each group is added the
    output of the one before it, the last passes as it is. In the first block of a stage, which has
    a shortcut of its own, the groups are separate.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        stride: int = 1,
        first: bool = False,
        norm: str = "BN",
    ):
        """
        Args:
            in_channels, out_channels: equal unless it is the first block.
            width: channels of a group.
            stride: of the 3x3 convolutions.
            first: whether it is the first block of a stage.
            norm: behind each convolution.
        """
        super().__init__(in_channels, out_channels, stride)
        self.first = first
        self.width = width
        self.conv1 = _conv(in_channels, width * _SCALES, 1, norm)
        self.convs = nn.ModuleList(
            _conv(width, width, 3, norm, stride=stride) for _ in range(_SCALES - 1)
        )
        self.conv3 = _conv(width * _SCALES, out_channels, 1, norm)
        self.shortcut = _conv(in_channels, out_channels, 1, norm) if first else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        *groups, last = F.relu_(self.conv1(x)).split(self.width, dim=1)
        outputs: list[Tensor] = []
        for group, conv in zip(groups, self.convs, strict=True):
            if outputs and not self.first:
                group = group + outputs[-1]
            outputs.append(F.relu_(conv(group)))
        if self.stride > 1:
            last = F.avg_pool2d(last, 3, stride=self.stride, padding=1)
        out = self.conv3(torch.cat([*outputs, last], dim=1))
        return F.relu_(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.shortcut is None:
            return x
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)
        return self.shortcut(x)


@BACKBONE_REGISTRY.register()
def build_res2net_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """
    Res2Net-50 or -101 v1d of 26 x 4 channels, from the keys DEPTH, NORM, OUT_FEATURES and DEFORM_*
    of ``MODEL.RESNETS``; where it is deformable, all 3x3 convolutions of a block are.
    """
    node = cfg.MODEL.RESNETS
    if node.DEPTH not in _BLOCKS:
        raise UserError(
            f"There is no Res2Net of MODEL.RESNETS.DEPTH {node.DEPTH}: choose one of "
            f"{', '.join(map(str, _BLOCKS))}."
        )
    stem = Res2Stem(input_shape.channels, norm=node.NORM)
    stages, channels = [], stem.out_channels
    for index, num_blocks in enumerate(_BLOCKS[node.DEPTH]):
        stage = []
        for number in range(num_blocks):
            first = number == 0
            block = Res2Block(
                channels,
                256 * 2**index,
                width=_WIDTH * 2**index,
                stride=2 if first and index > 0 else 1,
                first=first,
                norm=node.NORM,
            )
            stage.append(block)
            channels = block.out_channels
        stages.append(stage)
    resnet = ResNet(
        stem, stages, out_features=node.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT
    )
    return make_deformable(
        resnet,
        node.DEFORM_ON_PER_STAGE,
        modulated=node.DEFORM_MODULATED,
        deform_groups=node.DEFORM_NUM_GROUPS,
    )


def _conv(in_channels: int, out_channels: int, kernel: int, norm: str, **kwargs: Any) -> Conv2d:
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel,
        padding=kernel // 2,
        bias=False,
        norm=get_norm(norm, out_channels),
        **kwargs,
    )
    weight_init.c2_msra_fill(conv)
    return conv
