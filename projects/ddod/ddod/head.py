"""The head: two towers, shared by all levels, the first convolution of each deformable."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from clsloc.errors import UserError
from clsloc.layers import DeformConv2d
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm

__all__ = ["DDODHead"]


class DDODHead(nn.Module):
    """
    Class logits from one tower; box deltas and the logit of their quality from the other.

    Without a norm, a quality and deformable layers it is Detectron2's `RetinaNetHead`, down to the
    names of its parameters.

    Shape shorthand: N images, C channels, A anchors of a location, K classes.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_levels: int,
        num_anchors: int,
        num_classes: int,
        num_convs: int = 4,
        conv_dim: int = 256,
        norm: str = "GN",
        prior_prob: float = 0.01,
        level_scale: bool = True,
        with_quality: bool = True,
        reg_bias_init: float = 0.0,
        dcn_position: int = 1,
        dcn_args: dict[str, Any] | None = None,
    ):
        """
        Args:
            in_channels: C of every level.
            num_levels: of the pyramid.
            num_anchors, num_classes: A and K.
            num_convs, conv_dim, norm: of each tower.
            prior_prob: probability of every class at the start.
            level_scale: whether each level has a learnt factor on its deltas.
            with_quality: whether the quality of boxes is predicted.
            reg_bias_init: bias of the deltas at the start.
            dcn_position: which convolution of each tower is deformable, from 1; 0: none.
            dcn_args: further arguments of `DeformConv2d`.
        """
        super().__init__()
        if not 0 <= dcn_position <= num_convs:
            raise UserError(
                f"MODEL.DDOD.DCN.POSITION {dcn_position} is no convolution of a tower of "
                f"{num_convs}: choose 1 to {num_convs}, or 0 for none."
            )
        for name in ("cls_subnet", "bbox_subnet"):
            layers, channels = [], in_channels
            for position in range(1, num_convs + 1):
                dcn = (dcn_args or {}) if position == dcn_position else None
                layers += _tower_layer(channels, conv_dim, norm, dcn)
                channels = conv_dim
            self.add_module(name, nn.Sequential(*layers))
        self.cls_score = _conv(channels, num_anchors * num_classes)
        self.bbox_pred = _conv(channels, num_anchors * 4)
        self.quality = _conv(channels, num_anchors) if with_quality else None
        self.scales = nn.Parameter(torch.ones(num_levels)) if level_scale else None
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))
        nn.init.constant_(self.bbox_pred.bias, reg_bias_init)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: list[ShapeSpec], num_anchors: int
    ) -> dict[str, Any]:
        node = cfg.MODEL.DDOD
        return {
            "in_channels": input_shape[0].channels,
            "num_levels": len(input_shape),
            "num_anchors": num_anchors,
            "num_classes": node.NUM_CLASSES,
            "num_convs": node.NUM_CONVS,
            "conv_dim": node.CONV_DIM,
            "norm": node.NORM,
            "prior_prob": node.PRIOR_PROB,
            "level_scale": node.LEVEL_SCALE,
            "with_quality": node.QUALITY != "none",
            "reg_bias_init": node.REG_BIAS_INIT,
            "dcn_position": node.DCN.POSITION,
            "dcn_args": {
                "modulated": node.DCN.MODULATED,
                "deform_groups": node.DCN.DEFORM_GROUPS,
                "implementation": node.DCN.IMPL,
            },
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], ...]:
        """
        Args:
            features: per level (N, C, H, W).

        Returns:
            Per level the class logits (N, AK, H, W), the deltas (N, 4A, H, W) and, if it is
            predicted, the logit of the quality (N, A, H, W).
        """
        logits, deltas, quality = [], [], []
        for level, feature in enumerate(features):
            logits.append(self.cls_score(self.cls_subnet(feature)))
            feature = self.bbox_subnet(feature)
            delta = self.bbox_pred(feature)
            deltas.append(delta if self.scales is None else delta * self.scales[level])
            if self.quality is not None:
                quality.append(self.quality(feature))
        return (logits, deltas) if self.quality is None else (logits, deltas, quality)


def _tower_layer(
    in_channels: int, out_channels: int, norm: str, dcn_args: dict[str, Any] | None
) -> list[nn.Module]:
    """A convolution, plain or deformable, its norm and a ReLU."""
    if dcn_args is None:
        conv = _conv(in_channels, out_channels, bias=not norm)
    else:
        # NOTE(paper): no bias without a norm either, as in the authors' layer.
        conv = DeformConv2d(in_channels, out_channels, 3, padding=1, bias=False, **dcn_args)
        nn.init.normal_(conv.weight, std=0.01)
    return [conv, *([get_norm(norm, out_channels)] if norm else []), nn.ReLU(inplace=True)]


def _conv(in_channels: int, out_channels: int, bias: bool = True) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
    nn.init.normal_(conv.weight, std=0.01)
    if bias:
        nn.init.zeros_(conv.bias)
    return conv
