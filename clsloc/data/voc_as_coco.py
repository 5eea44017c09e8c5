"""The raw content of a PASCAL VOC folder in the form of a COCO JSON file, nothing repaired."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from clsloc.data.voc import (
    find_image,
    read_annotation,
    read_corners,
    read_split,
    stated_size,
    voc_class_names,
)


def voc_as_coco(directory: str, split: str) -> dict[str, Any]:
    """Images, annotations and categories of a split; file names count from ``JPEGImages``.

    Corners become [x, y, width, height] as :func:`clsloc.data.voc.load_voc_folder` reads them:
    counted from 1, the last pixel included, coinciding corners without area. Category ids count
    from 1 in alphabetical order. What an annotation leaves out, such as the size of the image or
    the name of an object, is left out here too.

    Raises:
        UserError: the list of the split or an annotation file cannot be read.
    """
    stems = read_split(directory, split)
    ids = {name: number for number, name in enumerate(voc_class_names(directory), start=1)}
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
    }
    for number, stem in enumerate(stems, start=1):
        root = read_annotation(Path(directory, "Annotations", f"{stem}.xml"))
        content["images"].append({"id": number} | _image(root, Path(directory), stem))
        for item in root.iterfind("object"):
            annotation = {"id": len(content["annotations"]) + 1, "image_id": number}
            content["annotations"].append(annotation | _object(item, ids))
    return content


def _image(root: ElementTree.Element, directory: Path, stem: str) -> dict[str, Any]:
    found = find_image(directory, stem, root)
    sides = zip(("width", "height"), stated_size(root))
    stated = {key: value for key, value in sides if value > 0}
    return {"file_name": found.name if found else f"{stem}.jpg"} | stated


def _object(item: ElementTree.Element, ids: dict[str, int]) -> dict[str, Any]:
    name = item.findtext("name")
    box = _box(item)
    return {
        **({"category_id": ids[name]} if name else {}),
        "bbox": box,
        "area": box[2] * box[3] if box else 0,
        "iscrowd": int(item.findtext("difficult") == "1"),
    }


def _box(item: ElementTree.Element) -> list[float]:
    corners = read_corners(item)
    if corners is None:
        return []
    x0, y0, x1, y1 = corners
    if x1 <= x0 or y1 <= y0:
        return [x0 - 1, y0 - 1, x1 - x0, y1 - y0]
    return [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]
