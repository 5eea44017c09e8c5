"""VGG16 with a map for each task."""

from copy import deepcopy

import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from clsloc.checkpoint.copies import fill_copies
from clsloc.layers import VGGBlock, make_vgg16_blocks
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from grcn.switches import check_switches

__all__ = ["GRCNVGG16", "build_grcn_vgg_backbone", "pool_stride_1"]


def pool_stride_1(x: Tensor) -> Tensor:
    """
    2x2 max pooling of stride 1 that keeps the size: pool(2,2,1) of Table 3.

    A row of zeros is added below and a column to the right, as TensorFlow does it, so that the
    window lies half a cell to the lower right; maps must not be negative.

    Args:
        x: (N, C, H, W).
    """
    return F.max_pool2d(F.pad(x, (0, 1, 0, 1)), kernel_size=2, stride=1)


class GRCNVGG16(Backbone):
    """
    conv1 to conv5 of VGG16 without pool5; blocks from `split_block` on exist for each task.

    Outputs "cls" and, if split, "loc". The blocks of the classification path have the names of
    VGG16, those of the localisation path end in "_loc"; they start as copies, and a checkpoint
    without them fills them with the former.
    """

    def __init__(
        self,
        blocks: list[VGGBlock],
        *,
        split_block: int = 0,
        cls_down: str = "keep",
        loc_down: str = "keep",
        freeze_at: int = 0,
    ):
        """
        Args:
            blocks: conv1 to conv5.
            split_block: the first block that exists twice, 1 to 5; 0 for none.
            cls_down, loc_down: what stands in the place of pool4: "keep" (2x2, stride 2), "none",
                and for the localisation path "conv" (2x2, stride 2) or "pool_s1".
            freeze_at: so many blocks are not trained.
        """
        super().__init__()
        self.split_block = split_block
        self.down = {"cls": cls_down, "loc": loc_down}
        self.out_channels = blocks[-1].out_channels
        for number, block in enumerate(blocks, start=1):
            if number <= freeze_at:
                block.freeze()
            self.add_module(f"conv{number}", block)
        if not split_block:
            return
        copied = range(split_block, len(blocks) + 1)
        for number in copied:
            self.add_module(f"conv{number}_loc", deepcopy(blocks[number - 1]))
        fill_copies(self, {f"conv{number}_loc": f"conv{number}" for number in copied})
        if loc_down == "conv":
            channels = blocks[3].out_channels
            # NOTE(paper): ReLU, as behind every convolution of VGG16; the text does not say.
            self.down_loc = Conv2d(channels, channels, 2, stride=2, activation=F.relu_)
            weight_init.c2_msra_fill(self.down_loc)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) to {"cls": (N, 512, H', W'), "loc": ...}; sizes are rounded down."""
        if not self.split_block:
            return {"cls": self._run("cls", x, 1, 5)}
        shared = self._run("cls", x, 1, self.split_block - 1)
        return {
            "cls": self._run("cls", shared, self.split_block, 5),
            "loc": self._run("loc", shared, self.split_block, 5),
        }

    def _run(self, task: str, x: Tensor, first: int, last: int) -> Tensor:
        """Blocks `first` to `last`, each behind the downsampling that precedes it."""
        for number in range(first, last + 1):
            if number == 5:
                x = self._replaced_pool4(task, x)
            elif number > 1:
                x = F.max_pool2d(x, 2)
            x = self._block(task, number)(x)
        return x

    def _block(self, task: str, number: int) -> nn.Module:
        split = task == "loc" and number >= self.split_block
        return getattr(self, f"conv{number}_loc" if split else f"conv{number}")

    def _replaced_pool4(self, task: str, x: Tensor) -> Tensor:
        match self.down[task]:
            case "none":
                return x
            case "conv":
                return self.down_loc(x)
            case "pool_s1":
                return pool_stride_1(x)
            case _:
                return F.max_pool2d(x, 2)

    def output_shape(self) -> dict[str, ShapeSpec]:
        tasks = ("cls", "loc") if self.split_block else ("cls",)
        return {
            task: ShapeSpec(
                channels=self.out_channels,
                stride=8 if self.down[task] in ("none", "pool_s1") else 16,
            )
            for task in tasks
        }


@BACKBONE_REGISTRY.register()
def build_grcn_vgg_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GRCNVGG16:
    """VGG16 as `MODEL.GRCN` splits it; the first `MODEL.BACKBONE.FREEZE_AT` blocks are frozen."""
    check_switches(cfg)
    node = cfg.MODEL.GRCN
    return GRCNVGG16(
        make_vgg16_blocks(input_shape.channels),
        split_block=node.SPLIT_BLOCK,
        cls_down=node.CLS_DOWN,
        loc_down=node.LOC_DOWN,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
