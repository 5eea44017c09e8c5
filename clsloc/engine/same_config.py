"""Whether a run was made with a config, told by the config.yaml that it left."""

import os
from collections.abc import Mapping
from typing import Any

import yaml

from detectron2.config import CfgNode

# Keys of where and how a run is made, in which it may differ from the present command.
FREE_KEYS = ("OUTPUT_DIR", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT_PERIOD")


def differences(stored: Mapping[str, Any], cfg: CfgNode) -> dict[str, tuple[Any, Any]]:
    """The keys of both configs that differ, each with the stored value and that of ``cfg``.

    Those that one of them lacks come from another version. ``FREE_KEYS`` may differ, and so may
    mixed precision where one is for CPUs, which have none.
    """
    old, new = _flat(stored), _flat(yaml.safe_load(cfg.dump()))
    free = {*FREE_KEYS}
    if "cpu" in (old.get("MODEL.DEVICE"), new["MODEL.DEVICE"]):
        free.add("SOLVER.AMP.ENABLED")
    return {
        key: (old[key], value)
        for key, value in new.items()
        if key in old and key not in free and not _is_same(old[key], value)
    }


def _flat(node: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """The values of nested mappings by their dotted keys."""
    result = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            result |= _flat(value, f"{start}{key}.")
        else:
            result[f"{start}{key}"] = value
    return result


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values of a config are equal, or say the same but for the way to write a path."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, str) and isinstance(other, str):
        return one == other or os.path.realpath(one) == os.path.realpath(other)
    return one == other
