"""Counting the operations, activations and parameters of a model on given inputs."""

from collections import defaultdict
from typing import Any

import fvcore.nn
import torch
from fvcore.nn import activation_count, parameter_count, parameter_count_table
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils import _pytree as pytree

from detectron2.structures import Boxes, ImageList, Instances

__all__ = [
    "activation_count_operators",
    "flop_count_operators",
    "parameter_count_table",
    "parameter_count",
    "FlopCountAnalysis",
]

# Operators that fvcore would otherwise report as unknown; they cost little next to convolutions
# and matrix products.
_IGNORED_OPS = {
    f"aten::{name}"
    for name in (
        "add add_ argmax argsort batch_norm constant_pad_nd div div_ exp log2 max_pool2d "
        "meshgrid mul mul_ neg nonzero_numpy reciprocal repeat_interleave rsub sigmoid sigmoid_ "
        "softmax sort sqrt sub"
    ).split()
} | {"torchvision::nms"}


class _TensorsInTensorsOut(nn.Module):
    """Presents a model as tracing wants it: its inputs and outputs are tuples of tensors.

    Args:
        model: any model.
        inputs: its positional arguments, nested lists and dicts; what is not a tensor in them is
            kept as it is.
    """

    def __init__(self, model: nn.Module, inputs: tuple) -> None:
        super().__init__()
        self.model = model
        self._leaves, self._structure = pytree.tree_flatten(inputs)
        self._positions = [i for i, leaf in enumerate(self._leaves) if torch.is_tensor(leaf)]

    @property
    def flattened_inputs(self) -> tuple[torch.Tensor, ...]:
        return tuple(self._leaves[position] for position in self._positions)

    @torch.no_grad()  # layers such as FrozenBatchNorm2d compute another way for gradients
    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves = list(self._leaves)
        for position, tensor in zip(self._positions, tensors):
            leaves[position] = tensor
        return tuple(_tensors_in(self.model(*pytree.tree_unflatten(leaves, self._structure))))


def _tensors_in(value: Any) -> list[torch.Tensor]:
    """All tensors inside nested containers and structures, in order."""
    if isinstance(value, Instances):
        value = value.get_fields()
    elif isinstance(value, (Boxes, ImageList)):
        value = value.tensor
    if torch.is_tensor(value):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for item in value for tensor in _tensors_in(item)]


class FlopCountAnalysis(fvcore.nn.FlopCountAnalysis):
    """fvcore's analysis for models with any structure of inputs and outputs.

    Args:
        model: in the mode (training or evaluation) to be counted.
        inputs: the model's argument, or a tuple of its arguments.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        if not isinstance(inputs, tuple):
            inputs = (inputs,)
        wrapper = _TensorsInTensorsOut(model, inputs)
        super().__init__(wrapper, wrapper.flattened_inputs)
        self.set_op_handle(**dict.fromkeys(_IGNORED_OPS))


def flop_count_operators(model: nn.Module, inputs: list) -> dict[str, float]:
    """GFLOPs of inference by operator; a multiplication with its addition counts as one.

    Args:
        model: takes a list of dicts; counted in evaluation mode.
        inputs: the model's argument; of one image, since fvcore counts all of it.
    """
    was_training = model.training
    counts = FlopCountAnalysis(model.eval(), inputs).by_operator()
    model.train(was_training)
    return {operator: count / 1e9 for operator, count in counts.items()}


def activation_count_operators(
    model: nn.Module, inputs: list, **kwargs: Any
) -> defaultdict[str, float]:
    """Millions of output elements of inference on one image by operator.

    Args:
        model: takes a list of dicts; counted in evaluation mode.
        inputs: a list of one dict, of which only ``"image"`` is used.
        kwargs: passed to fvcore's ``activation_count``.
    """
    assert len(inputs) == 1, f"Activations are counted on one image, not on {len(inputs)}."
    handles = dict.fromkeys(_IGNORED_OPS, _nothing)
    handles.update(kwargs.pop("supported_ops", {}))
    if isinstance(model, (DistributedDataParallel, DataParallel)):
        model = model.module
    was_training = model.training
    wrapper = _TensorsInTensorsOut(model, ([{"image": inputs[0]["image"]}],)).eval()
    counts, _ = activation_count(wrapper, wrapper.flattened_inputs, supported_ops=handles, **kwargs)
    model.train(was_training)
    return counts


def _nothing(*args: Any, **kwargs: Any) -> dict:
    return {}


def find_unused_parameters(model: nn.Module, inputs: Any) -> list[str]:
    """Names of the parameters that the loss does not depend on.

    Args:
        model: in training mode; returns a loss or a dict of losses.
        inputs: the model's argument.
    """
    assert model.training, "Parameters are used or unused in training; call model.train() first."
    model.zero_grad(set_to_none=True)
    losses = model(inputs)
    if isinstance(losses, dict):
        losses = sum(losses.values())
    losses.backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    model.zero_grad(set_to_none=True)
    return unused
