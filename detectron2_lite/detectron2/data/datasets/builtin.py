"""Registers COCO and Pascal VOC under the folder that DETECTRON2_DATASETS names.

The variable is read once, at import; without it the folder is ``datasets`` in the working
directory.
"""

import os

from detectron2.data.catalog import MetadataCatalog
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.datasets.coco import register_coco_instances
from detectron2.data.datasets.pascal_voc import register_pascal_voc

# Name: folder of images, annotations.
_PREDEFINED_SPLITS_COCO = {
    "coco": {
        name: (f"coco/{images}", f"coco/annotations/{annotations}.json")
        for name, images, annotations in (
            ("coco_2014_train", "train2014", "instances_train2014"),
            ("coco_2014_val", "val2014", "instances_val2014"),
            ("coco_2014_minival", "val2014", "instances_minival2014"),
            ("coco_2014_valminusminival", "val2014", "instances_valminusminival2014"),
            ("coco_2017_train", "train2017", "instances_train2017"),
            ("coco_2017_val", "val2017", "instances_val2017"),
            ("coco_2017_test", "test2017", "image_info_test2017"),
            ("coco_2017_test-dev", "test2017", "image_info_test-dev2017"),
            ("coco_2017_val_100", "val2017", "instances_val2017_100"),
        )
    }
}

_PREDEFINED_SPLITS_VOC = (
    (2007, ("trainval", "train", "val", "test")),
    (2012, ("trainval", "train", "val")),
)


def register_all_coco(root: str) -> None:
    """Register COCO 2014 and 2017 in the folder ``root``."""
    for family, splits in _PREDEFINED_SPLITS_COCO.items():
        for name, (images, annotations) in splits.items():
            register_coco_instances(
                name,
                _get_builtin_metadata(family),
                os.path.join(root, annotations),
                os.path.join(root, images),
            )


def register_all_pascal_voc(root: str) -> None:
    """Register Pascal VOC 2007 and 2012 in the folder ``root``."""
    for year, splits in _PREDEFINED_SPLITS_VOC:
        for split in splits:
            name = f"voc_{year}_{split}"
            register_pascal_voc(name, os.path.join(root, f"VOC{year}"), split, year)
            MetadataCatalog.get(name).evaluator_type = "pascal_voc"


_root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_all_coco(_root)
register_all_pascal_voc(_root)
