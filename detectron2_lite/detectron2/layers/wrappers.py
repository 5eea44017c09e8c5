"""PyTorch's layers and functions with the small extras that detection code relies on.

Some names are PyTorch's own, kept so that they can be imported from here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

BatchNorm2d = nn.BatchNorm2d
ConvTranspose2d = nn.ConvTranspose2d
Linear = nn.Linear
interpolate = F.interpolate


class Conv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` followed by an optional norm and an optional activation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Arguments of ``torch.nn.Conv2d``, and by keyword:

        Args:
            norm: module applied to the output, or None.
            activation: callable applied last, or None.
        """
        norm, activation = kwargs.pop("norm", None), kwargs.pop("activation", None)
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C', H', W'), N = 0 included."""
        assert x.numel() > 0 or not (self.training and isinstance(self.norm, nn.SyncBatchNorm)), (
            "SyncBatchNorm cannot train on an empty batch."
        )
        x = super().forward(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


def cat(tensors: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
    """``torch.cat`` that returns a single tensor as it is, without a copy."""
    assert isinstance(tensors, (list, tuple)), f"Expected a list, got {type(tensors)}."
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def empty_input_loss_func_wrapper(loss_func: Callable) -> Callable:
    """Make the mean of a loss over no element 0, connected to the graph, instead of NaN.

    ``loss_func`` takes (input, target, *, reduction, ...); other reductions are left alone.
    """

    def loss_or_zero(
        input: torch.Tensor, target: torch.Tensor, *, reduction: str = "mean", **kwargs: Any
    ) -> torch.Tensor:
        if target.numel() == 0 and reduction == "mean":
            return input.sum() * 0.0
        return loss_func(input, target, reduction=reduction, **kwargs)

    return loss_or_zero


cross_entropy = empty_input_loss_func_wrapper(F.cross_entropy)


def nonzero_tuple(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The indices of non-zero elements, one tensor per dimension, as for indexing ``x``."""
    return x.nonzero(as_tuple=True)


def shapes_to_tensor(x: list[int], device: torch.device | None = None) -> torch.Tensor:
    """A list of sizes as a tensor."""
    return torch.as_tensor(x, device=device)


def move_device_like(src: torch.Tensor, dst: torch.Tensor) -> torch.Tensor:
    """``src`` on the device of ``dst``."""
    return src.to(dst.device)
