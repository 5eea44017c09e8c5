"""Anchors: the reference boxes of dense predictions.

Shapes: A anchors per cell. Anchors are ordered by row, column, size and aspect ratio.
"""

import math
from collections.abc import Iterator

import torch
from fvcore.common.registry import Registry
from torch import nn

from detectron2._left_out import left_out
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes

ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")
ANCHOR_GENERATOR_REGISTRY.__doc__ = """
Callables that take (cfg, input_shape: list[ShapeSpec]) and return an anchor generator.
"""


class BufferList(nn.Module):
    """Tensors that follow the module's device and dtype but are not saved with it."""

    def __init__(self, buffers: list[torch.Tensor]) -> None:
        super().__init__()
        for index, buffer in enumerate(buffers):
            self.register_buffer(str(index), buffer, persistent=False)

    def __len__(self) -> int:
        return len(self._buffers)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self._buffers.values())


def _per_level(
    values: list[float] | list[list[float]], num_levels: int, name: str
) -> list[list[float]]:
    """One list per level from one for all: ``[x, y]`` or ``[[x, y]]``."""
    assert len(values) > 0, f"{name} of the anchor generator must not be empty."
    if not isinstance(values[0], (list, tuple)):
        values = [values]
    if len(values) == 1:
        return list(values) * num_levels
    assert len(values) == num_levels, (
        f"{name} of the anchor generator has {len(values)} entries for {num_levels} feature maps; "
        "give one entry, or one for each."
    )
    return list(values)


@ANCHOR_GENERATOR_REGISTRY.register()
class DefaultAnchorGenerator(nn.Module):
    """Upright anchors of all sizes and aspect ratios at every cell of several feature maps."""

    box_dim: int = 4
    """Numbers per anchor."""

    @configurable
    def __init__(
        self,
        *,
        sizes: list[float] | list[list[float]],
        aspect_ratios: list[float] | list[list[float]],
        strides: list[int],
        offset: float = 0.5,
    ) -> None:
        """
        Args:
            sizes: square roots of the areas in pixels, one list for each map or one for all.
            aspect_ratios: height / width, one list for each map or one for all.
            strides: pixels per cell of each map.
            offset: where in a cell the centre is, from 0 (top left) to below 1; 0.5 is the middle.
        """
        super().__init__()
        assert 0.0 <= offset < 1.0, f"offset of anchors is at least 0 and below 1, got {offset}."
        self.strides = strides
        self.num_features = len(strides)
        self.offset = offset
        sizes = _per_level(sizes, self.num_features, "sizes")
        aspect_ratios = _per_level(aspect_ratios, self.num_features, "aspect_ratios")
        self.cell_anchors = BufferList(
            [self.generate_cell_anchors(s, a).float() for s, a in zip(sizes, aspect_ratios)]
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        return {
            "sizes": cfg.MODEL.ANCHOR_GENERATOR.SIZES,
            "aspect_ratios": cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS,
            "strides": [shape.stride for shape in input_shape],
            "offset": cfg.MODEL.ANCHOR_GENERATOR.OFFSET,
        }

    @property
    def num_anchors(self) -> list[int]:
        """A of each map."""
        return [len(cell_anchors) for cell_anchors in self.cell_anchors]

    @property
    def num_cell_anchors(self) -> list[int]:
        """Another name of :attr:`num_anchors`."""
        return self.num_anchors

    def generate_cell_anchors(
        self,
        sizes: tuple[float, ...] = (32, 64, 128, 256, 512),
        aspect_ratios: tuple[float, ...] = (0.5, 1, 2),
    ) -> torch.Tensor:
        """(A, 4) anchors centred at the origin, A = sizes times aspect ratios."""
        rows = []
        for size in sizes:
            for ratio in aspect_ratios:
                # width * height = size^2 and height / width = ratio
                width = math.sqrt(size**2.0 / ratio)
                height = ratio * width
                rows.append([-width / 2.0, -height / 2.0, width / 2.0, height / 2.0])
        return torch.tensor(rows)

    def _grid_anchors(self, grid_sizes: list[tuple[int, int]]) -> list[torch.Tensor]:
        """Per map of (height, width) cells, (height * width * A, 4) anchors."""
        anchors = []
        for (height, width), stride, cell in zip(grid_sizes, self.strides, self.cell_anchors):
            xs, ys = (
                torch.arange(
                    self.offset * stride,
                    cells * stride,
                    step=stride,
                    dtype=torch.float32,
                    device=cell.device,
                )
                for cells in (width, height)
            )
            y, x = torch.meshgrid(ys, xs, indexing="ij")
            shifts = torch.stack((x, y, x, y), dim=-1).view(-1, 1, 4)
            anchors.append((shifts + cell).view(-1, 4))
        return anchors

    def forward(self, features: list[torch.Tensor]) -> list[Boxes]:
        """Anchors of each feature map (N, C, H, W): H * W * A boxes, the same for all images."""
        return [Boxes(a) for a in self._grid_anchors([map_.shape[-2:] for map_ in features])]


RotatedAnchorGenerator = left_out("detectron2.modeling.anchor_generator.RotatedAnchorGenerator")
ANCHOR_GENERATOR_REGISTRY.register(RotatedAnchorGenerator)


def build_anchor_generator(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """Build ``cfg.MODEL.ANCHOR_GENERATOR.NAME`` for feature maps of these shapes."""
    return ANCHOR_GENERATOR_REGISTRY.get(cfg.MODEL.ANCHOR_GENERATOR.NAME)(cfg, input_shape)
