"""Finds what would break or mislead training in the annotations of a dataset.

Works on the content of a COCO JSON file as it is, before any loader has repaired or dropped
something. Boxes are [x, y, width, height] in pixels. M annotations stand for the rows of arrays.
"""

import reprlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clsloc.data.images import IMAGE_ERRORS, swaps_sides

Content = dict[str, Any]

_TOP_KEYS = ("images", "annotations", "categories")
_IMAGE_KEYS = ("id", "file_name", "width", "height")
_ANNOTATION_KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
_TAKEN = {"area": "width times height of its box", "iscrowd": "0"}  # by clsloc's evaluation
_SIZE_KEYS = ("width", "height")
_ID_KEYS = {
    "images": ("id",),
    "annotations": ("id", "image_id", "category_id"),
    "categories": ("id",),
}
_SLACK = 1.0  # pixels by which a box may leave its image: rounding, or counting from 1


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        kind: a short stable name, such as ``degenerate_boxes``.
        severity: ``error`` (training fails or is misled), ``warning`` (look at it) or ``note``.
        count: how many.
        sentence: for a person.
    """

    kind: str
    severity: str
    count: int
    sentence: str


def check_coco(content: Content, image_root: str | None = None) -> list[Finding]:
    """Everything that can be seen without opening an image; what :func:`check_form` finds, alone.

    A value None (null) counts as missing.

    Args:
        content: of a COCO JSON file.
        image_root: the folder of the images; None: do not look for them.
    """
    if unusable := check_form(content):
        return unusable
    parts: list[Callable[[], Iterable[Finding]]] = [
        lambda: _missing_keys(content),
        lambda: _categories(content["categories"]),
        lambda: _ids(content),
        lambda: _ignored(content["annotations"]),
        lambda: _crowds(content["annotations"]),
        lambda: _boxes(content),
    ]
    findings = [finding for part in parts for finding in part()]
    if image_root is not None:
        findings += _missing_files(content["images"], image_root)
    return findings


def check_form(content: Content) -> list[Finding]:
    """What ends all other checks and cannot be repaired: a missing list, or malformed entries.

    An entry is an object; its ids are whole numbers (also 3.0, which equals 3) or text, and the
    ``file_name`` of an image is text, where they are given.
    """
    missing = [key for key in _TOP_KEYS if not isinstance(content.get(key), list)]
    if missing:
        names = " and ".join(map(repr, missing))
        sentence = f"The file has no list {names}; without it nothing can be trained or scored."
        return [Finding("missing_top_keys", "error", len(missing), sentence)]
    malformed = [text for part in _TOP_KEYS for text in _malformed(part, content[part])]
    if not malformed:
        return []
    sentence = (
        f"{len(malformed)} entries are malformed, such as {_some(malformed)}; make each an object "
        "with whole numbers or text as ids and text as file_name, and check again."
    )
    return [Finding("malformed_entries", "error", len(malformed), sentence)]


def check_images(content: Content, image_root: str, threads: int = 8) -> list[Finding]:
    """What can be seen only by opening the images: damage, other sizes, EXIF rotation, depth."""
    images = [image for image in content["images"] if image.get("file_name") is not None]

    def look(image: dict[str, Any]) -> str | None:
        return _look_at_image(image, Path(image_root, image["file_name"]))

    with ThreadPoolExecutor(threads) as pool:
        kinds = list(pool.map(look, images))
    sentences = {
        "unreadable_images": ("error", "cannot be opened"),
        "size_mismatches": ("error", "have another size than the file says"),
        "deep_images": (
            "warning",
            "have more than 8 bits a channel, of which what lies above 255 is read as white, and "
            "numbers from 0 to 1 as black; convert them to 8 bits",
        ),
        "exif_rotations": (
            "warning",
            "are stored rotated (EXIF); the boxes must be those of the upright image",
        ),
    }
    return [
        _finding(kind, severity, [i["file_name"] for i, k in zip(images, kinds) if k == kind], text)
        for kind, (severity, text) in sentences.items()
        if kind in kinds
    ]


def check_same_classes(name: str, content: Content, other: str, other_content: Content) -> list:
    """Whether two parts of a dataset have the same categories under the same ids.

    Nothing is compared where a list of categories is missing or malformed; :func:`check_form`
    reports that.
    """
    lists = [part.get("categories") for part in (content, other_content)]
    if any(not isinstance(x, list) or any(_malformed("categories", x)) for x in lists):
        return []
    first, second = ({category.get("id"): category.get("name") for category in x} for x in lists)
    differing = sorted(
        (key for key in first.keys() | second.keys() if first.get(key) != second.get(key)), key=str
    )
    if not differing:
        return []
    shown = "; ".join(
        f"id {key} is {first.get(key, 'missing')!r} and {second.get(key, 'missing')!r}"
        for key in differing[:5]
    )
    sentence = f"The categories of {name} and {other} differ: {shown}."
    return [Finding("different_categories", "error", len(differing), sentence)]


def category_table(categories: Sequence[dict[str, Any]]) -> list[tuple[int, str, int]]:
    """(id, name, index that the model uses) of each category, by rising id as Detectron2 does.

    Ids that cannot be compared come in the order of their text, and categories without a proper
    id are left out; :func:`check_coco` reports both.
    """
    proper = [c for c in categories if isinstance(c, dict) and _is_id(c.get("id"))]
    rows = [(c["id"], str(c.get("name"))) for c in proper]
    has_order = _have_an_order([row[0] for row in rows])
    rows.sort(key=None if has_order else lambda row: str(row[0]))
    return [(key, name, index) for index, (key, name) in enumerate(rows)]


def _malformed(part: str, items: Iterable[Any]) -> Iterable[str]:
    """Where and how entries of the list ``part`` are malformed, one text for each."""
    for place, item in enumerate(items):
        if not isinstance(item, dict):
            yield f"{part}[{place}] is no object: {reprlib.repr(item)}"
            continue
        wrong = [key for key in _ID_KEYS[part] if not (item.get(key) is None or _is_id(item[key]))]
        if part == "images" and not isinstance(item.get("file_name"), str | None):
            wrong.append("file_name")
        if wrong:
            yield f"{part}[{place}] has the {wrong[0]} {reprlib.repr(item[wrong[0]])}"


def _is_id(value: Any) -> bool:
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, str) or (is_whole and not isinstance(value, bool))


def _missing_keys(content: Content) -> Iterable[Finding]:
    remedy = "; --fix fills in what can be known"
    for part, keys in (("images", _IMAGE_KEYS), ("annotations", _ANNOTATION_KEYS)):
        for key in keys:
            count = sum(_lacks(item, key) for item in content[part])
            if count:
                what = f"{key!r} above 0" if key in _SIZE_KEYS else repr(key)
                taken = f", which is taken as {_TAKEN[key]}" if key in _TAKEN else ""
                sentence = f"{count} of {len(content[part])} {part} have no {what}{taken}{remedy}."
                severity = "warning" if taken else "error"
                yield Finding(f"missing_{part}_{key}", severity, count, sentence)


def _lacks(item: dict[str, Any], key: str) -> bool:
    return not is_side(item.get(key)) if key in _SIZE_KEYS else item.get(key) is None


def _categories(categories: Sequence[dict[str, Any]]) -> Iterable[Finding]:
    if not categories:
        yield Finding("no_categories", "error", 0, "The list of categories is empty.")
        return
    ids = [category.get("id") for category in categories]
    names = [c["name"] for c in categories if isinstance(c.get("name"), str)]
    if len(names) < len(categories):
        nameless = [c.get("id") for c in categories if not isinstance(c.get("name"), str)]
        sentence = (
            f"{len(nameless)} of {len(categories)} categories have no name in text, those with the "
            f"ids {_some(nameless)}; give each one."
        )
        yield Finding("nameless_categories", "error", len(nameless), sentence)
    for kind, values in (("ids", [key for key in ids if key is not None]), ("names", names)):
        twice = _repeated(values)
        if twice:
            sentence = f"Several categories have the same {kind[:-1]}: {_some(twice)}."
            yield Finding(f"duplicate_category_{kind}", "error", len(twice), sentence)
    if None in ids or not _have_an_order(ids):
        odd = [value for value in ids if not isinstance(value, int | float)]
        sentence = (
            f"The category ids cannot be sorted, as the model does, with {_some(map(repr, odd))} "
            "among them; give each category a whole number."
        )
        yield Finding("unordered_category_ids", "error", len(odd), sentence)
    elif all(isinstance(value, str) for value in ids):
        sentence = (
            f"The category ids are text, such as {ids[0]!r}; the model sorts them as text, '10' "
            "before '2', and programs other than this one may want whole numbers."
        )
        yield Finding("text_category_ids", "note", len(ids), sentence)
    numbers = sorted(int(value) for value in ids if isinstance(value, int | float))
    if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        sentence = (
            f"The category ids run from {numbers[0]} to {numbers[-1]} with gaps; the model counts "
            "from 0 by rising id, and predictions are written with the original ids."
        )
        yield Finding("category_id_gaps", "note", numbers[-1] - numbers[0] + 1 - len(ids), sentence)


def _ids(content: Content) -> Iterable[Finding]:
    images, categories = known_ids(content["images"]), known_ids(content["categories"])
    annotations = content["annotations"]
    for part in ("images", "annotations"):
        twice = _repeated([item["id"] for item in content[part] if item.get("id") is not None])
        if twice:
            sentence = f"Several {part} have the same id: {_some(twice)}."
            yield Finding(f"duplicate_{part}_ids", "error", len(twice), sentence)
    if any(item.get("id") == 0 for item in annotations):
        sentence = (
            "An annotation has the id 0, which COCO's evaluation takes for no match, so that AP "
            "comes out too low; number from 1 (--fix does)."
        )
        yield Finding("annotation_id_zero", "error", 1, sentence)
    for key, known in (("image_id", images), ("category_id", categories)):
        given = [item[key] for item in annotations if item.get(key) is not None]
        bad = [value for value in given if value not in known]
        if bad:
            what = key.removesuffix("_id").replace("category", "categorie")
            listed, kind = by_text(known), ""
            if same := next((value for value in bad if str(value) in listed), None):
                kind = f" ({same!r} is not {listed[str(same)]!r}; --fix makes it so)"
            sentence = (
                f"{len(bad)} annotations refer to {what}s that are not listed: {_some(bad)}{kind}."
            )
            yield Finding(f"unknown_{key}", "error", len(bad), sentence)
    used = {item.get("image_id") for item in annotations}
    empty = len(images - used)
    if empty:
        sentence = (
            f"{empty} of {len(images)} images have no object; training leaves them out unless "
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS is False."
        )
        yield Finding("empty_images", "note", empty, sentence)


def _ignored(annotations: Sequence[dict[str, Any]]) -> Iterable[Finding]:
    count = sum(map(is_ignored, annotations))
    if count:
        sentence = (
            f"{count} of {len(annotations)} annotations have an 'ignore' other than 0, which "
            "Detectron2 refuses to load; --fix makes them crowds (iscrowd 1), which are neither "
            "trained on nor count in evaluation, and removes an empty 'ignore'."
        )
        yield Finding("ignored_annotations", "error", count, sentence)


def _crowds(annotations: Sequence[dict[str, Any]]) -> Iterable[Finding]:
    odd = [item["iscrowd"] for item in annotations if not is_crowd_mark(item.get("iscrowd"))]
    if odd:
        sentence = (
            f"{len(odd)} annotations have an iscrowd other than 0 and 1: {_some(odd)}; --fix makes "
            "it one of them."
        )
        yield Finding("odd_iscrowd", "error", len(odd), sentence)
    elif annotations and all(item.get("iscrowd") == 1 for item in annotations):
        sentence = "All annotations are crowds (iscrowd 1), which are not trained on."
        yield Finding("only_crowds", "error", len(annotations), sentence)


def _boxes(content: Content) -> Iterable[Finding]:
    annotations = [item for item in content["annotations"] if is_box(item.get("bbox"))]
    broken = len(content["annotations"]) - len(annotations)
    if broken:
        sentence = f"{broken} annotations have no box of four finite numbers."
        yield Finding("broken_boxes", "error", broken, sentence)
    if not annotations:
        yield Finding("no_boxes", "error", 0, "There is no box at all.")
        return
    boxes, sizes = box_arrays(content["images"], annotations)
    names = {image.get("id"): image.get("file_name") for image in content["images"]}

    def located(rows: np.ndarray) -> list[str]:
        items = (annotations[row] for row in np.flatnonzero(rows)[:3])
        return [f"{item['bbox']} in {names.get(item.get('image_id'))}" for item in items]

    degenerate = degenerate_rows(boxes)
    outside = ~degenerate & outside_rows(boxes, sizes)
    twice = duplicate_rows(annotations)
    # A corner taken for a size doubles the far corner, at least where x and y are large.
    corners = ~degenerate & (boxes[:, 2:] > boxes[:, :2]).all(1) & (boxes[:, 2:] <= sizes).all(1)
    if outside.mean() > 0.3 and (outside & corners).sum() > 0.9 * outside.sum():
        sentence = (
            f"{outside.sum()} boxes leave their images as [x, y, width, height] and would fit as "
            "[x0, y0, x1, y1]; COCO's format is the former."
        )
        yield Finding("boxes_as_corners", "error", int(outside.sum()), sentence)
    for kind, rows, text in (
        ("degenerate_boxes", degenerate, "boxes have no area"),
        ("outside_boxes", outside, "boxes leave their image by more than a pixel"),
        ("duplicate_boxes", twice, "boxes stand twice, with the same image and category"),
    ):
        if rows.any():
            sentence = f"{rows.sum()} of {len(rows)} {text}, such as {_some(located(rows))}."
            severity = "error" if kind == "degenerate_boxes" else "warning"
            yield Finding(kind, severity, int(rows.sum()), sentence)


def known_ids(items: Iterable[dict[str, Any]]) -> set[Any]:
    """The ids of images or categories that have one."""
    return {item["id"] for item in items if item.get("id") is not None}


def by_text(known: Iterable[Any]) -> dict[str, Any]:
    """Ids by what they read as, with which 7 is found for "7"."""
    return {str(key): key for key in known}


def is_ignored(annotation: dict[str, Any]) -> bool:
    """Whether Detectron2 refuses the annotation for its ``ignore``: also for None."""
    return annotation.get("ignore", 0) != 0


def is_crowd_mark(value: Any) -> bool:
    """Whether ``value`` is 0 or 1, or missing."""
    return value in (None, 0, 1)


def is_box(value: Any) -> bool:
    """Whether ``value`` is a list of four finite numbers."""
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max  # not so for NaN


def is_side(value: Any) -> bool:
    """Whether ``value`` is a finite number above 0, as the width and height of an image are."""
    return _is_number(value) and value > 0


def box_arrays(
    images: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """(M, 4) boxes and the (M, 2) width and height of the image of each, infinite if unknown."""
    unknown = (float("inf"), float("inf"))
    sizes = {
        image.get("id"): [side if is_side(side) else np.inf for side in map(image.get, _SIZE_KEYS)]
        for image in images
    }
    of_each = [sizes.get(item.get("image_id"), unknown) for item in annotations]
    boxes = np.array([item["bbox"] for item in annotations], dtype=np.float64).reshape(-1, 4)
    return boxes, np.array(of_each, dtype=np.float64).reshape(-1, 2)


def degenerate_rows(boxes: np.ndarray) -> np.ndarray:
    """(M,) bool: no area, or a number that is not finite."""
    return ~np.isfinite(boxes).all(1) | ~(boxes[:, 2:] > 0).all(1)


def outside_rows(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(M,) bool: leaves the image by more than a pixel."""
    return (boxes[:, :2] < -_SLACK).any(1) | (boxes[:, :2] + boxes[:, 2:] > sizes + _SLACK).any(1)


