"""ResNet and ResNeXt (arXiv:1512.03385, arXiv:1611.05431).

Blocks, stem and stages are separate so that heads and other networks can use them, too.
Convolutions are initialised in the order of their creation and consume random numbers in that
order only: equal seeds give equal weights.
"""

from typing import Any

import torch
from fvcore.nn import weight_init
from torch import nn
from torch.nn import functional as F

from detectron2._left_out import left_out, left_out_error
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.modeling.backbone.build import BACKBONE_REGISTRY

__all__ = [
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "DeformBottleneckBlock",
    "ResNet",
    "ResNetBlockBase",
    "build_resnet_backbone",
    "make_stage",
]

ResNetBlockBase = CNNBlockBase
DeformBottleneckBlock = left_out("detectron2.modeling.backbone.resnet.DeformBottleneckBlock")

_BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def _conv(
    in_channels: int, out_channels: int, kernel_size: int, norm: Any, **kwargs: Any
) -> Conv2d:
    """A convolution without bias that keeps the size at stride 1, and its norm."""
    padding = kwargs.get("dilation", 1) * (kernel_size // 2)
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        padding=padding,
        bias=False,
        norm=get_norm(norm, out_channels),
        **kwargs,
    )


class _ResidualBlock(CNNBlockBase):
    """Base of the residual blocks: the shortcut and its sum with the branch."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Any) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = _conv(in_channels, out_channels, 1, norm, stride=stride)

    def _init_weights(self) -> None:
        # The shortcut is created first but filled last.
        convs = [conv for name, conv in self.named_children() if name != "shortcut"]
        for conv in [*convs, self.shortcut]:
            if conv is not None:
                weight_init.c2_msra_fill(conv)

    def _add_shortcut(self, branch: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        branch += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(branch)


class BasicBlock(_ResidualBlock):
    """Two 3 x 3 convolutions, as in ResNet-18 and ResNet-34."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, norm: Any = "BN"
    ) -> None:
        """``stride`` is that of the first convolution; ``norm`` as in ``get_norm``."""
        super().__init__(in_channels, out_channels, stride, norm)
        self.conv1 = _conv(in_channels, out_channels, 3, norm, stride=stride)
        self.conv2 = _conv(out_channels, out_channels, 3, norm)
        self._init_weights()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        return self._add_shortcut(self.conv2(F.relu_(self.conv1(x))), x)


