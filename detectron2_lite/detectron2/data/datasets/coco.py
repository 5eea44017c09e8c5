"""Datasets in COCO's JSON format: loading, registering, and converting others to it."""

import contextlib
import datetime
import io
import json
import logging
import os
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from fvcore.common.timer import Timer
from iopath.common.file_io import file_lock

from detectron2._left_out import left_out
from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode
from detectron2.utils.file_io import PathManager

__all__ = ["load_coco_json", "load_sem_seg", "convert_to_coco_json", "register_coco_instances"]

logger = logging.getLogger(__name__)

load_sem_seg = left_out("detectron2.data.datasets.load_sem_seg")


def load_coco_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
) -> list[dict]:
    """Load a JSON file with COCO's instance annotations; images are not opened.

    Args:
        json_file: path of the file.
        image_root: folder to which its image names are relative.
        dataset_name: if given, category ids are mapped to 0, 1, ... in ascending order, and
            "thing_classes" and "thing_dataset_id_to_contiguous_id" are set in the metadata of
            this name. Else the ids are left as they are in the file.
        extra_annotation_keys: keys of annotations to load beside those that are always loaded
            ("iscrowd", "bbox", "keypoints", "category_id", "segmentation").

    Returns:
        one sample for each image, in ascending order of image ids. Annotations whose
        segmentation is not valid are left out.
    """
    from pycocotools.coco import COCO

    timer = Timer()
    json_file = PathManager.get_local_path(json_file)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(json_file)
    if timer.seconds() > 1:
        logger.info(f"Reading {json_file} took {timer.seconds():.2f} seconds.")
    id_map = None if dataset_name is None else _set_category_metadata(coco, dataset_name)

    image_ids = sorted(coco.imgs)
    annotations = [coco.imgToAnns[image_id] for image_id in image_ids]
    _check_annotation_ids(coco, annotations, json_file)
    logger.info(f"{json_file} has {len(image_ids)} images.")

    keys = ["iscrowd", "bbox", "keypoints", "category_id", *(extra_annotation_keys or [])]
    samples = []
    skipped = 0
    for image_id, image_annotations in zip(image_ids, annotations):
        image = coco.imgs[image_id]
        converted = [_load_annotation(ann, keys, id_map) for ann in image_annotations]
        kept = [ann for ann in converted if ann is not None]
        skipped += len(converted) - len(kept)
        samples.append(
            {
                "file_name": os.path.join(image_root, image["file_name"]),
                "height": image["height"],
                "width": image["width"],
                "image_id": image_id,
                "annotations": kept,
            }
        )
    if skipped:
        logger.warning(
            f"{skipped} annotations of {json_file} have no valid polygon and were left out; "
            "a polygon needs at least 3 points."
        )
    return samples


def _set_category_metadata(coco: Any, dataset_name: str) -> dict[int, int]:
    category_ids = sorted(coco.getCatIds())
    id_map = {category_id: i for i, category_id in enumerate(category_ids)}
    meta = MetadataCatalog.get(dataset_name)
    meta.thing_classes = [category["name"] for category in coco.loadCats(category_ids)]
    meta.thing_dataset_id_to_contiguous_id = id_map
    if category_ids and category_ids != list(range(1, len(category_ids) + 1)):
        logger.warning(
            f"The category ids of '{dataset_name}' are not 1 to {len(category_ids)}; "
            "they are mapped to 0, 1, ... in ascending order."
        )
    return id_map


def _check_annotation_ids(coco: Any, annotations: list[list[dict]], json_file: str) -> None:
    in_file = len(coco.dataset.get("annotations", []))
    ids = [ann["id"] for image_annotations in annotations for ann in image_annotations]
    if len(ids) < in_file:
        logger.warning(
            f"{in_file - len(ids)} of {in_file} annotations in {json_file} belong to no image "
            "of it and are left out."
        )
    if "minival" not in json_file:  # these published files are known to repeat ids
        assert len(set(ids)) == len(ids), (
            f"{len(ids) - len(set(ids))} annotation ids in {json_file} occur more than once; "
            "give every annotation its own."
        )


def _load_annotation(ann: dict, keys: Sequence[str], id_map: dict[int, int] | None) -> dict | None:
    """One annotation in the standard format, or None if its segmentation is not valid."""
    assert ann.get("ignore", 0) == 0, (
        f"Annotation {ann['id']} is marked 'ignore', which is not supported; use 'iscrowd'."
    )
    result = {key: ann[key] for key in keys if key in ann}
    if "bbox" in result and len(result["bbox"]) == 0:
        raise ValueError(
            f"Annotation {ann['id']} of image {ann['image_id']} has an empty 'bbox'; "
            "give 4 numbers or remove the annotation."
        )
    if ann.get("segmentation"):
        segmentation = _load_segmentation(ann["segmentation"])
        if segmentation is None:
            return None
        result["segmentation"] = segmentation
    if result.get("keypoints"):
        # COCO's keypoints are indices of pixels, whose centres are half a pixel further.
        result["keypoints"] = _shift_keypoints(result["keypoints"], 0.5)
    result["bbox_mode"] = BoxMode.XYWH_ABS
    if id_map:
        if ann["category_id"] not in id_map:
            raise KeyError(
                f"Annotation {ann['id']} has category_id {ann['category_id']}, "
                f"but the file's 'categories' have the ids {sorted(id_map)}."
            )
        result["category_id"] = id_map[ann["category_id"]]
    return result


