"""Ours, not the paper's, which names it as future work: top-down pyramids for each task on one
ResNet."""

from torch import Tensor

from clsloc.backbones import BottomUpMaps
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone import build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from grcn.switches import check_switches

__all__ = ["GRCNFPN", "build_grcn_fpn_backbone"]


class GRCNFPN(Backbone):
    """
    A bottom-up network that runs once, and a top-down pyramid on it for each task.

    Outputs "cls_p2" to "cls_p6" and, if split, "loc_p2" to "loc_p6".
    """

    def __init__(
        self,
        bottom_up: Backbone,
        *,
        in_features: list[str],
        out_channels: int,
        norm: str = "",
        fuse_type: str = "sum",
        split: bool = False,
    ):
        """
        Args:
            bottom_up: the shared network.
            in_features, out_channels, norm, fuse_type: as in `FPN`.
            split: whether localisation has a pyramid of its own.
        """
        super().__init__()
        self.bottom_up = bottom_up
        self.tasks = ("cls", "loc") if split else ("cls",)
        for task in self.tasks:
            pyramid = FPN(
                bottom_up=BottomUpMaps(bottom_up.output_shape()),
                in_features=in_features,
                out_channels=out_channels,
                norm=norm,
                top_block=LastLevelMaxPool(),
                fuse_type=fuse_type,
            )
            self.add_module(f"fpn_{task}", pyramid)

    @property
    def size_divisibility(self) -> int:
        return self.fpn_cls.size_divisibility

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) to the maps of all tasks and levels."""
        maps = self.bottom_up(x)
        return {
            f"{task}_{level}": features
            for task in self.tasks
            for level, features in getattr(self, f"fpn_{task}")(maps).items()
        }

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            f"{task}_{level}": shape
            for task in self.tasks
            for level, shape in getattr(self, f"fpn_{task}").output_shape().items()
        }


@BACKBONE_REGISTRY.register()
def build_grcn_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GRCNFPN:
    """The ResNet of `MODEL.RESNETS` with the pyramids of `MODEL.FPN`, one for each task if
    `MODEL.GRCN.FPN_SPLIT`."""
    check_switches(cfg)
    return GRCNFPN(
        build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
        split=cfg.MODEL.GRCN.FPN_SPLIT,
    )