def duplicate_rows(annotations: Sequence[dict[str, Any]]) -> np.ndarray:
    """(M,) bool: an earlier row has the same image, category and box."""
    seen: set[tuple] = set()
    rows = np.zeros(len(annotations), dtype=bool)
    for row, item in enumerate(annotations):
        key = (item.get("image_id"), item.get("category_id"), *item["bbox"])
        rows[row] = key in seen
        seen.add(key)
    return rows


def _missing_files(images: Sequence[dict[str, Any]], image_root: str) -> list[Finding]:
    root = Path(image_root)
    # One listing per folder instead of one look-up per image: network disks are slow.
    names = [image["file_name"] for image in images if image.get("file_name") is not None]
    listed: dict[Path, set[str]] = {}
    missing = []
    for name in names:
        path = root / name
        if path.parent not in listed:
            folder = path.parent
            listed[folder] = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        if path.name not in listed[path.parent]:
            missing.append(name)
    if not missing:
        return []
    return [_finding("missing_files", "error", missing, f"do not exist in {image_root!r}")]


def _look_at_image(image: dict[str, Any], path: Path) -> str | None:
    try:
        with Image.open(path) as opened:
            opened.load()
            rotated = swaps_sides(opened)
    except IMAGE_ERRORS:
        return "unreadable_images"
    upright = opened.size[::-1] if rotated else opened.size
    stated = tuple(map(image.get, _SIZE_KEYS))
    if all(map(is_side, stated)) and stated != upright:
        return "size_mismatches"
    if opened.mode == "F" or opened.mode.startswith("I"):
        return "deep_images"
    return "exif_rotations" if rotated else None


def _finding(kind: str, severity: str, names: Sequence[str], text: str) -> Finding:
    sentence = f"{len(names)} images {text}, such as {_some(names)}."
    return Finding(kind, severity, len(names), sentence)


def _have_an_order(values: Iterable[Any]) -> bool:
    try:
        sorted(values)
    except TypeError:
        return False
    return True


def _repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _some(values: Iterable[Any], most: int = 3) -> str:
    distinct = list(dict.fromkeys(map(str, values)))
    return ", ".join(distinct[:most]) + (", ..." if len(distinct) > most else "")
