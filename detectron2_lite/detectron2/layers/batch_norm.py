"""Normalisation layers, and :func:`get_norm` which makes them by name."""

from collections.abc import Callable
from typing import Any

import torch
from fvcore.nn.distributed import differentiable_all_reduce
from torch import nn
from torch.nn import functional as F

from detectron2.layers.wrappers import BatchNorm2d
from detectron2.utils import comm


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose statistics and affine transform are constants.

    They are buffers named as in ``BatchNorm2d`` so that checkpoints fit both, and start as the
    identity. The optimizer never sees them.
    """

    # Before version 2 the statistics could be missing, folded into weight and bias.
    _version = 3

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        # Together with eps, exactly one.
        self.register_buffer("running_var", torch.ones(num_features) - eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) in and out, same dtype."""
        if not x.requires_grad:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        # F.batch_norm would keep x for gradients of constants; one factor needs no x at all.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        scale, shift = (v.to(x.dtype).view(1, -1, 1, 1) for v in (scale, shift))
        return (x * scale).add_(shift)

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, local_metadata: dict, *args: Any
    ) -> None:
        if (local_metadata.get("version") or 1) < 2:
            for name, neutral in (("running_mean", 0.0), ("running_var", 1.0)):
                if prefix + name not in state_dict:
                    state_dict[prefix + name] = torch.full_like(getattr(self, name), neutral)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def __repr__(self) -> str:
        return f"FrozenBatchNorm2d(num_features={self.num_features}, eps={self.eps})"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Replace every BatchNorm2d and SyncBatchNorm in ``module`` by a frozen one.

        Returns:
            ``module``, changed in place, or its replacement where it is itself such a layer.
        """

        def freeze(norm: nn.Module) -> nn.Module:
            frozen = cls(norm.num_features)
            if norm.affine:
                frozen.weight = norm.weight.detach().clone()
                frozen.bias = norm.bias.detach().clone()
            frozen.running_mean = norm.running_mean
            frozen.running_var = norm.running_var
            # Not used; keeps checkpoints of frozen and unfrozen models interchangeable.
            frozen.register_buffer("num_batches_tracked", norm.num_batches_tracked)
            frozen.eps = norm.eps
            return frozen

        return _replace_modules(module, (nn.BatchNorm2d, nn.SyncBatchNorm), freeze)

    @classmethod
    def convert_frozenbatchnorm2d_to_batchnorm2d(cls, module: nn.Module) -> nn.Module:
        """The way back: replace every frozen layer in ``module`` by a trainable BatchNorm2d."""

        def thaw(frozen: nn.Module) -> nn.Module:
            norm = BatchNorm2d(frozen.num_features, frozen.eps)
            norm.weight.data = frozen.weight.detach().clone()
            norm.bias.data = frozen.bias.detach().clone()
            norm.running_mean.data = frozen.running_mean.detach()
            norm.running_var.data = frozen.running_var.detach()
            return norm

        return _replace_modules(module, (FrozenBatchNorm2d,), thaw)


def _replace_modules(
    module: nn.Module, kinds: tuple[type, ...], replace: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """Apply ``replace`` to every module of these kinds, at any depth; returns the new root."""
    if isinstance(module, kinds):
        return replace(module)
    for name, child in module.named_children():
        new_child = _replace_modules(child, kinds, replace)
        if new_child is not child:
            module.add_module(name, new_child)
    return module


class NaiveSyncBatchNorm(BatchNorm2d):
    """Batch normalisation over all processes in plain PyTorch.

    Works on CPU and with batches of different sizes per process, an empty one included.
    """

    def __init__(self, *args: Any, stats_mode: str = "", **kwargs: Any) -> None:
        """Arguments of ``BatchNorm2d``, and:

        Args:
            stats_mode: "" gives every process the same weight in the mean and variance, whatever
                its share of images; "N" weighs it by its number of images.
        """
        super().__init__(*args, **kwargs)
        assert stats_mode in ("", "N"), f"stats_mode is '' or 'N', got {stats_mode!r}."
        self._stats_mode = stats_mode

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) in and out, same dtype."""
        if comm.get_world_size() == 1 or not self.training:
            return super().forward(input)
        x = input.float() if input.dtype == torch.float16 else input
        mean, mean_square, momentum = self._global_moments(x)
        var = mean_square - mean * mean
        with torch.no_grad():
            self.running_mean += momentum * (mean - self.running_mean)
            self.running_var += momentum * (var - self.running_var)
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        return (x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)).to(input.dtype)

    def _global_moments(
        self, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, float | torch.Tensor]:
        """Mean and mean square (C,) over all processes, and how far to move the averages."""
        channels = x.shape[1]
        if x.shape[0] == 0:
            assert self._stats_mode == "N", (
                "NaiveSyncBatchNorm cannot train on an empty batch unless stats_mode is 'N'."
            )
            # Zeros that keep x in the graph: every process must take part in the backward pass.
            moments = x.new_zeros(2 * channels) + x.sum()
        else:
            moments = torch.cat([x.mean(dim=[0, 2, 3]), (x * x).mean(dim=[0, 2, 3])])
        if self._stats_mode == "":
            moments = differentiable_all_reduce(moments) / comm.get_world_size()
            return *moments.split(channels), self.momentum
        images = moments.new_full((1,), x.shape[0])
        summed = differentiable_all_reduce(torch.cat([moments * images, images]))
        images = summed[-1].detach()
        moments = summed[:-1] / images.clamp(min=1)
        # Without an image on any process the averages stay as they are.
        return *moments.split(channels), self.momentum * images.clamp(max=1)


class CycleBatchNormList(nn.ModuleList):
    """``length`` batch norms with own statistics, used in turn, that share weight and bias.

    For a head that sees the levels of a feature pyramid one after the other.
    """

    def __init__(self, length: int, bn_class: type = nn.BatchNorm2d, **kwargs: Any) -> None:
        """``kwargs`` go to each ``bn_class``; ``affine=False`` leaves weight and bias out."""
        self._affine = kwargs.pop("affine", True)
        super().__init__([bn_class(**kwargs, affine=False) for _ in range(length)])
        if self._affine:
            self.weight = nn.Parameter(torch.ones(self[0].num_features))
            self.bias = nn.Parameter(torch.zeros(self[0].num_features))
        self._pos = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) through the norm whose turn it is."""
        x = self[self._pos](x)
        self._pos = (self._pos + 1) % len(self)
        if not self._affine:
            return x
        return x * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)

    def extra_repr(self) -> str:
        return f"affine={self._affine}"


class LayerNorm(nn.Module):
    """Normalises over the channels of each pixel of an (N, C, H, W) map."""

    def __init__(self, normalized_shape: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) in and out."""
        centred = x - x.mean(1, keepdim=True)
        x = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
    "nnSyncBN": nn.SyncBatchNorm,
    "naiveSyncBN": NaiveSyncBatchNorm,
    "naiveSyncBN_N": lambda channels: NaiveSyncBatchNorm(channels, stats_mode="N"),
    "LN": LayerNorm,
}


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """Make a normalisation layer.

    Args:
        norm: BN, SyncBN, FrozenBN, GN (32 groups), nnSyncBN, naiveSyncBN, naiveSyncBN_N or LN;
            or a callable that takes the number of channels; or "" or None for no layer.
        out_channels: number of channels it normalises.

    Raises:
        KeyError: on any other name.
    """
    if not norm:
        return None
    if isinstance(norm, str):
        if norm not in _NORMS:
            raise KeyError(f"Unknown norm {norm!r}; use one of {', '.join(_NORMS)} or ''.")
        norm = _NORMS[norm]
    return norm(out_channels)
