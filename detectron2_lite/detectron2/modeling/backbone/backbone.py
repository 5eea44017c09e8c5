"""The interface of backbones."""

from abc import ABCMeta, abstractmethod

import torch
from torch import nn

from detectron2.layers import ShapeSpec


class Backbone(nn.Module, metaclass=ABCMeta):
    """Turns a batch of images into named feature maps.

    A subclass either sets ``_out_features`` (names), ``_out_feature_channels`` and
    ``_out_feature_strides`` (both by name) or overrides :meth:`output_shape`.
    """

    @abstractmethod
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, C, H, W) to maps by name, each (N, channels, H / stride, W / stride)."""

    @property
    def size_divisibility(self) -> int:
        """What height and width of the input must be multiples of; 0 for anything."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Further wishes on the input's size, for ``ImageList.from_tensors``."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every output, by name."""
        return {
            name: ShapeSpec(
                channels=self._out_feature_channels[name], stride=self._out_feature_strides[name]
            )
            for name in self._out_features
        }
