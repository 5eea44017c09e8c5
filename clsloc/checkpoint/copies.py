"""Layers that start as copies of others, and are filled with them from a checkpoint."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["fill_copies"]

logger = logging.getLogger(__name__)


def fill_copies(module: nn.Module, copies: Mapping[str, str]) -> None:
    """
    From now on, when `module` loads a state that lacks a tensor of a copy, the copy gets that of
    its source, buffers included.

    A state that has the tensors of the copies, such as that of a run to resume, is loaded as it
    is. What neither the copy nor its source has is reported as missing in the usual way. The log
    says which copies were filled, and warns of a copy that was filled in part, as that may be a
    damaged checkpoint.

    Args:
        module: contains all sources and copies.
        copies: {name of the copy: name of its source}, dotted names of submodules, such as
            {"conv5_loc": "conv5"}. A source may be larger; only what the copy has, in the same
            shape, is taken.
    """
    copies = dict(copies)

    def hook(owner: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for copy, source in copies.items():
            _fill(owner.get_submodule(copy), state, f"{prefix}{copy}.", f"{prefix}{source}.")

    if copies:
        module.register_load_state_dict_pre_hook(hook)


def _fill(copy: nn.Module, state: dict[str, Any], name: str, source: str) -> None:
    tensors = copy.state_dict()
    absent = [key for key in tensors if name + key not in state]
    filled = [
        key
        for key in absent
        if source + key in state and state[source + key].shape == tensors[key].shape
    ]
    for key in filled:
        state[name + key] = state[source + key].clone()
    if filled:
        in_part = len(filled) < len(tensors)
        logger.log(
            logging.WARNING if in_part else logging.INFO,
            "%d of %d tensors of %s are not in the checkpoint and start as those of %s.",
            *(len(filled), len(tensors), name.rstrip("."), source.rstrip(".")),
        )
