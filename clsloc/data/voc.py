"""Reads folders in the layout of PASCAL VOC with any set of classes."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from clsloc.errors import UserError
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def voc_class_names(directory: str) -> list[str]:
    """All classes that occur in the folder ``Annotations``, whatever the split, in
    alphabetical order."""
    files = Path(directory, "Annotations").glob("*.xml")
    return sorted({name.text for file in files for name in _parse(file).iterfind("object/name")})


def load_voc_folder(directory: str, split: str, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The images of a split in Detectron2's dataset format, boxes as XYXY_ABS.

    VOC's corners are pixel indices from 1, both inclusive: (1, 1, 1, 1) is the box (0, 0, 1, 1)
    here. A box whose corners coincide in x or y has no area; it is dropped and logged. An object
    marked ``difficult`` gets ``iscrowd`` 1: it is not trained on, and finding it or not does not
    count.

    Args:
        directory: holds ``Annotations``, ``ImageSets/Main`` and ``JPEGImages``.
        split: the list ``ImageSets/Main/<split>.txt``; the first word of each line names an image.
        class_names: the classes in the order of their indices.

    Raises:
        UserError: an annotation is broken or of another class, or an image is missing.
    """
    lines = Path(directory, "ImageSets", "Main", f"{split}.txt").read_text().splitlines()
    index = {name: number for number, name in enumerate(class_names)}
    return [_load_image(Path(directory), line.split()[0], index) for line in lines if line.strip()]


def _load_image(directory: Path, stem: str, index: dict[str, int]) -> dict[str, Any]:
    annotation_file = directory / "Annotations" / f"{stem}.xml"
    root = _parse(annotation_file)
    image_file = _find_image(directory, stem, root.findtext("filename") or "")
    width, height = _image_size(root, image_file)
    objects = [_load_object(item, annotation_file, index) for item in root.iterfind("object")]
    return {
        "file_name": image_file,
        "image_id": stem,
        "height": height,
        "width": width,
        "annotations": [item for item in objects if item is not None],
    }


def _parse(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(file).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise UserError(f"The annotation {str(file)!r} cannot be read: {error}.") from error


def _find_image(directory: Path, stem: str, file_name: str) -> str:
    # The name in the annotation is often stale after images were renamed, only its ending counts.
    for ending in (".jpg", os.path.splitext(file_name)[1], ".jpeg", ".png", ".JPG"):
        path = directory / "JPEGImages" / f"{stem}{ending}"
        if ending and path.is_file():
            return str(path)
    raise UserError(f"There is no image {stem!r} in {str(directory / 'JPEGImages')!r}.")


def _image_size(root: ElementTree.Element, image_file: str) -> tuple[int, int]:
    width, height = (int(float(root.findtext(f"size/{key}") or 0)) for key in ("width", "height"))
    if width > 0 and height > 0:
        return width, height
    with Image.open(image_file) as image:  # some labelling programs leave the size out
        return image.size


def _load_object(
    item: ElementTree.Element, file: Path, index: dict[str, int]
) -> dict[str, Any] | None:
    name = item.findtext("name") or ""
    if name not in index:
        raise UserError(
            f"{str(file)!r} has an object of class {name!r}, which is none of {list(index)}; "
            "complete the list of classes or correct the annotation."
        )
    try:
        corners = [float(item.findtext(f"bndbox/{key}")) for key in _CORNERS]
    except (TypeError, ValueError) as error:
        raise UserError(f"{str(file)!r} has a box without four numbers; correct it.") from error
    x0, y0, x1, y1 = corners
    if x1 <= x0 or y1 <= y0:
        message = f"Dropped a {name} of zero area, {corners}, in {file}."
        log_first_n(logging.WARNING, message, name=__name__, key="message")
        return None
    return {
        "bbox": [max(x0 - 1, 0.0), max(y0 - 1, 0.0), x1, y1],  # counted from 0 by some programs
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": index[name],
        "iscrowd": int(item.findtext("difficult") == "1"),
    }
