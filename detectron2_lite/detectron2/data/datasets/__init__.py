"""The formats of COCO and Pascal VOC, and these datasets themselves, registered at import."""

from detectron2._left_out import left_out
from detectron2.data.datasets import builtin
from detectron2.data.datasets.coco import (
    convert_to_coco_json,
    load_coco_json,
    load_sem_seg,
    register_coco_instances,
)
from detectron2.data.datasets.pascal_voc import load_voc_instances, register_pascal_voc

get_lvis_instances_meta = left_out("detectron2.data.datasets.get_lvis_instances_meta")
load_lvis_json = left_out("detectron2.data.datasets.load_lvis_json")
register_coco_panoptic = left_out("detectron2.data.datasets.register_coco_panoptic")
register_coco_panoptic_separated = left_out(
    "detectron2.data.datasets.register_coco_panoptic_separated"
)
register_lvis_instances = left_out("detectron2.data.datasets.register_lvis_instances")

__all__ = [
    "builtin",
    "convert_to_coco_json",
    "get_lvis_instances_meta",
    "load_coco_json",
    "load_lvis_json",
    "load_sem_seg",
    "load_voc_instances",
    "register_coco_instances",
    "register_coco_panoptic",
    "register_coco_panoptic_separated",
    "register_lvis_instances",
    "register_pascal_voc",
]
