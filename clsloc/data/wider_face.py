"""Reads WIDER FACE as it is published: lists of faces in text files, images in folders by event.

The folders are ``WIDER_train/images/<event>`` and so on. In the lists, such as
``wider_face_split/wider_face_train_bbx_gt.txt``, each image has three parts::

    0--Parade/0_Parade_marchingband_1_849.jpg
    1
    449 330 122 149 0 0 0 0 0 0

its path, the number of its faces, and for each face left, top, width, height, blur, expression,
illumination, invalid, occlusion and pose. An image without faces has a line of zeros all the same.
The test images come with a list of paths alone, ``wider_face_test_filelist.txt``.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clsloc.data.images import IMAGE_ERRORS, upright_size
from clsloc.errors import UserError
from detectron2.structures import BoxMode

__all__ = ["SPLITS", "ListedImage", "load_wider_face", "read_list", "wider_face_as_coco"]

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
CLASSES = ["face"]
LEAST_SIDE = 1  # pixels
_NUMBERS = 10
_INVALID = 7
_THREADS = 8


@dataclass(frozen=True)
class ListedImage:
    """An image of a list.

    Attributes:
        path: ``<event>/<file name>``.
        faces: of ten integers each; none for an image of the test list.
    """

    path: str
    faces: list[list[int]]


def load_wider_face(root: str, split: str) -> list[dict[str, Any]]:
    """The images of a split in Detectron2's dataset format, boxes as XYWH_ABS.

    A face marked invalid gets ``iscrowd`` 1: it is not trained on. Faces with a side below one
    pixel are dropped. Images that do not exist are left out. Both are logged with their number.

    Args:
        root: holds ``wider_face_split`` and ``WIDER_<split>``.
        split: one of ``SPLITS``.

    Raises:
        UserError: the list is malformed, an image is broken, or there is none.
    """
    samples, dropped = [], 0
    for image, file_name, (width, height) in _existing(root, split):
        large = [face for face in image.faces if min(face[2:4]) >= LEAST_SIDE]
        dropped += len(image.faces) - len(large)
        sample = {
            "file_name": str(file_name),
            # As in the ground truth of the evaluation.
            "image_id": image.path.removesuffix(file_name.suffix),
            "height": height,
            "width": width,
        }
        if split != "test":
            sample["annotations"] = [_annotation(face) for face in large]
        samples.append(sample)
    if dropped:
        logger.warning(
            "WIDER FACE %s: dropped %d faces with a side below %d pixel.",
            split,
            dropped,
            LEAST_SIDE,
        )
    return samples


def _annotation(face: Sequence[int]) -> dict[str, Any]:
    return {
        "bbox": list(map(float, face[:4])),
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "iscrowd": int(face[_INVALID] != 0),
    }


def wider_face_as_coco(root: str, split: str) -> tuple[dict[str, Any], str]:
    """The raw content of a split in the form of a COCO JSON file, no face dropped, and the folder
    from which its file names count. Images that do not exist are left out.

    Raises:
        UserError: as :func:`load_wider_face`.
    """
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)],
    }
    for number, (image, _, (width, height)) in enumerate(_existing(root, split), start=1):
        content["images"].append(
            {"id": number, "file_name": image.path, "width": width, "height": height}
        )
        content["annotations"] += [
            {
                "id": len(content["annotations"]) + row,
                "image_id": number,
                "category_id": 1,
                "bbox": face[:4],
                "area": face[2] * face[3],
                "iscrowd": int(face[_INVALID] != 0),
            }
            for row, face in enumerate(image.faces, start=1)
        ]
    return content, str(_image_folder(root, split))


def _image_folder(root: str, split: str) -> Path:
    return Path(root, f"WIDER_{split}", "images")


def list_file(root: str, split: str) -> Path:
    """The list of a split."""
    name = "filelist" if split == "test" else "bbx_gt"
    return Path(root, "wider_face_split", f"wider_face_{split}_{name}.txt")


def _existing(root: str, split: str) -> list[tuple[ListedImage, Path, tuple[int, int]]]:
    """The listed images that exist, the file of each, and its width and height."""
    folder = _image_folder(root, split)
    images = read_list(list_file(root, split), with_faces=split != "test")
    files = [folder / image.path for image in images]
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = list(pool.map(_size, files))
    existing = [item for item in zip(images, files, sizes) if item[2] is not None]
    missing = [image.path for image, size in zip(images, sizes) if size is None]
    if not existing:
        raise UserError(
            f"None of the {len(images)} images of WIDER FACE {split} exists in {str(folder)!r}; "
            "unpack them there."
        )
    if missing:
        logger.warning(
            "WIDER FACE %s: left out %d of %d images, which do not exist in %s, such as %s.",
            split,
            len(missing),
            len(images),
            folder,
            missing[0],
        )
    return existing


def _size(file: Path) -> tuple[int, int] | None:
    try:
        return upright_size(file)
    except FileNotFoundError:
        return None
    except IMAGE_ERRORS as error:
        raise UserError(
            f"The image {str(file)!r} cannot be read ({error}); unpack it again."
        ) from error


def read_list(file: Path, with_faces: bool = True) -> list[ListedImage]:
    """The images of a list; the line of zeros of an image without faces is no face.

    Args:
        file: the list.
        with_faces: whether each path is followed by its faces.

    Raises:
        UserError: the file cannot be read or a line is not what it should be.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The list {str(file)!r} cannot be read ({error}); check it.") from error
    images, at = [], 0
    while at < len(lines):
        if not lines[at]:
            at += 1
            continue
        path = lines[at]
        if "/" not in path:
            raise _malformed(file, lines, at, "the path <event>/<image> of an image")
        at += 1
        faces: list[list[int]] = []
        if with_faces:
            count = _integers(file, lines, at, 1, "the number of faces of the image above it")[0]
            at += 1
            rows = max(count, 0)
            # A list that leaves the line of zeros out is fine, too.
            rows += count == 0 and at < len(lines) and lines[at].split() == ["0"] * _NUMBERS
            faces = [_face(file, lines, row) for row in range(at, at + rows)]
            at += rows
        images.append(ListedImage(path, [face for face in faces if any(face)]))
    return images


def _face(file: Path, lines: Sequence[str], at: int) -> list[int]:
    return _integers(file, lines, at, _NUMBERS, f"the {_NUMBERS} integers of a face")


def _integers(file: Path, lines: Sequence[str], at: int, count: int, what: str) -> list[int]:
    try:
        numbers = list(map(int, lines[at].split()))
    except (IndexError, ValueError):
        numbers = []
    if len(numbers) != count:
        raise _malformed(file, lines, at, what)
    return numbers


def _malformed(file: Path, lines: Sequence[str], at: int, what: str) -> UserError:
    found = f"is {lines[at][:80]!r}" if at < len(lines) else "is missing"
    return UserError(
        f"Line {at + 1} of {str(file)!r} {found} where {what} should stand; take the official list."
    )
