"""The registry of meta-architectures."""

import torch
from fvcore.common.registry import Registry
from torch import nn

from detectron2.config import CfgNode

META_ARCH_REGISTRY = Registry("META_ARCH")
META_ARCH_REGISTRY.__doc__ = """
Whole models by name. An entry is called as ``entry(cfg)`` and returns a module that maps a list of
input dicts to a dict of losses in training and to a list of output dicts at inference.
"""


def build_model(cfg: CfgNode) -> nn.Module:
    """Build ``MODEL.META_ARCHITECTURE`` on ``MODEL.DEVICE``, with random weights."""
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return model.to(torch.device(cfg.MODEL.DEVICE))
