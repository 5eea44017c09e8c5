"""The conv tower of Double-Head as a box head."""

from typing import Any

from clsloc.layers import ConvTower
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY

__all__ = ["DoubleHeadConvHead"]


@ROI_BOX_HEAD_REGISTRY.register()
class DoubleHeadConvHead(ConvTower):
    """`ConvTower` built from `MODEL.DOUBLE_HEAD`: pooled features to (R, CONV_DIM)."""

    @configurable
    def __init__(self, in_channels: int, **kwargs: Any):
        super().__init__(in_channels, **kwargs)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        node = cfg.MODEL.DOUBLE_HEAD
        nonlocal_args = {
            "inter_channels": node.NONLOCAL.INTER_DIM,
            "groups": node.NONLOCAL.GROUPS,
            "normalize": node.NONLOCAL.NORMALIZE,
            "relu": node.NONLOCAL.RELU,
            "zero_init": node.NONLOCAL.ZERO_INIT,
        }
        return {
            "in_channels": input_shape.channels,
            "out_channels": node.CONV_DIM,
            "num_blocks": node.NUM_BLOCKS,
            "norm": node.NORM,
            "nonlocal_args": nonlocal_args if node.NONLOCAL.ENABLED else None,
        }
