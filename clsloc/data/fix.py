"""Completes the content of a COCO JSON file so that it can be trained on and scored."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from clsloc.data.check import (
    Content,
    box_arrays,
    by_text,
    degenerate_rows,
    duplicate_rows,
    is_box,
    is_crowd_mark,
    is_ignored,
    is_side,
    known_ids,
)
from clsloc.data.images import IMAGE_ERRORS, upright_size


def fix_coco(content: Content, image_root: str | None = None) -> tuple[Content, Counter]:
    """A repaired copy of ``content`` and what was done, counted by a short text.

    Fills in keys that are missing or None, numbers annotations from 1 where their ids are missing,
    zero or repeated, writes the ids that they refer to as the lists do ("7" as 7), makes those
    marked ``ignore`` crowds and any other ``iscrowd`` 0 or 1, clips boxes to their images, and
    drops annotations without a proper box, of an unknown image or category, or that stand twice.
    Sizes of images are read from the files where they are missing. Images stay, also those whose
    file is gone.

    Args:
        content: in which :func:`clsloc.data.check.check_form` finds nothing.
        image_root: the folder of the images; None: sizes stay missing.
    """
    done: Counter = Counter()
    fixed = {**content, **copy.deepcopy({key: content[key] for key in ("images", "annotations")})}
    for image in fixed["images"]:
        known = is_side(image.get("width")) and is_side(image.get("height"))
        if image_root is not None and not known:
            done["image sizes read from the files"] += _fill_size(image, Path(image_root))
    fixed["annotations"] = _keep_proper(fixed, done)
    _clip(fixed, done)
    _number(fixed["annotations"], done)
    for item in fixed["annotations"]:
        if is_ignored(item):
            _unmark(item, done)
        if not is_crowd_mark(item.get("iscrowd")):
            item["iscrowd"] = int(str(item["iscrowd"]).strip().lower() in ("1", "1.0", "true"))
            done["iscrowd made 0 or 1"] += 1
        if item.get("iscrowd") is None:
            item["iscrowd"] = 0
            done["iscrowd set to 0"] += 1
        if item.get("area") is None:
            item["area"] = item["bbox"][2] * item["bbox"][3]
            done["areas computed from the boxes"] += 1
    return fixed, +done


def _fill_size(image: dict[str, Any], root: Path) -> int:
    if image.get("file_name") is None:
        return 0
    try:
        image["width"], image["height"] = upright_size(root / image["file_name"])
    except IMAGE_ERRORS:
        return 0
    return 1


def _keep_proper(content: Content, done: Counter) -> list[dict[str, Any]]:
    images, categories = known_ids(content["images"]), known_ids(content["categories"])
    known = {"image_id": images, "category_id": categories}
    listed = {key: by_text(ids) for key, ids in known.items()}
    kept = []
    for item in content["annotations"]:
        for key, ids in known.items():
            if item.get(key) not in ids and str(item.get(key)) in listed[key]:
                item[key] = listed[key][str(item[key])]
                done["ids written as in the lists"] += 1
        if item.get("image_id") not in images or item.get("category_id") not in categories:
            done["annotations of an unknown image or category dropped"] += 1
        elif not is_box(item.get("bbox")):
            done["annotations without a box of four finite numbers dropped"] += 1
        else:
            kept.append(item)
    boxes, _ = box_arrays(content["images"], kept)
    degenerate, twice = degenerate_rows(boxes), duplicate_rows(kept)
    done["boxes without area dropped"] += int(degenerate.sum())
    done["repeated boxes dropped"] += int((twice & ~degenerate).sum())
    return [item for item, drop in zip(kept, degenerate | twice) if not drop]


def _clip(content: Content, done: Counter) -> None:
    boxes, sizes = box_arrays(content["images"], content["annotations"])
    low = np.clip(boxes[:, :2], 0, sizes)
    high = np.clip(boxes[:, :2] + boxes[:, 2:], 0, sizes)
    moved = (low != boxes[:, :2]).any(1) | (high != boxes[:, :2] + boxes[:, 2:]).any(1)
    gone = ~(high > low).all(1)
    for row in np.flatnonzero(moved & ~gone):
        item = content["annotations"][row]
        item["bbox"] = [*low[row].tolist(), *(high[row] - low[row]).tolist()]
        item.pop("area", None)
    done["boxes clipped to their images"] += int((moved & ~gone).sum())
    done["boxes outside of their images dropped"] += int(gone.sum())
    content["annotations"] = [a for a, drop in zip(content["annotations"], gone) if not drop]


def _unmark(item: dict[str, Any], done: Counter) -> None:
    if item.pop("ignore"):
        item["iscrowd"] = 1
        done["ignored annotations made crowds"] += 1
    else:
        done["empty marks 'ignore' removed"] += 1


def _number(annotations: list[dict[str, Any]], done: Counter) -> None:
    ids = [item.get("id") for item in annotations]
    if None in ids or 0 in ids or len(set(ids)) < len(ids):
        for number, item in enumerate(annotations, start=1):
            item["id"] = number
        done["annotations numbered anew from 1"] += len(annotations)
