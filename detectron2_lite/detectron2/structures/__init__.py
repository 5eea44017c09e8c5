"""Containers for boxes, per-image predictions and batches of images."""

from detectron2._left_out import left_out
from detectron2.structures.boxes import (
    Boxes,
    BoxMode,
    pairwise_ioa,
    pairwise_iou,
    pairwise_point_box_distance,
)
from detectron2.structures.image_list import ImageList
from detectron2.structures.instances import Instances

BitMasks = left_out("detectron2.structures.BitMasks")
Keypoints = left_out("detectron2.structures.Keypoints")
PolygonMasks = left_out("detectron2.structures.PolygonMasks")
ROIMasks = left_out("detectron2.structures.ROIMasks")
RotatedBoxes = left_out("detectron2.structures.RotatedBoxes")
heatmaps_to_keypoints = left_out("detectron2.structures.heatmaps_to_keypoints")
pairwise_iou_rotated = left_out("detectron2.structures.pairwise_iou_rotated")
polygons_to_bitmask = left_out("detectron2.structures.polygons_to_bitmask")

__all__ = [
    "BitMasks",
    "BoxMode",
    "Boxes",
    "ImageList",
    "Instances",
    "Keypoints",
    "PolygonMasks",
    "ROIMasks",
    "RotatedBoxes",
    "heatmaps_to_keypoints",
    "pairwise_ioa",
    "pairwise_iou",
    "pairwise_iou_rotated",
    "pairwise_point_box_distance",
    "polygons_to_bitmask",
]
