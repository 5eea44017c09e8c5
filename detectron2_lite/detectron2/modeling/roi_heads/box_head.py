"""Box heads: pooled region features in, the features of the box predictor out."""

import fvcore.nn.weight_init as weight_init
from fvcore.common.registry import Registry
from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm

ROI_BOX_HEAD_REGISTRY = Registry("ROI_BOX_HEAD")
ROI_BOX_HEAD_REGISTRY.__doc__ = """
Box heads by name. An entry is called as ``entry(cfg, input_shape)`` and returns a module with an
``output_shape`` that maps region features (R, C, H, W) to what the box predictor takes.
"""


def build_box_head(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """Build ``MODEL.ROI_BOX_HEAD.NAME``."""
    return ROI_BOX_HEAD_REGISTRY.get(cfg.MODEL.ROI_BOX_HEAD.NAME)(cfg, input_shape)


@ROI_BOX_HEAD_REGISTRY.register()
class FastRCNNConvFCHead(nn.Sequential):
    """3x3 convolutions, then fully connected layers, each followed by ReLU."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        conv_dims: list[int],
        fc_dims: list[int],
        conv_norm: str = "",
    ) -> None:
        """
        Args:
            input_shape: channels, height and width of the region features.
            conv_dims: output channels of the convolutions, named conv1, conv2, ...
            fc_dims: output sizes of the fully connected layers, named fc1, fc2, ...
            conv_norm: normalisation of the convolutions; see :func:`detectron2.layers.get_norm`.
        """
        super().__init__()
        if not conv_dims and not fc_dims:
            raise ValueError(
                "The box head has no layer: set MODEL.ROI_BOX_HEAD.NUM_CONV or NUM_FC above 0."
            )
        channels, height, width = input_shape.channels, input_shape.height, input_shape.width
        convs = []
        for number, dim in enumerate(conv_dims, start=1):
            convs.append(
                Conv2d(
                    channels,
                    dim,
                    kernel_size=3,
                    padding=1,
                    bias=not conv_norm,
                    norm=get_norm(conv_norm, dim),
                    activation=nn.ReLU(),
                )
            )
            self.add_module(f"conv{number}", convs[-1])
            channels = dim
        self._output_shape = ShapeSpec(channels=channels, height=height, width=width)

        fcs = []
        if fc_dims:
            self.add_module("flatten", nn.Flatten())
            channels *= height * width
        for number, dim in enumerate(fc_dims, start=1):
            fcs.append(nn.Linear(channels, dim))
            self.add_module(f"fc{number}", fcs[-1])
            self.add_module(f"fc_relu{number}", nn.ReLU())
            channels = dim
            self._output_shape = ShapeSpec(channels=channels)

        # Only now, so that equal seeds give the same weights as in Detectron2.
        for conv in convs:
            weight_init.c2_msra_fill(conv)
        for fc in fcs:
            weight_init.c2_xavier_fill(fc)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "conv_dims": [head.CONV_DIM] * head.NUM_CONV,
            "fc_dims": [head.FC_DIM] * head.NUM_FC,
            "conv_norm": head.NORM,
        }

    @property
    def output_shape(self) -> ShapeSpec:
        """Channels of the output; with height and width if there is no fully connected layer."""
        return self._output_shape
