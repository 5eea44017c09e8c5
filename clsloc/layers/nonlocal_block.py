"""Non-local block on the maps of RoIs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clsloc.config import check_choice
from clsloc.errors import UserError
from clsloc.layers.conv_norm import ConvNorm

__all__ = ["NonLocalBlock"]

NORMALIZE = ("mean", "softmax")
ZERO_INIT = ("conv", "norm")


class NonLocalBlock(nn.Module):
    """
    Non-local block of Double-Head (CVPR 2020, section 4.1, Figure 5c): every position of a map
    gathers from all P positions of the same map, by affinity, then a residual sum.

        z = ReLU(norm(W y) + x),   y_i = sum_j a_ij g_j,   a = theta^T phi / P  (in each group)

    NOTE(paper): the paper only draws the block. Four groups, division by P without softmax, plain
    biased convolutions for theta, phi and g, and the ReLU follow the authors' published code.

    Runs in fp32 under automatic mixed precision: without softmax the affinities are not bounded
    and overflow in half precision. Maps that are not negative, such as those behind a ReLU, pass
    unchanged at initialisation.

    Args:
        channels: channels of the input and of the output.
        inter_channels: channels of theta, phi and g together; a multiple of `groups`.
        groups: number of channel groups with their own affinities.
        normalize: "mean" divides affinities by P; "softmax" normalises them over j.
        norm: normalisation after W.
        relu: whether a ReLU follows the sum.
        zero_init: what starts at zero, so that the block starts as the identity: "conv" (W and its
            bias) or "norm" (the weight of the norm; gentler, as W learns from ordinary gradients).
    """

    def __init__(
        self,
        channels: int,
        inter_channels: int,
        *,
        groups: int = 4,
        normalize: str = "mean",
        norm: str = "BN",
        relu: bool = True,
        zero_init: str = "conv",
    ):
        super().__init__()
        if inter_channels % groups:
            raise UserError(
                f"{inter_channels} inner channels of a non-local block do not divide into "
                f"{groups} groups: choose a multiple."
            )
        check_choice("normalize", normalize, NORMALIZE)
        check_choice("zero_init", zero_init, ZERO_INIT)
        if zero_init == "norm" and not norm:
            raise UserError(
                f"zero_init 'norm' needs a norm in the non-local block, got {norm!r}: name one, or "
                "set zero_init to 'conv'."
            )
        self.groups = groups
        self.normalize = normalize
        self.relu = relu
        self.theta = ConvNorm(channels, inter_channels)
        self.phi = ConvNorm(channels, inter_channels)
        self.g = ConvNorm(channels, inter_channels)
        self.out = ConvNorm(inter_channels, channels, norm=norm, bias=True)
        if zero_init == "conv":
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)
        else:
            nn.init.zeros_(self.out.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, H, W) to the same shape and dtype; R may be 0."""
        with torch.autocast(x.device.type, enabled=False):
            z = x.to(self.theta.weight.dtype)
            z = self.out(self.gather(z)) + z
            z = F.relu_(z) if self.relu else z
        return z.to(x.dtype)

    def gather(self, x: Tensor) -> Tensor:
        """The gathered features y, before W: (R, C, H, W) to (R, inter_channels, H, W)."""
        theta, phi, g = (self._split_groups(f(x)) for f in (self.theta, self.phi, self.g))
        positions = x.shape[2] * x.shape[3]
        if self.normalize == "softmax":
            y = g @ (theta.mT @ phi).softmax(dim=-1).mT
        elif positions <= theta.shape[2]:
            y = g @ (theta.mT @ phi / positions).mT
        else:
            # Without softmax the product is associative: with fewer channels in a group than
            # positions, a matrix over channels is smaller than one over positions.
            y = (g @ phi.mT / positions) @ theta
        return y.flatten(1, 2).unflatten(-1, x.shape[2:])

    def _split_groups(self, x: Tensor) -> Tensor:
        """(R, channels, H, W) to (R, groups, channels / groups, H * W)."""
        r, c, h, w = x.shape
        return x.reshape(r, self.groups, c // self.groups, h * w)
