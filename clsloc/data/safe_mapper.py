"""Turns what can be wrong with an image file into a sentence, also inside loader workers."""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from clsloc.data.images import IMAGE_ERRORS
from clsloc.errors import UserError
from detectron2.data.detection_utils import SizeMismatchError, read_image

Sample = dict[str, Any]
Mapper = Callable[[Sample], Sample]


class SafeMapper:
    """Calls a mapper; a bad image gives a :class:`UserError` as *value*, which
    :func:`raise_errors` raises in the main process. Raised in a worker, it would arrive wrapped
    in that worker's traceback."""

    def __init__(self, mapper: Mapper) -> None:
        self._mapper = mapper

    def __call__(self, sample: Sample) -> Sample | UserError:
        file_name = os.fspath(sample.get("file_name", "?"))
        try:
            return self._mapper(sample)
        except FileNotFoundError:
            reason = "does not exist; check the image folder of the dataset"
        except SizeMismatchError as error:
            text = " ".join(str(error).split()).rstrip(".")
            reason = f"has another size than the annotations say ({text}); correct them"
        except IMAGE_ERRORS as error:
            if isinstance(error, ValueError) and _can_be_read(file_name):
                raise  # a mistake of the mapper
            reason = f"cannot be read ({error}); replace it or drop it from the dataset"
        return UserError(f"The image {file_name!r} {reason}.")


def _can_be_read(file_name: str) -> bool:
    try:
        read_image(file_name, format="RGB")
    except IMAGE_ERRORS:
        return False
    return True


def raise_errors(batches: Iterable[list[Sample | UserError]]) -> Iterator[list[Sample]]:
    """The batches, until one holds an error, which is raised."""
    for batch in batches:
        for sample in batch:
            if isinstance(sample, UserError):
                raise sample
        yield batch


class RaisingLoader:
    """A loader of finite length whose batches go through :func:`raise_errors`."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[Sample]]:
        return raise_errors(self._loader)
