"""Versions of the config format. The embedded runtime reads the current one only."""

from __future__ import annotations

import logging

from detectron2._left_out import left_out_error
from detectron2.config.config import CfgNode
from detectron2.config.defaults import _C

__all__ = ["downgrade_config", "upgrade_config"]


def upgrade_config(cfg: CfgNode, to_version: int | None = None) -> CfgNode:
    """A copy of ``cfg`` in the format of ``to_version`` (default: the latest).

    ``cfg.VERSION`` must exist. Raises NotImplementedError where keys would have to be renamed.
    """
    version, target = cfg.VERSION, _C.VERSION if to_version is None else to_version
    assert version <= target, (
        f"A config of version {version} cannot be upgraded to the older version {target}; "
        "use downgrade_config."
    )
    return _same_version(cfg, target, "upgrade_config")


def downgrade_config(cfg: CfgNode, to_version: int) -> CfgNode:
    """A copy of ``cfg`` in the format of ``to_version``, which must not be newer than its own.

    Raises NotImplementedError where keys would have to be renamed.
    """
    version = cfg.VERSION
    assert version >= to_version, (
        f"A config of version {version} cannot be downgraded to the newer version "
        f"{to_version}; use upgrade_config."
    )
    return _same_version(cfg, to_version, "downgrade_config")


def guess_version(cfg: CfgNode, filename: str) -> int:
    """The version of a config without the key VERSION, loaded from ``filename``."""
    logging.getLogger(__name__).warning(
        "Config '%s' has no VERSION; it is taken to be of version %d.", filename, _C.VERSION
    )
    return _C.VERSION


def _same_version(cfg: CfgNode, target: int, function: str) -> CfgNode:
    version = cfg.VERSION
    if version != target:
        raise left_out_error(f"detectron2.config.{function} from version {version} to {target}")
    return cfg.clone()