class BottleneckBlock(_ResidualBlock):
    """1 x 1, 3 x 3 and 1 x 1 convolutions, as in ResNet-50 and larger ones; grouped in ResNeXt."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: Any = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ) -> None:
        """
        Args:
            bottleneck_channels: outputs of the first two convolutions.
            num_groups, dilation: of the 3 x 3 convolution.
            norm: as in ``get_norm``.
            stride_in_1x1: the stride is in the first convolution, as in the original models of
                MSRA, and not in the 3 x 3 one, as in those of Torch.
        """
        super().__init__(in_channels, out_channels, stride, norm)
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = _conv(in_channels, bottleneck_channels, 1, norm, stride=stride_1x1)
        self.conv2 = _conv(
            bottleneck_channels,
            bottleneck_channels,
            3,
            norm,
            stride=stride_3x3,
            groups=num_groups,
            dilation=dilation,
        )
        self.conv3 = _conv(bottleneck_channels, out_channels, 1, norm)
        self._init_weights()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        branch = F.relu_(self.conv1(x))
        branch = F.relu_(self.conv2(branch))
        return self._add_shortcut(self.conv3(branch), x)


class BasicStem(CNNBlockBase):
    """7 x 7 convolution and max pooling, stride 4 together."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: Any = "BN") -> None:
        super().__init__(in_channels, out_channels, 4)
        self.conv1 = _conv(in_channels, out_channels, 7, norm, stride=2)
        weight_init.c2_msra_fill(self.conv1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / 4, W / 4)."""
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class ResNet(Backbone):
    """A stem, stages ``res2``, ``res3``, ... and, with ``num_classes``, a linear classifier.

    Outputs are any of "stem", the stages' names and "linear" (logits (N, num_classes)).
    """

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: list[list[CNNBlockBase]],
        num_classes: int | None = None,
        out_features: list[str] | None = None,
        freeze_at: int = 0,
    ) -> None:
        """
        Args:
            stages: one list of blocks per stage, see :meth:`make_stage`.
            out_features: names of the outputs; stages behind the last of them are dropped.
                Default is the last layer alone.
            freeze_at: as in :meth:`freeze`.
        """
        super().__init__()
        self.stem = stem
        self.num_classes = num_classes
        self._out_feature_strides = {"stem": stem.stride}
        self._out_feature_channels = {"stem": stem.out_channels}

        names = [f"res{i}" for i in range(2, 2 + len(stages))]
        if out_features is not None:
            used = max((names.index(name) + 1 for name in out_features if name in names), default=0)
            names, stages = names[:used], stages[:used]
        self.stage_names = tuple(names)
        self.stages: list[nn.Module] = []
        for name, blocks in zip(names, stages):
            self._add_stage(name, blocks)

        last = names[-1] if names else "stem"
        if num_classes is not None:
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.linear = nn.Linear(self._out_feature_channels[last], num_classes)
            nn.init.normal_(self.linear.weight, std=0.01)
            last = "linear"
        self._out_features = [last] if out_features is None else out_features
        children = [name for name, _ in self.named_children()]
        for name in self._out_features:
            assert name in children, (
                f"Unknown output {name!r} of ResNet; there are {', '.join(children)}."
            )
        self.freeze(freeze_at)

    def _add_stage(self, name: str, blocks: list[CNNBlockBase]) -> None:
        assert blocks, f"Stage {name} of ResNet has no blocks."
        for block in blocks:
            assert isinstance(block, CNNBlockBase), (
                f"Blocks of ResNet are CNNBlockBase, got {type(block).__name__} in {name}."
            )
        stage = nn.Sequential(*blocks)
        previous = self.stage_names[len(self.stages) - 1] if self.stages else "stem"
        stride = self._out_feature_strides[previous]
        for block in blocks:
            stride *= block.stride
        self._out_feature_strides[name] = stride
        self._out_feature_channels[name] = blocks[-1].out_channels
        self.add_module(name, stage)
        self.stages.append(stage)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, C, H, W) to the wanted outputs by name, in order of computation."""
        assert x.dim() == 4, f"ResNet takes images (N, C, H, W), got {tuple(x.shape)}."
        outputs = {}
        for name in ("stem", *self.stage_names):
            x = getattr(self, name)(x)
            if name in self._out_features:
                outputs[name] = x
        if "linear" in self._out_features:
            outputs["linear"] = self.linear(torch.flatten(self.avgpool(x), 1))
        return outputs

    def freeze(self, freeze_at: int = 0) -> "ResNet":
        """Freeze the first ``freeze_at`` of stem, res2, res3, ... for good; returns itself."""
        if freeze_at >= 1:
            self.stem.freeze()
        for stage in self.stages[: max(freeze_at - 1, 0)]:
            for block in stage:
                block.freeze()
        return self

    @staticmethod
    def make_stage(
        block_class: type[CNNBlockBase],
        num_blocks: int,
        *,
        in_channels: int,
        out_channels: int,
        **kwargs: Any,
    ) -> list[CNNBlockBase]:
        """Make blocks of one output size, the first of which takes ``in_channels``.

        Further arguments go to every block; ``<name>_per_block`` is a list with one ``<name>``
        for each, such as ``stride_per_block=[2, 1, 1]``.
        """
        suffix = "_per_block"
        lists = {key.removesuffix(suffix): v for key, v in kwargs.items() if key.endswith(suffix)}
        common = {key: value for key, value in kwargs.items() if not key.endswith(suffix)}
        for name, values in lists.items():
            assert len(values) == num_blocks, (
                f"{name}{suffix} needs one value for each of {num_blocks} blocks, got {values}."
            )
            assert name not in common, f"Give {name} or {name}{suffix} to make_stage, not both."
        blocks = []
        for i in range(num_blocks):
            own = {name: values[i] for name, values in lists.items()}
            blocks.append(block_class(in_channels, out_channels, **common, **own))
            in_channels = out_channels
        return blocks

    @staticmethod
    def make_default_stages(
        depth: int, block_class: type[CNNBlockBase] | None = None, **kwargs: Any
    ) -> list[list[CNNBlockBase]]:
        """The four stages of ResNet-``depth`` (18, 34, 50, 101 or 152).

        ``block_class`` is by default what that depth has; ``kwargs`` go to every block.
        """
        return _make_stages(
            depth, 64, 256 if depth >= 50 else 64, 64, block_class=block_class, **kwargs
        )


