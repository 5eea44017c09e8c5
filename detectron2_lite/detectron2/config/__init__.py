"""Configuration: the YAML-based ``CfgNode`` and the ``configurable`` decorator."""

from detectron2._left_out import left_out
from detectron2.config.compat import downgrade_config, upgrade_config
from detectron2.config.config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg

LazyCall = left_out("detectron2.config.LazyCall")
LazyConfig = left_out("detectron2.config.LazyConfig")
instantiate = left_out("detectron2.config.instantiate")

__all__ = [
    "CfgNode",
    "LazyCall",
    "LazyConfig",
    "configurable",
    "downgrade_config",
    "get_cfg",
    "global_cfg",
    "instantiate",
    "set_global_cfg",
    "upgrade_config",
]
