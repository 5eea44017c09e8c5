"""Registers datasets by name from plain lists, as often as one likes and in any process.

Nothing is read before a dataset is loaded, so a stored config may name datasets that do not exist
on the machine where it is used for prediction.
"""

import functools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from clsloc.data import wider_face
from clsloc.data.check import is_box, is_crowd_mark, is_side
from clsloc.data.voc import load_voc_folder, voc_class_names
from clsloc.errors import UserError
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

# Larger files, of which reading twice would be felt, are no home-made ones.
_MAX_BYTES = 1 << 26
Loader = Callable[[], list[dict[str, Any]]]


def register_datasets(specs: Iterable[Sequence[Any]]) -> None:
    """Register every dataset of a list such as ``cfg.CLSLOC.DATASETS``.

    Args:
        specs: lists ``[name, "coco", json_file, image_root]``, ``[name, "voc", directory, split]``,
            ``[name, "voc", directory, split, class_names]`` or
            ``[name, "wider_face", root, split]``.

    Raises:
        UserError: a list has another form, or its name is taken by another dataset.
    """
    for spec in specs:
        match list(spec):
            case [str() as name, "coco", str() as json_file, str() as image_root]:
                register_coco(name, json_file, image_root)
            case [str() as name, "voc", str() as directory, str() as split]:
                register_voc(name, directory, split)
            case [str() as name, "voc", str() as directory, str() as split, [*class_names]]:
                register_voc(name, directory, split, class_names)
            case [str() as name, "wider_face", str() as root, str() as split]:
                register_wider_face(name, root, split)
            case _:
                raise UserError(
                    f"The dataset {spec!r} cannot be registered; write [name, 'coco', json_file, "
                    "image_root], [name, 'voc', directory, split] or [name, 'wider_face', root, "
                    "split]."
                )


def register_coco(name: str, json_file: str, image_root: str) -> None:
    """Register a COCO JSON file and the folder from which its ``file_name`` entries count.

    The category ids may have gaps; predictions are written with the dataset's own ids.
    """
    load = functools.partial(_load_coco, name, json_file, image_root)
    register_once(name, load, json_file=json_file, image_root=image_root, evaluator_type="coco")


def _load_coco(name: str, json_file: str, image_root: str) -> list[dict[str, Any]]:
    _check_exists(name, json_file, os.path.isfile)
    _check_exists(name, image_root, os.path.isdir)
    try:
        _check_lists(json_file)
        samples = load_coco_json(json_file, image_root, name)
        _check_values(samples)
        return samples
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"The annotation file {json_file!r} is no valid JSON ({error}); export or copy it "
            "again."
        ) from error
    except KeyError as error:
        # Detectron2's own sentence about an unknown category, or the name of a missing key.
        reason = f"it is wrong at {' '.join(str(error.args[0]).split())!r}"
    except (AssertionError, TypeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split()) or "its structure is not that of COCO"
    raise UserError(
        f"The annotation file {json_file!r} cannot be used ({reason}); look at it with "
        "tools/check_dataset.py, whose --fix completes what it can."
    )


def _check_lists(json_file: str) -> None:
    """Without categories there is nothing to learn, and of images with one id only the last is
    loaded, with the boxes of all."""
    if os.path.getsize(json_file) > _MAX_BYTES:
        return
    with open(json_file, encoding="utf-8") as file:
        content = json.load(file)
    if content["categories"] == []:
        raise ValueError("it lists no categories")
    times = Counter(image["id"] for image in content["images"])
    twice = [key for key, count in times.items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice)} image ids are there more than once, such as {twice[0]!r}")


def _check_values(samples: Iterable[dict[str, Any]]) -> None:
    """What loads and would fail in the step that draws the image, perhaps hours later."""
    for sample in samples:
        if not is_side(sample["height"]) or not is_side(sample["width"]):
            size = f"height {sample['height']!r} and width {sample['width']!r}"
            raise ValueError(f"the image {sample['image_id']} has {size}")
        for annotation in sample.get("annotations", ()):
            if not is_box(annotation.get("bbox")):
                box = f"the box {annotation['bbox']!r}" if "bbox" in annotation else "no box"
                raise ValueError(f"an object of the image {sample['image_id']} has {box}")
            if annotation.get("iscrowd", 0) is None:
                annotation["iscrowd"] = 0  # null in the file: Detectron2 would take it for a crowd
            if not is_crowd_mark(annotation.get("iscrowd")):
                crowd = f"the iscrowd {annotation['iscrowd']!r}"
                raise ValueError(f"an object of the image {sample['image_id']} has {crowd}")


