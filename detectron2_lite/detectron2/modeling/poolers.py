"""Pools boxes from the feature map whose level suits their size.

Shapes: R boxes over all images, L maps.
"""

import math

import torch
from torch import nn
from torchvision.ops import RoIPool

from detectron2._left_out import left_out_error
from detectron2.layers import ROIAlign, cat, nonzero_tuple
from detectron2.structures import Boxes

__all__ = ["ROIPooler"]


def assign_boxes_to_levels(
    box_lists: list[Boxes],
    min_level: int,
    max_level: int,
    canonical_box_size: int,
    canonical_level: int,
) -> torch.Tensor:
    """Level of each box by its area (FPN, arXiv:1612.03144, eq. 1).

    A box of ``canonical_box_size`` squared pixels belongs to ``canonical_level``, one of half the
    side to the level below.

    Returns:
        (R,) int64 level minus ``min_level``, with levels limited to the two given ones.
    """
    sizes = torch.sqrt(cat([boxes.area() for boxes in box_lists]))
    # The small number brings boxes of exactly a power of two up to their level.
    levels = torch.floor(canonical_level + torch.log2(sizes / canonical_box_size + 1e-8))
    return torch.clamp(levels, min=min_level, max=max_level).to(torch.int64) - min_level


def convert_boxes_to_pooler_format(box_lists: list[Boxes]) -> torch.Tensor:
    """(R, 5): the index of its image before each box, as RoI poolers take them."""
    boxes = cat([boxes.tensor for boxes in box_lists])
    images = torch.arange(len(box_lists), dtype=boxes.dtype, device=boxes.device)
    counts = torch.tensor([len(b) for b in box_lists], device=boxes.device)
    images = torch.repeat_interleave(images, counts, output_size=len(boxes))
    return cat([images[:, None], boxes], dim=1)


class ROIPooler(nn.Module):
    """Pools boxes of all sizes from one map or a pyramid of maps to one grid size."""

    def __init__(
        self,
        output_size: int | tuple[int, int] | list[int],
        scales: list[float],
        sampling_ratio: int,
        pooler_type: str,
        canonical_box_size: int = 224,
        canonical_level: int = 4,
    ) -> None:
        """
        Args:
            output_size: side, or height and width, of the grid.
            scales: 1 / stride of each map, powers of two, from fine to coarse without a gap.
            sampling_ratio: as in ``ROIAlign``.
            pooler_type: ROIAlignV2, ROIAlign (its older variant, half a pixel off) or ROIPool.
            canonical_box_size, canonical_level: as in :func:`assign_boxes_to_levels`; level k has
                stride 2^k. The defaults are those of ImageNet models, 224 pixels on stride 16.
        """
        super().__init__()
        if isinstance(output_size, int):
            output_size = (output_size, output_size)
        assert len(output_size) == 2, f"output_size is height and width, got {output_size}."
        assert canonical_box_size > 0, f"canonical_box_size is positive, got {canonical_box_size}."
        self.output_size = output_size
        self.level_poolers = nn.ModuleList(
            _make_pooler(pooler_type, output_size, scale, sampling_ratio) for scale in scales
        )
        levels = [-math.log2(scale) for scale in scales]
        first = round(levels[0])
        assert all(math.isclose(level, round(level)) for level in levels), (
            f"Strides of the maps to pool from must be powers of two, got scales {scales}."
        )
        assert first >= 0 and [round(level) for level in levels] == list(
            range(first, first + len(scales))
        ), f"Scales of the maps to pool from must halve from one to the next, got {scales}."
        self.min_level = first
        self.max_level = first + len(scales) - 1
        self.canonical_level = canonical_level
        self.canonical_box_size = canonical_box_size

    def forward(self, x: list[torch.Tensor], box_lists: list[Boxes]) -> torch.Tensor:
        """Pool boxes.

        Args:
            x: L maps, each (N, C, H_l, W_l).
            box_lists: N lists of boxes in image pixels; they may be empty, and N may be 0.

        Returns:
            (R, C, output height, output width), in the order of the boxes.
        """
        assert isinstance(x, list) and isinstance(box_lists, list), (
            f"ROIPooler takes two lists, got {type(x).__name__} and {type(box_lists).__name__}."
        )
        assert len(x) == len(self.level_poolers), (
            f"ROIPooler was made for {len(self.level_poolers)} maps, got {len(x)}."
        )
        assert len(box_lists) == x[0].size(0), (
            f"ROIPooler got boxes of {len(box_lists)} images with maps of {x[0].size(0)}."
        )
        if not box_lists:
            return x[0].new_zeros((0, x[0].size(1), *self.output_size))
        rois = convert_boxes_to_pooler_format(box_lists)
        if len(self.level_poolers) == 1:
            return self.level_poolers[0](x[0], rois)
        levels = assign_boxes_to_levels(
            box_lists,
            self.min_level,
            self.max_level,
            self.canonical_box_size,
            self.canonical_level,
        )
        chosen = [nonzero_tuple(levels == level)[0] for level in range(len(x))]
        # Levels without boxes are pooled, too: every map has to get a gradient.
        pooled = torch.cat(
            [
                pooler(map_, rois[index])
                for pooler, map_, index in zip(self.level_poolers, x, chosen)
            ]
        )
        # Zeros are left only for boxes turned inside out, which have no level.
        output = pooled.new_zeros((len(rois), *pooled.shape[1:]))
        return output.index_copy_(0, torch.cat(chosen), pooled)


def _make_pooler(
    pooler_type: str, output_size: tuple[int, int], scale: float, sampling_ratio: int
) -> nn.Module:
    if pooler_type in ("ROIAlign", "ROIAlignV2"):
        return ROIAlign(output_size, scale, sampling_ratio, aligned=pooler_type == "ROIAlignV2")
    if pooler_type == "ROIPool":
        return RoIPool(output_size, spatial_scale=scale)
    if pooler_type == "ROIAlignRotated":
        raise left_out_error("ROIAlignRotated")
    raise ValueError(f"Unknown RoI pooler {pooler_type!r}; use ROIAlignV2, ROIAlign or ROIPool.")
