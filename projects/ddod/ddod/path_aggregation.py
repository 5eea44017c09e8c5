"""A pyramid with a second, bottom-up path: the one that DDOD-X is taken to have."""

from collections.abc import Sequence

from torch import Tensor, nn

from clsloc.backbones import BottomUpMaps
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import FPN, Backbone

__all__ = ["PathAggregation"]


class PathAggregation(Backbone):
    """
    FPN whose maps are summed up once more from fine to coarse ("Path Aggregation Network for
    Instance Segmentation", CVPR 2018, section 3.1): N_i = conv(P_i + downsampled N_(i - 1)).

    NOTE(paper): without ReLUs, as the maps of FPN.
    """

    def __init__(
        self,
        *,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        norm: str,
        top_block: nn.Module,
        fuse_type: str = "sum",
    ):
        """
        Args:
            bottom_up, in_features, out_channels, norm, fuse_type: see Detectron2's `FPN`.
            top_block: coarser levels, from its `in_feature`: a map of `bottom_up` or of this
                pyramid.
        """
        super().__init__()
        self.bottom_up = bottom_up
        given = BottomUpMaps(bottom_up.output_shape())
        self.fpn = FPN(given, list(in_features), out_channels, norm, fuse_type=fuse_type)
        self.top_block = top_block
        shapes = self.fpn.output_shape()
        steps = len(shapes) - 1
        self.down = nn.ModuleList(_conv(out_channels, norm, stride=2) for _ in range(steps))
        self.fuse = nn.ModuleList(_conv(out_channels, norm, stride=1) for _ in range(steps))
        coarsest = int(list(shapes)[-1][1:])
        self._top = [f"p{coarsest + i}" for i in range(1, top_block.num_levels + 1)]
        for name in self._top:
            shapes[name] = ShapeSpec(channels=out_channels, stride=2 ** int(name[1:]))
        self._shapes = shapes

    @property
    def size_divisibility(self) -> int:
        return self.fpn.size_divisibility

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(self._shapes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) images to maps by name, fine to coarse."""
        below = self.bottom_up(x)
        maps = self.fpn(below)
        names = list(maps)
        for finer, name, down, fuse in zip(names, names[1:], self.down, self.fuse, strict=False):
            maps[name] = fuse(maps[name] + down(maps[finer]))
        source = self.top_block.in_feature
        top = self.top_block(below[source] if source in below else maps[source])
        return maps | dict(zip(self._top, top, strict=True))


def _conv(channels: int, norm: str, stride: int) -> Conv2d:
    conv = Conv2d(
        channels,
        channels,
        3,
        stride=stride,
        padding=1,
        bias=not norm,
        norm=get_norm(norm, channels),
    )
    nn.init.kaiming_uniform_(conv.weight, a=1)  # as the convolutions of `FPN`
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
