"""The pyramid of the face detectors: bilinear upsampling, and context behind every map."""

import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from clsloc.errors import UserError
from clsloc.layers import ConvNorm
from detectron2.modeling import FPN

__all__ = ["SSHContext", "SSHPyramid"]


class SSHContext(nn.Module):
    """
    The context module of "SSH: Single Stage Headless Face Detector" (ICCV 2017, section 3.3):
    windows of 3x3, 5x5 and 7x7, the larger ones as two and three convolutions of 3x3 that share
    the first.

    NOTE(paper): DDOD names the module and no more; channels, norms and the ReLU behind the
    concatenation are those of TinaFace, whose recipe DDOD-Face follows.
    """

    def __init__(self, channels: int, norm: str = "GN"):
        """
        Args:
            channels: C, of input and output; a multiple of 4.
            norm: behind each convolution; "" for none, then they have biases. "GN" has 32 groups,
                but none of a single channel.
        """
        super().__init__()
        norm = _group_norm if norm == "GN" else norm
        half, quarter = channels // 2, channels // 4
        self.near = ConvNorm(channels, half, 3, norm=norm)
        self.stem = ConvNorm(channels, quarter, 3, norm=norm, relu=True)
        self.middle = ConvNorm(quarter, quarter, 3, norm=norm)
        self.far = nn.Sequential(
            ConvNorm(quarter, quarter, 3, norm=norm, relu=True),
            ConvNorm(quarter, quarter, 3, norm=norm),
        )
        for module in self.modules():
            if isinstance(module, ConvNorm):
                weight_init.c2_msra_fill(module)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        stem = self.stem(x)
        return F.relu_(torch.cat([self.near(x), self.middle(stem), self.far(stem)], dim=1))


class SSHPyramid(FPN):
    """Detectron2's `FPN` with bilinear upsampling, whose maps all go through one `SSHContext`."""

    def __init__(self, *, out_channels: int, norm: str, **kwargs):
        """
        Args:
            out_channels, norm: of the pyramid and of the context.
            kwargs: see `FPN`.
        """
        _check_channels(out_channels, norm)
        super().__init__(out_channels=out_channels, norm=norm, **kwargs)
        self.context = SSHContext(out_channels, norm)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) images to maps by name, fine to coarse."""
        below = self.bottom_up(x)
        names = reversed(self.in_features)
        merged = [lateral(below[name]) for name, lateral in zip(names, self.lateral_convs)]
        share = 0.5 if self._fuse_type == "avg" else 1.0
        for i in range(1, len(merged)):
            coarser = F.interpolate(
                merged[i - 1], scale_factor=2.0, mode="bilinear", align_corners=False
            )
            merged[i] = (merged[i] + coarser) * share
        maps = [output(level) for output, level in zip(self.output_convs, merged)][::-1]
        named = below | dict(zip(self._out_features, maps))
        maps += self.top_block(named[self.top_block.in_feature])
        return {
            name: self.context(level) for name, level in zip(self._out_features, maps, strict=True)
        }


def _check_channels(channels: int, norm: str) -> None:
    if channels < 16 or channels % 16:
        raise UserError(
            "MODEL.FPN.OUT_CHANNELS is a multiple of 16 for MODEL.DDOD.FPN.TYPE 'ssh', got "
            f"{channels}."
        )
    parts = (channels // 2, channels // 4)  # of the context; the maps of `FPN` have 32 groups
    fits = channels % 32 == 0 and all(part % _num_groups(part) == 0 for part in parts)
    if norm == "GN" and not fits:
        raise UserError(
            "MODEL.FPN.OUT_CHANNELS is 32, 64, 96, 192 or a multiple of 128 for "
            f"MODEL.DDOD.FPN.TYPE 'ssh' with MODEL.FPN.NORM 'GN', got {channels}."
        )


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_num_groups(channels), channels)


def _num_groups(channels: int) -> int:
    # Groups of one channel have no variance on a map of one pixel.
    return min(32, channels // 2)
