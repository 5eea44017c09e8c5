"""Datasets in the folder layout of Pascal VOC."""

import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

__all__ = ["load_voc_instances", "register_pascal_voc"]

# fmt: off
CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)
# fmt: on


def load_voc_instances(dirname: str, split: str, class_names: Sequence[str]) -> list[dict]:
    """Load annotations from XML files; images are not opened.

    Args:
        dirname: folder with "Annotations", "ImageSets/Main" and "JPEGImages".
        split: a text file in "ImageSets/Main" (without ".txt") that lists image ids.
        class_names: their position becomes the category id.

    Returns:
        one sample for each listed image. Objects marked difficult are among them.
    """
    with PathManager.open(os.path.join(dirname, "ImageSets", "Main", split + ".txt")) as f:
        image_ids = [line.split()[0] for line in f if line.strip()]
    annotation_dir = PathManager.get_local_path(os.path.join(dirname, "Annotations/"))
    return [_load_image(dirname, annotation_dir, id_, class_names) for id_ in image_ids]


def _load_image(
    dirname: str, annotation_dir: str, image_id: str, class_names: Sequence[str]
) -> dict:
    xml_file = os.path.join(annotation_dir, image_id + ".xml")
    with PathManager.open(xml_file) as f:
        root = ET.parse(f).getroot()
    annotations = []
    for obj in root.findall("object"):
        name = obj.find("name").text
        if name not in class_names:
            raise ValueError(f"{xml_file} has an object '{name}'; the classes are {class_names}.")
        corners = [float(obj.find("bndbox").find(c).text) for c in ("xmin", "ymin", "xmax", "ymax")]
        # VOC counts pixels from 1 and includes the last one: (1, 1, W, H) is the whole image.
        corners[0] -= 1.0
        corners[1] -= 1.0
        annotations.append(
            {
                "category_id": class_names.index(name),
                "bbox": corners,
                "bbox_mode": BoxMode.XYXY_ABS,
            }
        )
    return {
        "file_name": os.path.join(dirname, "JPEGImages", image_id + ".jpg"),
        "image_id": image_id,
        "height": int(root.find("size/height").text),
        "width": int(root.find("size/width").text),
        "annotations": annotations,
    }


def register_pascal_voc(
    name: str,
    dirname: str,
    split: str,
    year: int,
    class_names: Sequence[str] = CLASS_NAMES,
) -> None:
    """Register a dataset in the layout of Pascal VOC.

    Args:
        name: of the dataset.
        dirname, split, class_names: see :func:`load_voc_instances`.
        year: 2007 or 2012; AP is computed as that year's challenge did.
    """
    DatasetCatalog.register(name, lambda: load_voc_instances(dirname, split, class_names))
    MetadataCatalog.get(name).set(
        thing_classes=list(class_names), dirname=dirname, year=year, split=split
    )
