"""ResNet with a map for each task, and ResNet-det."""

from collections.abc import Iterable
from copy import deepcopy

import torch.nn.functional as F
from torch import Tensor, nn

from clsloc.checkpoint.copies import fill_copies
from clsloc.config import check_choice
from clsloc.errors import UserError
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from grcn.switches import check_switches

__all__ = ["GRCNResNet", "build_grcn_resnet_backbone", "make_res_stage"]

# Up to 34, blocks are basic ones; above, bottlenecks.
NUM_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class StridedBasicBlock(BasicBlock):
    """A `BasicBlock` that can be run at a larger stride, with the same weights."""

    def forward(self, x: Tensor, stride: int = 1) -> Tensor:
        """
        Args:
            x: (N, in_channels, H, W).
            stride: multiplies that of the block. Its 3x3 convolution sees all of `x`: a stride is
                not the same as every other row and column of the input.
        """
        conv = self.conv1
        out = F.conv2d(x, conv.weight, conv.bias, conv.stride[0] * stride, conv.padding)
        out = self.conv2(F.relu_(out if conv.norm is None else conv.norm(out)))
        every_other = x[:, :, ::stride, ::stride]
        shortcut = every_other if self.shortcut is None else self.shortcut(every_other)
        return F.relu_(out + shortcut)


def make_res_stage(
    cfg: CfgNode, number: int, *, stride: int, in_channels: int | None = None
) -> list[CNNBlockBase]:
    """
    The blocks of stage `number`, 2 to 5, of the ResNet of `MODEL.RESNETS`.

    Args:
        stride: of the first block, in its first convolution and its shortcut.
        in_channels: those of the stage before by default.
    """
    node = cfg.MODEL.RESNETS
    check_choice("MODEL.RESNETS.DEPTH", node.DEPTH, NUM_BLOCKS)
    widening = 2 ** (number - 2)
    out_channels = node.RES2_OUT_CHANNELS * widening
    if in_channels is None:
        in_channels = node.STEM_OUT_CHANNELS if number == 2 else out_channels // 2
    num_blocks = NUM_BLOCKS[node.DEPTH][number - 2]
    kwargs = {
        "stride_per_block": [stride] + [1] * (num_blocks - 1),
        "in_channels": in_channels,
        "out_channels": out_channels,
        "norm": node.NORM,
    }
    if node.DEPTH < 50:
        return ResNet.make_stage(StridedBasicBlock, num_blocks, **kwargs)
    return ResNet.make_stage(
        BottleneckBlock,
        num_blocks,
        bottleneck_channels=node.NUM_GROUPS * node.WIDTH_PER_GROUP * widening,
        num_groups=node.NUM_GROUPS,
        stride_in_1x1=node.STRIDE_IN_1X1,
        **kwargs,
    )


class GRCNResNet(Backbone):
    """
    Stem, res2, res3 and res4 of a ResNet. The last `split` blocks of res4 exist for each task;
    those before have one set of weights, and run once for each stride that is asked for.

    Outputs "cls" and, if split, "loc". Blocks of the localisation path are in `res4_loc`; they
    start as copies, and a checkpoint without them fills them with those of `res4`.

    NOTE(paper): the text shares the kernels of the first bottlenecks, and gives the localisation
    map alone a stride of 8. One run for both would need a downsampling behind the shared part that
    nobody describes, so that they run twice.
    """

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: list[list[CNNBlockBase]],
        *,
        split: int = 0,
        strides: tuple[int, int] = (2, 2),
        freeze_at: int = 0,
    ):
        """
        Args:
            stem: the first layers.
            stages: blocks of res2, res3, res4 and for ResNet-det res5. If split, the first block
                of res4 has stride 1, and is a `StridedBasicBlock` or a bottleneck with the stride
                in its 1x1 convolutions, where a stride of 2 is the same as every other row and
                column of its input.
            split: blocks of res4 that exist twice.
            strides: of res4 for classification and for localisation, if split.
            freeze_at: 1 freezes the stem, 2 also res2, and so on.
        """
        super().__init__()
        self.stem = stem
        self.stage_names = [f"res{i}" for i in range(2, 2 + len(stages))]
        for name, blocks in zip(self.stage_names, stages, strict=True):
            self.add_module(name, nn.Sequential(*blocks))
        self.split, self.strides = split, strides
        self.num_shared = len(stages[2]) - split
        if split:
            self.res4_loc = nn.Sequential(*(deepcopy(block) for block in stages[2][-split:]))
            fill_copies(
                self, {f"res4_loc.{i}": f"res4.{self.num_shared + i}" for i in range(split)}
            )
        stride = stem.stride
        for block in (block for blocks in stages for block in blocks):
            stride *= block.stride
        self._strides = tuple(stride * s for s in strides) if split else (stride,)
        self._out_channels = stages[-1][-1].out_channels
        self._freeze(freeze_at)

    def _freeze(self, freeze_at: int) -> None:
        frozen = ["stem", *self.stage_names][:freeze_at]
        for name in frozen + ["res4_loc"] * ("res4" in frozen and self.split > 0):
            part = getattr(self, name)
            for block in [part] if name == "stem" else part:
                block.freeze()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) to {"cls": (N, C, H', W'), "loc": ...}; sizes are rounded up."""
        x = self.stem(x)
        if not self.split:
            for name in self.stage_names:
                x = getattr(self, name)(x)
            return {"cls": x}
        x = self.res3(self.res2(x))
        shared = {stride: self._run_shared(x, stride) for stride in dict.fromkeys(self.strides)}
        cls_stride, loc_stride = self.strides
        return {
            "cls": _run(list(self.res4)[self.num_shared :], shared[cls_stride]),
            "loc": _run(self.res4_loc, shared[loc_stride]),
        }

    def _run_shared(self, x: Tensor, stride: int) -> Tensor:
        """The blocks of res4 that both tasks share."""
        first, *others = list(self.res4)[: self.num_shared]
        if isinstance(first, StridedBasicBlock):
            x = first(x, stride)
        else:
            x = first(x[:, :, ::stride, ::stride])
        return _run(others, x)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            task: ShapeSpec(channels=self._out_channels, stride=stride)
            for task, stride in zip(("cls", "loc"), self._strides)
        }


def _run(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


@BACKBONE_REGISTRY.register()
def build_grcn_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GRCNResNet:
    """The ResNet of `MODEL.RESNETS`, up to res4, split as `MODEL.GRCN` says; ResNet-det has res5
    with stride 1 behind it."""
    check_switches(cfg)
    node, resnets = cfg.MODEL.GRCN, cfg.MODEL.RESNETS
    stem = BasicStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, resnets.NORM)
    stages = [
        make_res_stage(cfg, 2, stride=1),
        make_res_stage(cfg, 3, stride=2),
        make_res_stage(cfg, 4, stride=1 if node.RES4_SPLIT else 2),
    ]
    if node.RES_DET:
        stages.append(make_res_stage(cfg, 5, stride=1))
    if not 0 <= node.RES4_SPLIT < len(stages[2]):
        raise UserError(
            f"MODEL.GRCN.RES4_SPLIT must lie in [0, {len(stages[2]) - 1}], as conv4 of "
            f"ResNet-{resnets.DEPTH} has {len(stages[2])} blocks, got {node.RES4_SPLIT}."
        )
    return GRCNResNet(
        stem,
        stages,
        split=node.RES4_SPLIT,
        strides=tuple(2 if down == "keep" else 1 for down in (node.CLS_DOWN, node.LOC_DOWN)),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
