"""Weight files of other programs in the names of this repository."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clsloc.errors import UserError

__all__ = ["Conversion", "Fit", "LAYOUTS", "fit_model", "lay_out", "some_of", "state_of"]

TORCHVISION_PIXELS = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
}

# Where the blocks of a backbone stand in a detector.
LAYOUTS = {
    "fpn": "with a pyramid: all of it under backbone.bottom_up",
    "c4": "without: up to res4 under backbone, res5 under roi_heads",
    "bare": "no prefix: Detectron2 finds the places by itself when it loads",
}


@dataclass
class Conversion:
    """
    What became of the tensors of a file.

    Attributes:
        source: what the file was recognised as.
        detector: whether it holds a whole detector rather than a backbone.
        tensors: by the new name; for a backbone without the place it has in a detector.
        origins: the new name of each tensor to its old one, or old ones.
        left_out: old name to the reason.
        architecture: config keys that must agree for the tensors to fit.
        settings: config keys on which the meaning of the weights depends.
        notes: sentences on what cannot be set.
    """

    source: str
    detector: bool = False
    tensors: dict[str, Tensor] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    architecture: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, new: str, old: str, tensor: Tensor) -> None:
        """Take a tensor over; two tensors of one name are a mistake in the file."""
        if new in self.tensors:
            raise UserError(f"{old} and {self.origins[new]} of the file both become {new}.")
        self.tensors[new] = tensor.detach().float() if tensor.is_floating_point() else tensor
        self.origins[new] = old


@dataclass
class Fit:
    """
    A conversion beside the model it is for.

    Attributes:
        tensors: by the names of the model.
        origins: the name in the model to that in the file.
        left_out: name in the file to the reason.
        unfilled: names of the model that the file has nothing for; of a detector these are counts
            of training, which stand in `tensors` as the model begins with them.
    """

    tensors: dict[str, Tensor]
    origins: dict[str, str]
    left_out: dict[str, str]
    unfilled: list[str]


def state_of(content: Any, path: str) -> dict[str, Tensor]:
    """
    The tensors of a loaded file, out of the wrappers that training programs put around them.

    Raises:
        UserError: the file holds no tensors by name.
    """
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path!r} holds no tensors by name; give a state dict.")
    state = {}
    for name, value in content.items():
        if not isinstance(value, Tensor):
            try:
                value = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise UserError(f"{name} of {path!r} is no tensor; give a state dict.") from error
        state[str(name)] = value
    if all(name.startswith("module.") for name in state):  # of a distributed wrapper
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def lay_out(conversion: Conversion, layout: str) -> Fit:
    """A backbone under the names it has in a detector with this layout, without a model."""
    left_out = dict(conversion.left_out)
    tensors, origins = {}, {}
    for name, tensor in conversion.tensors.items():
        old = conversion.origins[name]
        if _is_counter(name):
            left_out[old] = _UNCOUNTED
            continue
        place = _place(name, layout)
        tensors[place], origins[place] = tensor, old
    return Fit(tensors, origins, left_out, [])


def fit_model(conversion: Conversion, model: Mapping[str, Tensor]) -> Fit:
    """
    Put each tensor where the model has the name, whatever stands before it.

    Args:
        model: the state dict of the detector.

    Raises:
        UserError: a shape differs; nothing fits; or a detector is not filled from end to end.
    """
    fit = Fit({}, {}, dict(conversion.left_out), [])
    for name, tensor in conversion.tensors.items():
        old = conversion.origins[name]
        places = [key for key in model if key == name or key.endswith("." + name)]
        for place in places:
            _check_shape(old, tensor, place, model[place])
            fit.tensors[place], fit.origins[place] = tensor, old
        if not places:
            fit.left_out[old] = _UNCOUNTED if _is_counter(name) else f"the model has no {name}"
    if not fit.tensors:
        raise UserError(
            f"No tensor of the {conversion.source} has a place in the model; "
            "check the backbone of the config."
        )
    fit.unfilled = [key for key in model if key not in fit.tensors]
    if conversion.detector:
        _check_whole(conversion, fit)
        # Else it could not be evaluated, which asks for every tensor.
        fit.tensors |= {name: model[name].cpu() for name in fit.unfilled}
    return fit


def some_of(names: Sequence[str], most: int = 4) -> str:
    """``["a", "b", "c"]`` -> ``"a, b, c"``, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


_UNCOUNTED = "a frozen batch norm does not count batches"


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _place(name: str, layout: str) -> str:
    if layout == "bare":
        return name
    if layout == "fpn":
        return f"backbone.bottom_up.{name}"
    in_head = re.match(r"res5\.|head\.", name)
    return f"roi_heads.{name}" if in_head else f"backbone.{name}"


def _check_shape(old: str, tensor: Tensor, place: str, wanted: Tensor) -> None:
    if tensor.shape != wanted.shape:
        raise UserError(
            f"{old} of the file has shape {list(tensor.shape)}, and {place} of the model "
            f"{list(wanted.shape)}; give the config that the weights were trained with."
        )


# What a detector can be without: counts of training, which are no weights.
_NOT_WEIGHTS = re.compile(r"num_batches_tracked$|\.reweighter\.acc_(cls|reg)$")


def _check_whole(conversion: Conversion, fit: Fit) -> None:
    missing = [name for name in fit.unfilled if not _NOT_WEIGHTS.search(name)]
    if missing:
        raise UserError(
            f"The {conversion.source} does not fill the model: there is nothing for "
            f"{some_of(missing)}; "
            "give the config of the same detector."
        )
    for old, reason in fit.left_out.items():
        if reason.startswith("the model has no") and "predictor" not in old:
            raise UserError(
                f"{old} of the file has no place, for {reason}; give the config of the same "
                "detector."
            )
