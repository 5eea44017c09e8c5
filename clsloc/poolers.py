"""RoI pooling from scaled copies of the boxes."""

from typing import Any

from torch import Tensor, nn

from clsloc.boxes import scale_boxes
from clsloc.layers.threaded_roi_align import ThreadedROIAlign
from detectron2.config import CfgNode
from detectron2.layers import ROIAlign, ShapeSpec, nonzero_tuple
from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.structures import Boxes

__all__ = ["ScaledROIPooler", "build_box_pooler"]


def build_box_pooler(
    cfg: CfgNode, input_shape: dict[str, ShapeSpec]
) -> tuple["ScaledROIPooler", ShapeSpec]:
    """The pooler that `MODEL.ROI_BOX_HEAD` describes, and the shape of a pooled RoI."""
    names, node = cfg.MODEL.ROI_HEADS.IN_FEATURES, cfg.MODEL.ROI_BOX_HEAD
    pooler = ScaledROIPooler(
        output_size=node.POOLER_RESOLUTION,
        scales=tuple(1.0 / input_shape[name].stride for name in names),
        sampling_ratio=node.POOLER_SAMPLING_RATIO,
        pooler_type=node.POOLER_TYPE,
    )
    shape = ShapeSpec(
        channels=input_shape[names[0]].channels,
        height=node.POOLER_RESOLUTION,
        width=node.POOLER_RESOLUTION,
    )
    return pooler, shape


class ScaledROIPooler(ROIPooler):
    """
    A `ROIPooler` that can look at more (or less) than the box itself, and whose RoIAlign uses all
    threads of a CPU.

    The pyramid level of a RoI is that of the box as given; only the pooling window is scaled.
    Handing enlarged boxes to a plain `ROIPooler` would shift the level too: with a factor of 1.3,
    about a quarter of all boxes would land one level higher. Windows are not clipped; what lies
    outside the image pools as zero.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        """Arguments as of `ROIPooler`."""
        super().__init__(*args, **kwargs)
        self.level_poolers = nn.ModuleList(map(_threaded, self.level_poolers))

    def forward(self, x: list[Tensor], box_lists: list[Boxes], scale: float = 1.0) -> Tensor:
        """
        Args:
            x: feature maps (N, C, H, W), finest first, matching the `scales` of the constructor.
            box_lists: the boxes of each of the N images; they are not modified.
            scale: factor on width and height of the pooling windows, about their centres.

        Returns:
            (R, C, output height, output width), R boxes of all images in order; R may be 0. With
            scale 1 this is bit for bit what `ROIPooler` returns.
        """
        windows = [Boxes(scale_boxes(boxes.tensor, scale)) for boxes in box_lists]
        num_boxes = sum(len(boxes) for boxes in box_lists)
        if scale == 1 or len(self.level_poolers) == 1 or num_boxes == 0:
            return super().forward(x, windows)

        levels = assign_boxes_to_levels(
            box_lists, self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        )
        rois = convert_boxes_to_pooler_format(windows)
        output = x[0].new_zeros((num_boxes, x[0].shape[1], *self.output_size))
        for level, (features, pool) in enumerate(zip(x, self.level_poolers, strict=True)):
            rows = nonzero_tuple(levels == level)[0]
            output.index_put_((rows,), pool(features, rois[rows]))
        return output


def _threaded(pool: nn.Module) -> nn.Module:
    if not isinstance(pool, ROIAlign):
        return pool
    return ThreadedROIAlign(
        pool.output_size, pool.spatial_scale, pool.sampling_ratio, aligned=pool.aligned
    )
