"""The registry of backbones."""

from fvcore.common.registry import Registry

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.backbone import Backbone

BACKBONE_REGISTRY = Registry("BACKBONE")
BACKBONE_REGISTRY.__doc__ = """
Callables that take (cfg, input_shape: ShapeSpec) and return a Backbone.
"""


def build_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """Build the backbone ``cfg.MODEL.BACKBONE.NAME``.

    Without ``input_shape`` the images have as many channels as ``cfg.MODEL.PIXEL_MEAN``.
    """
    if input_shape is None:
        input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    name = cfg.MODEL.BACKBONE.NAME
    backbone = BACKBONE_REGISTRY.get(name)(cfg, input_shape)
    assert isinstance(backbone, Backbone), (
        f"MODEL.BACKBONE.NAME {name!r} made a {type(backbone).__name__}, which is no Backbone."
    )
    return backbone
