"""Convolution and normalisation as one layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.layers import Conv2d, FrozenBatchNorm2d, get_norm

__all__ = ["ConvNorm"]


class ConvNorm(Conv2d):
    """
    Stride-1, "same"-padded `Conv2d` with an optional norm and ReLU.

    At inference a batch norm is a fixed affine map, and is folded into the weights on the fly:
    scaling some thousand weights is far cheaper than another pass over the maps of hundreds of
    RoIs, and nothing is cached that training or loading could make stale.

    Args:
        in_channels, out_channels: as in `Conv2d`.
        kernel_size: odd.
        norm: a name that `detectron2.layers.get_norm` knows; "" for none.
        bias: whether the convolution has a bias. None: only without a norm.
        relu: whether a ReLU follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        norm: str = "",
        bias: bool | None = None,
        relu: bool = False,
    ):
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            padding=kernel_size // 2,
            bias=not norm if bias is None else bias,
            norm=get_norm(norm, out_channels),
            # In place: no normalisation needs its output for the backward pass.
            activation=F.relu_ if relu else None,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(R, in_channels, H, W) to (R, out_channels, H, W); R may be 0."""
        if torch.is_grad_enabled() or not _is_fixed_affine(self.norm):
            return super().forward(x)
        weight, bias = self._folded()
        x = F.conv2d(x, weight, bias, padding=self.padding)
        return x if self.activation is None else self.activation(x)

    def _folded(self) -> tuple[Tensor, Tensor]:
        norm = self.norm
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        bias = norm.bias - norm.running_mean * scale
        if self.bias is not None:
            bias = bias + self.bias * scale
        return self.weight * scale[:, None, None, None], bias


def _is_fixed_affine(norm: nn.Module | None) -> bool:
    if isinstance(norm, FrozenBatchNorm2d):
        return True
    return isinstance(norm, nn.modules.batchnorm._BatchNorm) and not norm.training
