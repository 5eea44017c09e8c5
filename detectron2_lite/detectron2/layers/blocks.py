"""Building blocks of convolutional networks."""

from collections.abc import Callable

import torch
from fvcore.nn import weight_init
from torch import nn

from detectron2.layers.batch_norm import FrozenBatchNorm2d, get_norm
from detectron2.layers.wrappers import Conv2d


class CNNBlockBase(nn.Module):
    """A block with one input and one output map, and known channels and stride.

    ``forward`` of a subclass takes (N, in_channels, H, W) and returns
    (N, out_channels, H / stride, W / stride).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride

    def freeze(self) -> "CNNBlockBase":
        """Stop training of the block: no gradients, batch norms become frozen; returns itself."""
        self.requires_grad_(False)
        FrozenBatchNorm2d.convert_frozen_batchnorm(self)
        return self


class DepthwiseSeparableConv2d(nn.Module):
    """A convolution per channel followed by a 1 x 1 convolution across channels (Xception)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        padding: int = 1,
        dilation: int = 1,
        *,
        norm1: str | Callable | None = None,
        activation1: Callable | None = None,
        norm2: str | Callable | None = None,
        activation2: Callable | None = None,
    ) -> None:
        """Norms as in :func:`get_norm`; 1 stands for the depthwise convolution, 2 for the other."""
        super().__init__()
        self.depthwise = Conv2d(
            in_channels,
            in_channels,
            kernel_size=kernel_size,
            padding=padding,
            dilation=dilation,
            groups=in_channels,
            bias=not norm1,
            norm=get_norm(norm1, in_channels),
            activation=activation1,
        )
        self.pointwise = Conv2d(
            in_channels,
            out_channels,
            kernel_size=1,
            bias=not norm2,
            norm=get_norm(norm2, out_channels),
            activation=activation2,
        )
        weight_init.c2_msra_fill(self.depthwise)
        weight_init.c2_msra_fill(self.pointwise)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H', W')."""
        return self.pointwise(self.depthwise(x))
