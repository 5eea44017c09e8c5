"""Feature pyramid network (arXiv:1612.03144)."""

import math
from itertools import pairwise
from typing import Any

import torch
from fvcore.nn import weight_init
from torch import nn
from torch.nn import functional as F

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.modeling.backbone.build import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import build_resnet_backbone

__all__ = ["FPN", "build_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone"]


class LastLevelMaxPool(nn.Module):
    """One more level, every second cell of p5 (called P6 in Faster R-CNN with FPN)."""

    def __init__(self) -> None:
        super().__init__()
        self.num_levels = 1
        self.in_feature = "p5"

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(N, C, H, W) to a list with one map of half the size."""
        return [F.max_pool2d(x, kernel_size=1, stride=2)]


class LastLevelP6P7(nn.Module):
    """Two more levels, P6 and P7 of RetinaNet, by convolutions of stride 2."""

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "res5") -> None:
        """``in_feature`` names the input: an output of the bottom-up network or of the pyramid."""
        super().__init__()
        self.num_levels = 2
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
        for conv in (self.p6, self.p7):
            weight_init.c2_xavier_fill(conv)

    def forward(self, c5: torch.Tensor) -> list[torch.Tensor]:
        """(N, in_channels, H, W) to two maps of 1/2 and 1/4 of the size."""
        p6 = self.p6(c5)
        return [p6, self.p7(F.relu(p6))]


class FPN(Backbone):
    """Maps of equal width at all strides, made from coarse to fine.

    The output of stride 2^k is called ``p<k>``.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: list[str],
        out_channels: int,
        norm: Any = "",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
        square_pad: int = 0,
    ) -> None:
        """
        Args:
            bottom_up: the network underneath.
            in_features: its outputs to use, from fine to coarse, each of twice the stride.
            out_channels: width of every output.
            norm: as in ``get_norm``, after all convolutions, which then have no bias.
            top_block: makes ``num_levels`` more maps of twice the stride each from the output
                ``in_feature`` of the bottom-up network or the pyramid. None for no more.
            fuse_type: "sum" or "avg" of a level and the one above it.
            square_pad: if above 0, the side of the squares that images are padded to.
        """
        super().__init__()
        assert isinstance(bottom_up, Backbone), (
            f"FPN stands on a Backbone, got {type(bottom_up).__name__}."
        )
        assert in_features, "FPN needs at least one input feature."
        assert fuse_type in ("sum", "avg"), f"fuse_type of FPN is sum or avg, got {fuse_type!r}."
        shapes = bottom_up.output_shape()
        strides = [shapes[name].stride for name in in_features]
        for fine, coarse in pairwise(strides):
            assert coarse == 2 * fine, (
                f"Strides of FPN's inputs must double from one to the next, got {strides}."
            )

        laterals, outputs = [], []
        for name, stride in zip(in_features, strides):
            lateral = self._make_conv(shapes[name].channels, out_channels, 1, norm)
            output = self._make_conv(out_channels, out_channels, 3, norm)
            # Filled once both exist: equal seeds then give Detectron2's weights.
            for conv in (lateral, output):
                weight_init.c2_xavier_fill(conv)
            level = int(math.log2(stride))
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
            laterals.insert(0, lateral)
            outputs.insert(0, output)
        # Coarse to fine, the order of use; as plain lists, so that they are registered only once.
        self.lateral_convs = laterals
        self.output_convs = outputs
        self.top_block = top_block
        self.in_features = tuple(in_features)
        self.bottom_up = bottom_up

        strides = strides + [strides[-1] * 2**i for i in range(1, self._num_top_levels + 1)]
        self._out_feature_strides = {f"p{int(math.log2(stride))}": stride for stride in strides}
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility = strides[len(in_features) - 1]
        self._square_pad = square_pad
        self._fuse_type = fuse_type

    @staticmethod
    def _make_conv(in_channels: int, out_channels: int, kernel_size: int, norm: Any) -> Conv2d:
        return Conv2d(
            in_channels,
            out_channels,
            kernel_size=kernel_size,
            padding=kernel_size // 2,
            bias=norm == "",
            norm=get_norm(norm, out_channels),
        )

    @property
    def _num_top_levels(self) -> int:
        return 0 if self.top_block is None else self.top_block.num_levels

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"square_size": self._square_pad}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, C, H, W) to maps ``p<k>`` of (N, out_channels, H / 2^k, W / 2^k), fine to coarse."""
        bottom_up = self.bottom_up(x)
        results: list[torch.Tensor] = []
        merged = None
        for name, lateral, output in zip(
            reversed(self.in_features), self.lateral_convs, self.output_convs
        ):
            above, merged = merged, lateral(bottom_up[name])
            if above is not None:
                merged = merged + F.interpolate(above, scale_factor=2.0, mode="nearest")
                if self._fuse_type == "avg":
                    merged /= 2
            results.insert(0, output(merged))
        if self.top_block is not None:
            source = self.top_block.in_feature
            if source in bottom_up:
                results.extend(self.top_block(bottom_up[source]))
            else:
                results.extend(self.top_block(results[self._out_features.index(source)]))
        return dict(zip(self._out_features, results, strict=True))


def _build_fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet with FPN and a pooled P6, from ``cfg.MODEL.RESNETS`` and ``cfg.MODEL.FPN``."""
    return _build_fpn(cfg, build_resnet_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet with FPN and P6, P7 convolved from res5, as RetinaNet has it."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    channels = bottom_up.output_shape()["res5"].channels
    return _build_fpn(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))
