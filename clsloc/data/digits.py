"""The digits dataset: made on the spot, equal for equal seeds, enough to compare detectors.

Handwritten digits from scikit-learn on textures from scikit-image, stored as JPEG images with
COCO JSON annotations under ``$DETECTRON2_DATASETS/digits``::

    digits/digits.json              recipe version, seed and sizes
    digits/annotations/train.json   digits/train/000001.jpg ...
    digits/annotations/val.json     digits/val/000001.jpg ...
"""

import functools
import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

from iopath.common.file_io import file_lock
from PIL import Image

from clsloc.data.registration import register_once
from clsloc.errors import UserError
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

logger = logging.getLogger(__name__)

SPLITS = ("train", "val")
CLASSES = [str(digit) for digit in range(10)]
INDEX_OF_ID = {digit + 1: digit for digit in range(10)}
RECIPE_VERSION = 1  # one more whenever the images or boxes change


def digits_folder() -> Path:
    """Where the dataset lies; reads DETECTRON2_DATASETS at each call."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser() / "digits"


def register_digits() -> None:
    """Register ``digits_train`` and ``digits_val``; they are made when one is first loaded.

    A call after DETECTRON2_DATASETS changed moves both names to the new place.
    """
    folder = digits_folder()
    for split in SPLITS:
        name = f"digits_{split}"
        source = {
            "json_file": str(folder / "annotations" / f"{split}.json"),
            "image_root": str(folder / split),
        }
        if (
            name in DatasetCatalog.list()
            and MetadataCatalog.get(name).json_file != (source["json_file"])
        ):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        load = functools.partial(_load, name, folder, source)
        # The classes are known before the data is made: prediction needs them alone.
        classes = {"thing_classes": CLASSES, "thing_dataset_id_to_contiguous_id": INDEX_OF_ID}
        register_once(name, load, evaluator_type="coco", **classes, **source)


def _load(name: str, folder: Path, source: dict[str, str]) -> list[dict[str, Any]]:
    make_digits(folder)
    return load_coco_json(source["json_file"], source["image_root"], name)


def make_digits(folder: Path, num_train: int = 2000, num_val: int = 500, seed: int = 0) -> None:
    """Write the dataset to ``folder``, unless it is there already (with any sizes and seed).

    Processes may race: one of them writes beside ``folder`` and renames, the others wait, so that
    the folder is complete whenever it exists. Image i of a split depends on ``seed`` and i alone.

    Raises:
        UserError: the folder was written by another version of this recipe.
    """
    if not folder.exists():
        with file_lock(str(folder)):
            if not folder.exists():
                _write(folder, {"train": num_train, "val": num_val}, seed)
    manifest = folder / "digits.json"
    version = json.loads(manifest.read_text())["version"] if manifest.is_file() else None
    if version != RECIPE_VERSION:
        raise UserError(
            f"{str(folder)!r} was not written by version {RECIPE_VERSION} of the digits recipe; "
            "remove that folder, it is made again."
        )


def _write(folder: Path, sizes: dict[str, int], seed: int) -> None:
    start = time.perf_counter()
    logger.info("Making the digits dataset in %s ...", folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    for split, size in sizes.items():
        _write_split(partial, split, size, seed)
    manifest = {"version": RECIPE_VERSION, "seed": seed, "sizes": sizes}
    (partial / "digits.json").write_text(json.dumps(manifest))
    partial.rename(folder)
    logger.info("Made %d images in %.1f s.", sum(sizes.values()), time.perf_counter() - start)


def _write_split(folder: Path, split: str, size: int, seed: int) -> None:
    from clsloc.data.digit_scenes import IMAGE_SIZE, SceneMaker  # imports scikit-learn: slow

    make_scene = SceneMaker(split, seed)
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, size + 1):
        scene = make_scene(image_id)
        file_name = f"{image_id:06d}.jpg"
        Image.fromarray(scene.image).save(folder / split / file_name, quality=95)
        images.append(
            {"id": image_id, "file_name": file_name, "width": IMAGE_SIZE, "height": IMAGE_SIZE}
        )
        for box, label, source in zip(scene.boxes.tolist(), scene.labels, scene.sources):
            x0, y0, x1, y1 = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "source": source,  # which of scikit-learn's digits this is
                }
            )
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
