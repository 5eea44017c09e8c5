"""The registry of proposal generators."""

from fvcore.common.registry import Registry
from torch import nn

from detectron2._left_out import left_out
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

PROPOSAL_GENERATOR_REGISTRY = Registry("PROPOSAL_GENERATOR")
PROPOSAL_GENERATOR_REGISTRY.__doc__ = """
Proposal generators by name. An entry is called as ``entry(cfg, input_shape)`` and returns a module
that is called as ``module(images, features, gt_instances)`` and returns ``(proposals, losses)``.
"""
PROPOSAL_GENERATOR_REGISTRY.register(left_out("detectron2.modeling.proposal_generator.rrpn.RRPN"))


def build_proposal_generator(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module | None:
    """Build ``MODEL.PROPOSAL_GENERATOR.NAME``.

    The name "PrecomputedProposals" gives None: the model then reads the proposals that come with
    its inputs.
    """
    name = cfg.MODEL.PROPOSAL_GENERATOR.NAME
    if name == "PrecomputedProposals":
        return None
    return PROPOSAL_GENERATOR_REGISTRY.get(name)(cfg, input_shape)
