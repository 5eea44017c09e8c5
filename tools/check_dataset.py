#!/usr/bin/env python
"""Say in sentences what would break or mislead training on a dataset.

Give the training part first and the validation part after it; their categories are compared.
  check_dataset.py --coco train train.json images/ --coco val val.json images/
  check_dataset.py --voc train VOC2007/ train --voc val VOC2007/ val
  check_dataset.py --wider-face train wider_face/ train
  check_dataset.py --coco train train.json images/ --fix fixed/

The exit status is 0 if nothing stands in the way, 1 if there are errors, 2 if the input cannot
be read or --fix cannot be done.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clsloc.cli import make_parser, run, write_json
from clsloc.data.check import (
    Finding,
    category_table,
    check_coco,
    check_form,
    check_images,
    check_same_classes,
)
from clsloc.data.fix import fix_coco
from clsloc.data.voc_as_coco import voc_as_coco
from clsloc.data.wider_face import wider_face_as_coco
from clsloc.engine.flags import add_dataset_flags
from clsloc.errors import UserError
from clsloc.files import atomic_write

Part = tuple[dict[str, Any], str]
"""(content in COCO's form, folder of the images)"""


def parser() -> argparse.ArgumentParser:
    result = make_parser(__doc__, config=False)
    add_dataset_flags(result)
    result.add_argument(
        "--open-images", action="store_true", help="also open every image: damage, size, EXIF"
    )
    result.add_argument(
        "--fix",
        metavar="DIR",
        help="write DIR/<NAME>.json for each part: completed, repaired, in COCO's form; never over "
        "a JSON file of --coco",
    )
    return result


def main(args: argparse.Namespace) -> int:
    parts = read_parts(args)
    targets = fix_targets(args, parts) if args.fix else {}
    report: dict[str, Any] = {}
    for name, (content, image_root) in parts.items():
        report[name] = check_part(name, content, image_root, args.open_images)
    first = next(iter(parts))
    for name in list(parts)[1:]:
        findings = check_same_classes(first, parts[first][0], name, parts[name][0])
        report[name]["findings"] += show(name, findings)
    if targets:
        for name, (content, _) in parts.items():
            check_repairable(name, content)
        for name, (content, image_root) in parts.items():
            report[name]["fixed"] = write_fixed(name, content, image_root, targets[name])
    if args.json:
        write_json(report, args.json)
    errors = sum(f["severity"] == "error" for part in report.values() for f in part["findings"])
    print("Errors stand in the way." if errors else "Nothing stands in the way.")
    return 1 if errors else 0


def read_parts(args: argparse.Namespace) -> dict[str, Part]:
    """The parts by name, in the order of the flags."""
    parts: dict[str, Part] = {}
    for name, file, image_root in args.coco or ():
        parts[name] = read_json(file), image_root
    for name, directory, split in args.voc or ():
        parts[name] = voc_as_coco(directory, split), str(Path(directory, "JPEGImages"))
    for name, root, split in args.wider_face or ():
        parts[name] = wider_face_as_coco(root, split)
    if not parts:
        raise UserError(
            "No dataset was given; use --coco NAME JSON IMAGES, --voc NAME DIR SPLIT or "
            "--wider-face NAME ROOT SPLIT."
        )
    if len(parts) < sum(len(flag or ()) for flag in (args.coco, args.voc, args.wider_face)):
        raise UserError("Two parts have the same NAME; give each its own.")
    return parts


def read_json(file: str) -> dict[str, Any]:
    try:
        with open(file, encoding="utf-8") as opened:
            content = json.load(opened)
    except OSError as error:
        raise UserError(
            f"The annotation file {file!r} cannot be opened ({error.strerror}); check the path."
        ) from error
    except ValueError as error:  # broken JSON, or not text
        raise UserError(
            f"The annotation file {file!r} is no valid JSON ({error}); export or copy it again."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{file!r} holds no COCO dataset: its top level is not an object.")
    return content


def fix_targets(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Path]:
    """The file that --fix writes for each part.

    Raises:
        UserError: it is an annotation file of --coco, or that of another part.
    """
    targets = {name: Path(args.fix, f"{name}.json") for name in names}
    owners: dict[str, str] = {}
    for name, target in targets.items():
        for _, file, _ in args.coco or ():
            if os.path.exists(target) and os.path.samefile(target, file):
                raise UserError(
                    f"--fix {args.fix!r} would overwrite the annotation file {file!r} with the "
                    f"repaired part {name!r}; choose another folder for --fix."
                )
        other = owners.setdefault(os.path.realpath(target), name)
        if other != name:
            raise UserError(
                f"--fix would write the parts {other!r} and {name!r} to one file, "
                f"{str(target)!r}; give each its own NAME."
            )
    return targets


def check_repairable(name: str, content: dict[str, Any]) -> None:
    """Raise a UserError if a list of the part is missing or has malformed entries."""
    for finding in check_form(content):
        raise UserError(f"The part {name!r} cannot be repaired: {finding.sentence}")


def check_part(
    name: str, content: dict[str, Any], image_root: str, open_images: bool
) -> dict[str, Any]:
    """Print and return what was found in one part."""
    findings = check_coco(content, image_root)
    usable = not check_form(content)
    table = category_table(content["categories"]) if usable else []
    if usable:
        print(
            f"{name}: {len(content['images'])} images, {len(content['annotations'])} boxes, "
            f"{len(table)} categories (id, name, index, boxes):"
        )
        counts = Counter(item.get("category_id") for item in content["annotations"])
        for key, category, index in table:
            print(f"  {key:>6}  {category:<24} {index:>4} {counts[key]:>8}")
        if open_images:
            findings += check_images(content, image_root)
    return {
        "categories": [{"id": i, "name": n, "index": k} for i, n, k in table],
        "findings": show(name, findings),
    }


def show(name: str, findings: list[Finding]) -> list[dict[str, Any]]:
    for finding in findings:
        print(f"{name}: {finding.severity}: {finding.sentence}")
    return [asdict(finding) for finding in findings]


def write_fixed(name: str, content: dict[str, Any], image_root: str, path: Path) -> dict[str, Any]:
    """Write the repaired copy to ``path``; returns the path and what was done."""
    fixed, done = fix_coco(content, image_root)
    with atomic_write(path, "w") as file:
        json.dump(fixed, file)
    print(f"{name}: wrote {path}; " + ("; ".join(f"{n} {what}" for what, n in done.items()) or "-"))
    return {"path": str(path), "done": dict(done)}


if __name__ == "__main__":
    sys.exit(run(main, parser()))