def _make_stages(
    depth: int,
    in_channels: int,
    out_channels: int,
    bottleneck_channels: int,
    res5_dilation: int = 1,
    block_class: type[CNNBlockBase] | None = None,
    **kwargs: Any,
) -> list[list[CNNBlockBase]]:
    """The four stages of ResNet-``depth``; widths are those of the first and double each time."""
    deep = depth >= 50
    if block_class is None:
        block_class = BottleneckBlock if deep else BasicBlock
    stages = []
    for index, num_blocks in enumerate(_BLOCKS_PER_STAGE[depth]):
        width = 2**index
        own = {"bottleneck_channels": bottleneck_channels * width} if deep else {}
        first_stride = 1 if index == 0 else 2
        if index == 3 and res5_dilation == 2:
            # Dilation takes the place of the stride.
            own["dilation"], first_stride = 2, 1
        stage = ResNet.make_stage(
            block_class,
            num_blocks,
            in_channels=in_channels,
            out_channels=out_channels * width,
            stride_per_block=[first_stride] + [1] * (num_blocks - 1),
            **own,
            **kwargs,
        )
        stages.append(stage)
        in_channels = out_channels * width
    return stages


def make_stage(*args: Any, **kwargs: Any) -> list[CNNBlockBase]:
    """Older name of :meth:`ResNet.make_stage`."""
    return ResNet.make_stage(*args, **kwargs)


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build a ResNet from ``cfg.MODEL.RESNETS``, frozen up to ``cfg.MODEL.BACKBONE.FREEZE_AT``."""
    node = cfg.MODEL.RESNETS
    _check_resnet_config(node)
    stem = BasicStem(input_shape.channels, node.STEM_OUT_CHANNELS, node.NORM)
    kwargs = {"norm": node.NORM}
    if node.DEPTH >= 50:
        kwargs.update(stride_in_1x1=node.STRIDE_IN_1X1, num_groups=node.NUM_GROUPS)
    # All stages are made, whatever is kept: the random numbers used must not depend on the outputs.
    stages = _make_stages(
        node.DEPTH,
        node.STEM_OUT_CHANNELS,
        node.RES2_OUT_CHANNELS,
        node.NUM_GROUPS * node.WIDTH_PER_GROUP,
        node.RES5_DILATION,
        **kwargs,
    )
    return ResNet(
        stem, stages, out_features=node.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT
    )


def _check_resnet_config(node: CfgNode) -> None:
    """Refuse values of ``MODEL.RESNETS`` that cannot be built."""
    if any(node.DEFORM_ON_PER_STAGE):
        raise left_out_error("MODEL.RESNETS.DEFORM_ON_PER_STAGE")
    if node.DEPTH not in _BLOCKS_PER_STAGE:
        depths = ", ".join(map(str, _BLOCKS_PER_STAGE))
        raise KeyError(f"MODEL.RESNETS.DEPTH is one of {depths}, got {node.DEPTH}.")
    assert node.RES5_DILATION in (1, 2), (
        f"MODEL.RESNETS.RES5_DILATION is 1 or 2, got {node.RES5_DILATION}."
    )
    if node.DEPTH < 50:
        for key, value in {"RES2_OUT_CHANNELS": 64, "RES5_DILATION": 1, "NUM_GROUPS": 1}.items():
            assert node[key] == value, (
                f"ResNet-{node.DEPTH} needs MODEL.RESNETS.{key} {value}, got {node[key]}."
            )
