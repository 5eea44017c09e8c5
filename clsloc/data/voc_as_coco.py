"""The raw content of a PASCAL VOC folder in the form of a COCO JSON file, nothing repaired."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from clsloc.data.voc import voc_class_names
from clsloc.errors import UserError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def voc_as_coco(directory: str, split: str) -> dict[str, Any]:
    """Images, annotations and categories of a split; file names count from ``JPEGImages``.

    Corners become [x, y, width, height] as :func:`clsloc.data.voc.load_voc_folder` reads them:
    counted from 1, the last pixel included, coinciding corners without area. Category ids count
    from 1 in alphabetical order.

    Raises:
        UserError: the list of the split or an annotation file cannot be read.
    """
    listing = Path(directory, "ImageSets", "Main", f"{split}.txt")
    try:
        stems = [line.split()[0] for line in listing.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise UserError(
            f"The list {str(listing)!r} cannot be read ({error.strerror}); check the folder and "
            "the name of the split."
        ) from error
    names = voc_class_names(directory)
    ids = {name: number for number, name in enumerate(names, start=1)}
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": ids[name], "name": name} for name in names],
    }
    for number, stem in enumerate(stems, start=1):
        path = Path(directory, "Annotations", f"{stem}.xml")
        try:
            root = ElementTree.parse(path).getroot()
        except (OSError, ElementTree.ParseError) as error:
            raise UserError(f"The annotation {str(path)!r} cannot be read: {error}.") from error
        content["images"].append(_image(root, number, stem, Path(directory, "JPEGImages")))
        for item in root.iterfind("object"):
            box = _box(item)
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": ids[item.findtext("name") or ""],
                    "bbox": box,
                    "area": box[2] * box[3] if box else 0,
                    "iscrowd": int(item.findtext("difficult") == "1"),
                }
            )
    return content


def _image(root: ElementTree.Element, number: int, stem: str, folder: Path) -> dict[str, Any]:
    endings = (".jpg", Path(root.findtext("filename") or "").suffix, ".jpeg", ".png", ".JPG")
    found = (f"{stem}{e}" for e in endings if e and (folder / f"{stem}{e}").is_file())
    image = {"id": number, "file_name": next(found, f"{stem}.jpg")}
    for key in ("width", "height"):
        value = root.findtext(f"size/{key}")
        if value and float(value) > 0:
            image[key] = int(float(value))
    return image


def _box(item: ElementTree.Element) -> list[float]:
    try:
        x0, y0, x1, y1 = (float(item.findtext(f"bndbox/{key}")) for key in _CORNERS)
    except (TypeError, ValueError):
        return []
    if x1 <= x0 or y1 <= y0:
        return [x0 - 1, y0 - 1, x1 - x0, y1 - y0]
    return [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]