def register_voc(
    name: str, directory: str, split: str, class_names: Sequence[str] | None = None
) -> None:
    """Register a folder in the layout of PASCAL VOC.

    Args:
        name: the name of the dataset.
        directory: holds ``Annotations``, ``ImageSets/Main`` and ``JPEGImages``.
        split: the list ``ImageSets/Main/<split>.txt``.
        class_names: the classes in the order of their indices; all classes of the folder
            ``Annotations`` in alphabetical order if None or empty, so that all splits agree.
    """
    given = list(class_names) if class_names else None
    register_once(
        name,
        functools.partial(_load_voc, name, directory, split, given),
        dirname=directory,
        split=split,
        given_classes=given,
        evaluator_type="coco",
    )


def _load_voc(
    name: str, directory: str, split: str, class_names: list[str] | None
) -> list[dict[str, Any]]:
    for part in ("Annotations", "JPEGImages"):
        _check_exists(name, os.path.join(directory, part), os.path.isdir)
    _check_exists(
        name, os.path.join(directory, "ImageSets", "Main", f"{split}.txt"), os.path.isfile
    )
    classes = class_names or voc_class_names(directory)
    MetadataCatalog.get(name).set(thing_classes=classes)
    return load_voc_folder(directory, split, classes)


def register_wider_face(name: str, root: str, split: str) -> None:
    """Register a split of WIDER FACE; see :func:`clsloc.data.wider_face.load_wider_face`.

    The validation images are scored by the benchmark's protocol, with the ground truth in
    ``eval_tools/ground_truth`` of ``root``; the training images as COCO data are.

    Raises:
        UserError: there is no such split.
    """
    if split not in wider_face.SPLITS:
        raise UserError(
            f"WIDER FACE has no split {split!r}; choose from {', '.join(wider_face.SPLITS)}."
        )
    truth = os.path.join(root, "eval_tools", "ground_truth") if split == "val" else None
    register_once(
        name,
        functools.partial(_load_wider_face, name, root, split),
        root=root,
        split=split,
        ground_truth=truth,
        evaluator_type="coco" if split == "train" else "wider_face",
        thing_classes=wider_face.CLASSES,
    )


def _load_wider_face(name: str, root: str, split: str) -> list[dict[str, Any]]:
    _check_exists(name, str(wider_face.list_file(root, split)), os.path.isfile)
    return wider_face.load_wider_face(root, split)


def register_builtin_wider_face() -> None:
    """Register ``wider_face_train``, ``wider_face_val`` and ``wider_face_test`` in the folder
    ``$DETECTRON2_DATASETS/wider_face``.

    A call after DETECTRON2_DATASETS changed moves the names to the new place.
    """
    datasets = os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    root = os.path.join(datasets, "wider_face")
    for split in wider_face.SPLITS:
        name = f"wider_face_{split}"
        if name in DatasetCatalog.list() and MetadataCatalog.get(name).root != root:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_wider_face(name, root, split)


def register_once(name: str, load: Loader, **metadata: Any) -> None:
    """Register ``load`` under ``name`` unless that was done before with equal metadata.

    Raises:
        UserError: the name belongs to a dataset with other metadata.
    """
    if name not in DatasetCatalog.list():
        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(**metadata)
        return
    known = MetadataCatalog.get(name).as_dict()
    for key, value in metadata.items():
        if known.get(key) != value:
            raise UserError(
                f"The dataset name {name!r} is taken: its {key} is {known.get(key)!r}, not "
                f"{value!r}; choose another name."
            )


def _check_exists(name: str, path: str, exists: Callable[[str], bool]) -> None:
    if not exists(path):
        raise UserError(
            f"The dataset {name!r} needs {path!r}, which does not exist; correct the path in "
            "CLSLOC.DATASETS, in the flag or in DETECTRON2_DATASETS."
        )
