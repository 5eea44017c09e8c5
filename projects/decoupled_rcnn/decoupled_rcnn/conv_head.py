"""The conv tower of Double-Head as head of a regressor (Table XI)."""

from typing import Any

from clsloc.layers import ConvTower
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY

__all__ = ["DoubleConvRegHead"]


@ROI_BOX_HEAD_REGISTRY.register()
class DoubleConvRegHead(ConvTower):
    """
    `ConvTower` of one residual block and four bottlenecks: pooled features to (R, FC_DIM).

    As wide as the fully connected head that it replaces, `MODEL.ROI_BOX_HEAD.FC_DIM`, and
    normalised with `MODEL.ROI_BOX_HEAD.NORM`, batch norm by default.

    NOTE(paper): the authors' code runs the classification RoIs through the tower too, and so into
    its batch statistics; here it sees the regression RoIs only.
    """

    @configurable
    def __init__(self, in_channels: int, **kwargs: Any):
        super().__init__(in_channels, **kwargs)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {
            "in_channels": input_shape.channels,
            "out_channels": cfg.MODEL.ROI_BOX_HEAD.FC_DIM,
            "num_blocks": 5,
            "norm": cfg.MODEL.ROI_BOX_HEAD.NORM or "BN",
        }
