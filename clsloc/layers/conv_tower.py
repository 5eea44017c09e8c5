"""Tower of residual blocks on pooled RoI features."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clsloc.errors import UserError
from clsloc.layers.conv_norm import ConvNorm
from clsloc.layers.nonlocal_block import NonLocalBlock
from detectron2.layers import ShapeSpec

__all__ = ["Bottleneck", "ConvTower", "UpBlock"]


class UpBlock(nn.Module):
    """
    Residual block that widens the map (Double-Head, Figure 5a): 3x3 and 1x1 convolution beside a
    1x1 projection.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str):
        super().__init__()
        self.conv1 = ConvNorm(in_channels, in_channels, 3, norm=norm, relu=True)
        self.conv2 = ConvNorm(in_channels, out_channels, norm=norm)
        self.shortcut = ConvNorm(in_channels, out_channels, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.conv2(self.conv1(x)).add_(self.shortcut(x)))


class Bottleneck(nn.Module):
    """Residual bottleneck block of constant width (Double-Head, Figure 5b): 1x1, 3x3, 1x1."""

    def __init__(self, channels: int, bottleneck_channels: int, norm: str):
        super().__init__()
        self.conv1 = ConvNorm(channels, bottleneck_channels, norm=norm, relu=True)
        self.conv2 = ConvNorm(bottleneck_channels, bottleneck_channels, 3, norm=norm, relu=True)
        self.conv3 = ConvNorm(bottleneck_channels, channels, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.conv3(self.conv2(self.conv1(x))).add_(x))


class ConvTower(nn.Module):
    """
    The convolution head of Double-Head (CVPR 2020, section 4.1): an `UpBlock`, then `Bottleneck`
    blocks with or without `NonLocalBlock`s before them, then the mean over positions. The grid of
    the pooled features is kept to the end.

    With non-local blocks, K = `num_blocks` counts them too: (K+1)/2 residual blocks alternate with
    (K-1)/2 non-local ones. Convolutions keep PyTorch's default initialisation.

    Args:
        in_channels: channels of the pooled features.
        out_channels: width of all blocks; bottlenecks are a quarter as wide inside.
        num_blocks: K, at least 1; odd and at least 3 with non-local blocks.
        norm: normalisation behind each convolution, a name for `detectron2.layers.get_norm`.
        nonlocal_args: keyword arguments of `NonLocalBlock` (`norm` excepted), or None for a tower
            without non-local blocks.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 1024,
        *,
        num_blocks: int = 5,
        norm: str = "BN",
        nonlocal_args: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        _check_num_blocks(num_blocks, nonlocal_args is not None)
        blocks = OrderedDict(up=UpBlock(in_channels, out_channels, norm))
        pairs = num_blocks // 2 if nonlocal_args is not None else num_blocks - 1
        for i in range(1, pairs + 1):
            if nonlocal_args is not None:
                blocks[f"nonlocal{i}"] = NonLocalBlock(out_channels, norm=norm, **nonlocal_args)
            blocks[f"bottleneck{i}"] = Bottleneck(out_channels, out_channels // 4, norm)
        self.blocks = nn.Sequential(blocks)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features (R, in_channels, H, W) to (R, out_channels); R may be 0."""
        return self.pool(self.feature_map(x))

    def feature_map(self, x: Tensor) -> Tensor:
        """The last map before the mean over positions: (R, out_channels, H, W)."""
        if x.device.type == "cpu":  # a quarter faster so
            x = x.contiguous(memory_format=torch.channels_last)
        return self.blocks(x)

    def pool(self, feature_map: Tensor) -> Tensor:
        """The mean over positions: (R, out_channels, H, W) to (R, out_channels)."""
        return feature_map.mean(dim=(2, 3))

    @property
    def output_shape(self) -> ShapeSpec:
        return ShapeSpec(channels=self.out_channels)


def _check_num_blocks(num_blocks: int, with_nonlocal: bool) -> None:
    if num_blocks < 1:
        raise UserError(f"A convolution tower needs at least 1 block, got {num_blocks}.")
    if with_nonlocal and (num_blocks < 3 or num_blocks % 2 == 0):
        raise UserError(
            f"A convolution tower of {num_blocks} blocks cannot alternate residual and non-local "
            "blocks: choose an odd number of at least 3, or no non-local blocks."
        )
