"""Reads the official ground truth of WIDER FACE's validation images.

M stands for the faces of one image.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clsloc.errors import UserError

SUBSETS = ("easy", "medium", "hard")


@dataclass(frozen=True)
class FaceTruth:
    """The faces of one image.

    Attributes:
        boxes: (M, 4) float64 left, top, width, height in pixels.
        counts: (M,) bool by subset: whether the face counts there; otherwise it is ignored.
    """

    boxes: np.ndarray
    counts: dict[str, np.ndarray]


def load_truth(folder: str) -> dict[str, FaceTruth]:
    """The faces by image, each named ``<event>/<file name without its ending>``.

    Args:
        folder: holds ``wider_face_val.mat`` with the boxes, and ``wider_easy_val.mat``,
            ``wider_medium_val.mat`` and ``wider_hard_val.mat``, each with the numbers, from 1, of
            the faces that count.

    Raises:
        UserError: a file is missing or is not what it should be, or SciPy is missing.
    """
    boxes = _per_image(Path(folder, "wider_face_val.mat"), "face_bbx_list")
    numbers = {
        subset: _per_image(Path(folder, f"wider_{subset}_val.mat"), "gt_list") for subset in SUBSETS
    }
    truth = {}
    for name, of_image in boxes.items():
        of_image = of_image.astype(np.float64).reshape(-1, 4)
        counts = {s: _as_mask(folder, s, name, numbers[s], len(of_image)) for s in SUBSETS}
        truth[name] = FaceTruth(of_image, counts)
    return truth


def _as_mask(
    folder: str, subset: str, name: str, numbers: dict[str, np.ndarray], size: int
) -> np.ndarray:
    rows = numbers.get(name, np.zeros(0)).astype(np.int64).ravel() - 1
    if name not in numbers or (rows < 0).any() or (rows >= size).any():
        raise UserError(
            f"wider_{subset}_val.mat in {folder!r} does not fit wider_face_val.mat at the image "
            f"{name!r}; take all four files from one download of the evaluation tools."
        )
    mask = np.zeros(size, dtype=bool)
    mask[rows] = True
    return mask


def _per_image(path: Path, key: str) -> dict[str, np.ndarray]:
    """The arrays of a file by image. MATLAB keeps them as a column of events, each a column of
    images."""
    content = _read(path)
    try:
        return {
            f"{_text(event)}/{_text(name)}": np.asarray(value)
            for event, names, values in zip(
                content["event_list"].ravel(),
                content["file_list"].ravel(),
                content[key].ravel(),
                strict=True,
            )
            for name, value in zip(names.ravel(), values.ravel(), strict=True)
        }
    except (KeyError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"{str(path)!r} has no lists event_list, file_list and {key} of equal lengths "
            f"({error}); take the file from the official evaluation tools."
        ) from error


def _text(cell: Any) -> str:
    (text,) = np.asarray(cell).ravel()
    return str(text)


def _read(path: Path) -> dict[str, Any]:
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise UserError(
            f"SciPy, which reads {path.name}, cannot be imported ({error}); pip install scipy."
        ) from error
    try:
        return loadmat(path)
    except NotImplementedError as error:  # what SciPy says of the HDF5 files of version 7.3
        reason = "is of version 7.3, which SciPy does not read; save it again as version 7"
        raise UserError(f"{str(path)!r} {reason}, or take the official file.") from error
    except OSError as error:
        raise UserError(
            f"The ground truth {str(path)!r} cannot be opened ({error.strerror or error}); put the "
            "four files of the official evaluation tools there."
        ) from error
    except (MatReadError, ValueError, TypeError) as error:
        raise UserError(
            f"{str(path)!r} is no MATLAB file ({error}); take the file from the official "
            "evaluation tools."
        ) from error