def _load_segmentation(segmentation: Any) -> Any:
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return mask_util.frPyObjects(segmentation, *segmentation["size"])
        return segmentation
    polygons = [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= 6]
    return polygons or None


def _shift_keypoints(keypoints: Sequence[float], offset: float) -> list[float]:
    """Move x and y of (x, y, visibility, x, y, ...)."""
    return [v if i % 3 == 2 else v + offset for i, v in enumerate(keypoints)]


def convert_to_coco_dict(dataset_name: str) -> dict:
    """A registered dataset in COCO's format.

    Args:
        dataset_name: a dataset in the standard format with "thing_classes" in its metadata.

    Returns:
        "info", "images", "categories", "annotations" and "licenses". Category ids are those of
        "thing_dataset_id_to_contiguous_id" in the metadata, else positions of classes; images
        without "image_id" get their position.
    """
    dataset_dicts = DatasetCatalog.get(dataset_name)
    meta = MetadataCatalog.get(dataset_name)
    id_map = meta.get("thing_dataset_id_to_contiguous_id") or {}
    dataset_ids = {contiguous: dataset_id for dataset_id, contiguous in id_map.items()}

    images, annotations = [], []
    for position, sample in enumerate(dataset_dicts):
        image = {
            "id": sample.get("image_id", position),
            "width": int(sample["width"]),
            "height": int(sample["height"]),
            "file_name": str(sample["file_name"]),
        }
        images.append(image)
        for ann in sample.get("annotations", []):
            converted = {"id": len(annotations) + 1, "image_id": image["id"]}
            converted.update(_to_coco_annotation(ann))
            converted["category_id"] = dataset_ids.get(ann["category_id"], ann["category_id"])
            annotations.append(converted)
    logger.info(f"Converted {len(images)} images with {len(annotations)} annotations.")
    return {
        "info": {
            "date_created": str(datetime.datetime.now()),
            "description": "COCO-format annotations made from a dataset of Detectron2.",
        },
        "images": images,
        "categories": [
            {"id": dataset_ids.get(i, i), "name": name} for i, name in enumerate(meta.thing_classes)
        ],
        "licenses": None,
        "annotations": annotations,
    }


def _to_coco_annotation(ann: dict) -> dict:
    box = [float(number) for number in ann["bbox"]]
    if len(box) not in (4, 5):
        raise ValueError(f"A 'bbox' has 4 numbers, or 5 if it is rotated, got {ann['bbox']}.")
    if len(box) == 5:
        area = box[2] * box[3]
    else:
        box = BoxMode.convert(box, ann["bbox_mode"], BoxMode.XYXY_ABS)
        area = Boxes([box]).area()[0].item()
        box = BoxMode.convert(box, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    segmentation = ann.get("segmentation")
    if segmentation:
        segmentation, area = _to_coco_segmentation(segmentation)
    result = {
        "bbox": [round(number, 3) for number in box],
        "area": float(area),
        "iscrowd": int(ann.get("iscrowd", 0)),
    }
    if "keypoints" in ann:
        result["keypoints"] = _shift_keypoints(ann["keypoints"], -0.5)
        result["num_keypoints"] = sum(visibility > 0 for visibility in ann["keypoints"][2::3])
    if segmentation:
        result["segmentation"] = segmentation
    return result


def _to_coco_segmentation(segmentation: Any) -> tuple[Any, float]:
    """What can be written as JSON, and the area."""
    if isinstance(segmentation, list):
        polygons = [np.asarray(polygon) for polygon in segmentation]
        return [polygon.tolist() for polygon in polygons], sum(map(_polygon_area, polygons))
    if isinstance(segmentation, dict):
        area = mask_util.area(segmentation).item()
        counts = segmentation["counts"]
        text = counts if isinstance(counts, str) else counts.decode("ascii")
        return {**segmentation, "counts": text}, area
    raise TypeError(
        "A segmentation is a list of polygons or a dict with COCO's run-length encoding, "
        f"got a {type(segmentation).__name__}."
    )


def _polygon_area(polygon: np.ndarray) -> float:
    x, y = polygon[0::2], polygon[1::2]
    return 0.5 * float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Write :func:`convert_to_coco_dict` to a file.

    Args:
        dataset_name: a registered dataset.
        output_file: path of the JSON file.
        allow_cached: leave a file that exists as it is, even if the dataset has changed since.
    """
    PathManager.mkdirs(os.path.dirname(output_file))
    with file_lock(output_file):  # several processes may evaluate the same dataset
        if PathManager.exists(output_file) and allow_cached:
            logger.warning(
                f"{output_file} exists and is used again; remove it if "
                f"'{dataset_name}' has changed."
            )
            return
        logger.info(f"Writing '{dataset_name}' in COCO's format to {output_file}")
        coco_dict = convert_to_coco_dict(dataset_name)
        unfinished = output_file + ".tmp"
        with PathManager.open(unfinished, "w") as f:
            json.dump(coco_dict, f)
        shutil.move(unfinished, output_file)


def register_coco_instances(name: str, metadata: dict, json_file: str, image_root: str) -> None:
    """Register a dataset in COCO's format; doing it again with the same files has no effect.

    Args:
        name: of the dataset.
        metadata: more of it, may be empty.
        json_file: path of the annotations.
        image_root: folder of the images.
    """
    assert isinstance(name, str), f"The name of a dataset is a string, got {name!r}."
    for path in (json_file, image_root):
        assert isinstance(path, (str, os.PathLike)), f"A path is a string, got {path!r}."
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata
    )
