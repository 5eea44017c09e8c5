"""Deformable convolution that needs no compiled part of Detectron2, for heads and backbones."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from clsloc.errors import UserError
from detectron2.layers import Conv2d

__all__ = ["DEFORM_IMPLEMENTATIONS", "DeformConv2d", "deform_conv_by_sampling"]

DEFORM_IMPLEMENTATIONS = ("auto", "torchvision", "sampling")


class DeformConv2d(Conv2d):
    """
    Deformable convolution ("Deformable Convolutional Networks", ICCV 2017; with `modulated` its
    second version, CVPR 2019). A convolution of its own, called `offset`, says where each tap
    looks; it starts at zero, so that the layer starts as a plain convolution (half of one when
    modulated).

    Two implementations share the parameters: torchvision's operator, and bilinear sampling
    followed by one matrix product, which on CPUs takes less than half the time forward and a fifth
    with backward.

    Channels of `offset` are ordered as in torchvision and Detectron2: dy and dx of each tap, group
    by group; logits of the modulation come last.
    """

    def __init__(
        self,
        *args: Any,
        deform_groups: int = 1,
        modulated: bool = False,
        implementation: str = "auto",
        **kwargs: Any,
    ):
        """
        Args:
            args, kwargs: of Detectron2's `Conv2d`, its `norm` and `activation` included.
            deform_groups: groups of input channels with offsets of their own.
            modulated: whether a sigmoid weighs each tap.
            implementation: "torchvision", "sampling", or "auto": sampling unless on a GPU.
        """
        super().__init__(*args, **kwargs)
        if implementation not in DEFORM_IMPLEMENTATIONS:
            raise UserError(
                "The implementation of deformable convolution is one of "
                f"{', '.join(DEFORM_IMPLEMENTATIONS)}, got {implementation!r}."
            )
        if self.in_channels % deform_groups:
            raise UserError(
                f"{self.in_channels} channels do not divide into {deform_groups} deformable "
                "groups: choose a divisor."
            )
        self.implementation = implementation
        self.num_offsets = 2 * deform_groups * self.kernel_size[0] * self.kernel_size[1]
        channels = self.num_offsets * 3 // 2 if modulated else self.num_offsets
        self.offset = nn.Conv2d(
            self.in_channels,
            channels,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    @classmethod
    def replacing(cls, conv: Conv2d, **kwargs: Any) -> "DeformConv2d":
        """A deformable layer with the shape, weights, norm and activation of a plain one."""
        new = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
            norm=conv.norm,
            activation=conv.activation,
            **kwargs,
        )
        new.weight = conv.weight
        if conv.bias is not None:
            new.bias = conv.bias
        return new

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H', W'), norm and activation included."""
        where = self.offset(x)
        offset, mask = where[:, : self.num_offsets], where[:, self.num_offsets :]
        x = self._convolve(x, offset, mask.sigmoid() if mask.shape[1] else None)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)

    def _convolve(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        shape = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        by_sampling = self.implementation == "sampling"
        if self.implementation == "auto":
            by_sampling = not x.is_cuda
        if by_sampling:
            return deform_conv_by_sampling(
                x, offset, self.weight, self.bias, mask=mask, groups=self.groups, **shape
            )
        return deform_conv2d(x, offset, self.weight, self.bias, mask=mask, **shape)


def deform_conv_by_sampling(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """
    What `torchvision.ops.deform_conv2d` computes: all taps are sampled at once, then summed up by
    a matrix product. Equal to it but for rounding (1e-5).

    Shape shorthand: T taps of the kernel, G deformable groups.

    Args:
        x: (N, C, H, W).
        offset: (N, 2GT, H', W'), dy before dx.
        weight: (C', C / groups, kernel height, kernel width).
        bias: (C',).
        mask: (N, GT, H', W'), factors of the taps.
        stride, padding, dilation: (vertical, horizontal).
    """
    batch, channels = x.shape[:2]
    kernel, out_size = weight.shape[-2:], offset.shape[-2:]
    taps = kernel[0] * kernel[1]
    deform_groups = offset.shape[1] // (2 * taps)
    # Positions and samples in at least fp32: a half cannot count the pixels of a large map.
    dtype = torch.promote_types(x.dtype, torch.float32)
    offset = offset.to(dtype).unflatten(1, (deform_groups, taps, 2)).flatten(0, 1)
    grid = []
    for axis in (1, 0):  # x comes first in a grid
        position = _tap_positions(axis, kernel, out_size, stride, padding, dilation, offset)
        size = x.shape[2 + axis]
        # The outer edges of the map are -1 and 1: no division by zero on a map of one pixel.
        grid.append((position + offset[:, :, axis]) * (2 / size) + (1 / size - 1))
    grid = torch.stack(grid, dim=-1).flatten(1, 2)  # (NG, TH', W', 2)
    grouped = x.to(dtype).reshape(batch * deform_groups, -1, *x.shape[2:])
    columns = F.grid_sample(grouped, grid, padding_mode="zeros", align_corners=False)
    if mask is not None:
        mask = mask.to(dtype).reshape(batch * deform_groups, 1, -1, out_size[1])
        columns = columns * mask
    columns = columns.reshape(batch, groups, channels // groups * taps, -1).to(weight.dtype)
    summed = weight.reshape(groups, weight.shape[0] // groups, -1) @ columns
    out = summed.reshape(batch, weight.shape[0], *out_size)
    return out if bias is None else out + bias[:, None, None]


def _tap_positions(
    axis: int,
    kernel: tuple[int, int],
    out_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    like: Tensor,
) -> Tensor:
    """Pixel along one axis (0 is y) that each tap of a plain convolution looks at; (T, H', W'),
    or one of the last two is 1."""
    options = {"device": like.device, "dtype": like.dtype}
    outputs = torch.arange(out_size[axis], **options) * stride[axis] - padding[axis]
    of_taps = torch.arange(kernel[axis], **options) * dilation[axis]
    if axis == 0:
        of_taps = of_taps.repeat_interleave(kernel[1])
        return (of_taps[:, None] + outputs)[:, :, None]
    of_taps = of_taps.repeat(kernel[0])
    return (of_taps[:, None] + outputs)[:, None, :]
