"""Layers and functions that PyTorch lacks or that need a small extra for detection."""

from detectron2._left_out import left_out
from detectron2.layers.batch_norm import (
    CycleBatchNormList,
    FrozenBatchNorm2d,
    NaiveSyncBatchNorm,
    get_norm,
)
from detectron2.layers.blocks import CNNBlockBase, DepthwiseSeparableConv2d
from detectron2.layers.losses import ciou_loss, diou_loss
from detectron2.layers.nms import batched_nms, nms
from detectron2.layers.roi_align import ROIAlign, roi_align
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.layers.wrappers import (
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    Linear,
    cat,
    cross_entropy,
    empty_input_loss_func_wrapper,
    interpolate,
    move_device_like,
    nonzero_tuple,
    shapes_to_tensor,
)

ASPP = left_out("detectron2.layers.ASPP")
DeformConv = left_out("detectron2.layers.DeformConv")
ModulatedDeformConv = left_out("detectron2.layers.ModulatedDeformConv")
ROIAlignRotated = left_out("detectron2.layers.ROIAlignRotated")
batched_nms_rotated = left_out("detectron2.layers.batched_nms_rotated")
nms_rotated = left_out("detectron2.layers.nms_rotated")
paste_masks_in_image = left_out("detectron2.layers.paste_masks_in_image")
roi_align_rotated = left_out("detectron2.layers.roi_align_rotated")

__all__ = [
    "ASPP",
    "BatchNorm2d",
    "CNNBlockBase",
    "Conv2d",
    "ConvTranspose2d",
    "CycleBatchNormList",
    "DeformConv",
    "DepthwiseSeparableConv2d",
    "FrozenBatchNorm2d",
    "Linear",
    "ModulatedDeformConv",
    "NaiveSyncBatchNorm",
    "ROIAlign",
    "ROIAlignRotated",
    "ShapeSpec",
    "batched_nms",
    "batched_nms_rotated",
    "cat",
    "ciou_loss",
    "cross_entropy",
    "diou_loss",
    "empty_input_loss_func_wrapper",
    "get_norm",
    "interpolate",
    "move_device_like",
    "nms",
    "nms_rotated",
    "nonzero_tuple",
    "paste_masks_in_image",
    "roi_align",
    "roi_align_rotated",
    "shapes_to_tensor",
]
