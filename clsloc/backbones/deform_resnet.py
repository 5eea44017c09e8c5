"""ResNet and ResNeXt with deformable 3x3 convolutions, on any device."""

from collections.abc import Sequence

from clsloc.layers import DeformConv2d
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ResNet, build_resnet_backbone

__all__ = ["build_deform_resnet_backbone", "make_deformable"]


def make_deformable(
    resnet: ResNet, stages: Sequence[bool], *, modulated: bool = False, deform_groups: int = 1
) -> ResNet:
    """
    Replace the 3x3 convolutions of every block of some stages, in place.

    Weights and norms keep their names, so that a checkpoint of the plain network loads; new are
    the convolutions that predict offsets.

    Args:
        resnet: of any blocks.
        stages: whether res2, res3, ... are deformable.
        modulated, deform_groups: see `DeformConv2d`.
    """
    for stage, wanted in zip(resnet.stages, stages):
        for parent in list(stage.modules()) if wanted else ():
            for name, conv in list(parent.named_children()):
                if isinstance(conv, Conv2d) and conv.kernel_size == (3, 3):
                    new = DeformConv2d.replacing(
                        conv, modulated=modulated, deform_groups=deform_groups
                    )
                    # A frozen stage stays frozen.
                    new.offset.requires_grad_(conv.weight.requires_grad)
                    setattr(parent, name, new)
    return resnet


@BACKBONE_REGISTRY.register()
def build_deform_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """
    Detectron2's `build_resnet_backbone` with the keys ``MODEL.RESNETS.DEFORM_*`` on the layer of
    this package, which runs on CPUs too and needs no compiled part of Detectron2.
    """
    node = cfg.MODEL.RESNETS
    if not any(node.DEFORM_ON_PER_STAGE):
        return build_resnet_backbone(cfg, input_shape)
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False] * 4
    return make_deformable(
        build_resnet_backbone(plain, input_shape),
        node.DEFORM_ON_PER_STAGE,
        modulated=node.DEFORM_MODULATED,
        deform_groups=node.DEFORM_NUM_GROUPS,
    )
