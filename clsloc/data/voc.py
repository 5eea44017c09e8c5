"""Reads folders in the layout of PASCAL VOC with any set of classes."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from clsloc.data.images import IMAGE_ERRORS, upright_size
from clsloc.errors import UserError
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def voc_class_names(directory: str) -> list[str]:
    """All classes that occur in the folder ``Annotations``, whatever the split, in
    alphabetical order. An object without a name has none.

    Raises:
        UserError: an annotation cannot be read.
    """
    files = Path(directory, "Annotations").glob("*.xml")
    names = {name.text for file in files for name in read_annotation(file).iterfind("object/name")}
    return sorted(name for name in names if name)


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
        UserError: an annotation is broken or of another class, or an image is missing or broken.
    """
    index = {name: number for number, name in enumerate(class_names)}
    return [_load_image(Path(directory), stem, index) for stem in read_split(directory, split)]


def read_split(directory: str, split: str) -> list[str]:
    """The images that ``ImageSets/Main/<split>.txt`` names, without ending.

    Raises:
        UserError: the list cannot be read.
    """
    file = Path(directory, "ImageSets", "Main", f"{split}.txt")
    try:
        return [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The list {str(file)!r} cannot be read ({getattr(error, 'strerror', error)}); check "
            "the folder and the name of the split."
        ) from error


def read_annotation(file: Path) -> ElementTree.Element:
    """The root of an annotation file.

    Raises:
        UserError: the file is missing or is no XML.
    """
    try:
        return ElementTree.parse(file).getroot()
    except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:  # an encoding
        raise UserError(f"The annotation {str(file)!r} cannot be read: {error}.") from error


def find_image(directory: Path, stem: str, root: ElementTree.Element) -> Path | None:
    """The image of an annotation; None: there is none."""
    # The name in the annotation is often stale after images were renamed, only its ending counts.
    stated = Path(root.findtext("filename") or "").suffix
    endings = (".jpg", stated, ".jpeg", ".png", ".JPG")
    files = (directory / "JPEGImages" / f"{stem}{ending}" for ending in endings if ending)
    return next((file for file in files if file.is_file()), None)


def stated_size(root: ElementTree.Element) -> tuple[int, int]:
    """(width, height) that an annotation states; 0 for what it leaves out, as some labelling
    programs do, or what is no number above 0."""
    width, height = (_side(root.findtext(f"size/{key}")) for key in ("width", "height"))
    return width, height


def _side(text: str | None) -> int:
    try:
        return max(int(float(text or 0)), 0)
    except (OverflowError, ValueError):
        return 0


def read_corners(item: ElementTree.Element) -> list[float] | None:
    """The corners (x0, y0, x1, y1) of an object; None where they are not four numbers."""
    try:
        return [float(item.findtext(f"bndbox/{key}")) for key in _CORNERS]
    except (TypeError, ValueError):
        return None


def _load_image(directory: Path, stem: str, index: dict[str, int]) -> dict[str, Any]:
    annotation_file = directory / "Annotations" / f"{stem}.xml"
    root = read_annotation(annotation_file)
    image_file = find_image(directory, stem, root)
    if image_file is None:
        raise UserError(f"There is no image {stem!r} in {str(directory / 'JPEGImages')!r}.")
    width, height = _image_size(root, image_file)
    objects = [_load_object(item, annotation_file, index) for item in root.iterfind("object")]
    return {
        "file_name": str(image_file),
        "image_id": stem,
        "height": height,
        "width": width,
        "annotations": [item for item in objects if item is not None],
    }


def _image_size(root: ElementTree.Element, image_file: Path) -> tuple[int, int]:
    size = stated_size(root)
    if min(size) > 0:
        return size
    try:
        return upright_size(image_file)
    except IMAGE_ERRORS as error:
        raise UserError(
            f"The image {str(image_file)!r} cannot be read ({error}); replace it or drop it from "
            "the dataset."
        ) from error


def _load_object(
    item: ElementTree.Element, file: Path, index: dict[str, int]
) -> dict[str, Any] | None:
    name = item.findtext("name") or ""
    if name not in index:
        raise UserError(
            f"{str(file)!r} has an object of class {name!r}, which is none of {list(index)}; "
            "complete the list of classes or correct the annotation."
        )
    corners = read_corners(item)
    if corners is None:
        raise UserError(f"{str(file)!r} has a box without four numbers; correct it.")
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
