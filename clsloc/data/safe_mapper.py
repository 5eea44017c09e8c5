"""Turns what can be wrong with an image file into a sentence, also inside loader workers."""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from clsloc.data.augmentations import ResizeWithinRandomLimit
from clsloc.data.images import IMAGE_ERRORS, upright_size
from clsloc.errors import UserError
from detectron2.data.detection_utils import SizeMismatchError, read_image
from detectron2.data.transforms import ResizeShortestEdge

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
        except Exception as error:  # also what a resize to no pixel raises, which varies
            if _is_of_the_file(error, file_name):
                reason = f"cannot be read ({error}); replace it or drop it from the dataset"
            elif not (reason := self._thinness(file_name)):
                raise  # a mistake of the mapper
        return UserError(f"The image {file_name!r} {reason}.")

    def _thinness(self, file_name: str) -> str:
        """See :func:`thinness`; empty if resizing leaves something of the image."""
        augmentations = getattr(self._mapper, "augmentations", None)  # as DatasetMapper has
        for augmentation in getattr(augmentations, "augs", ()):
            if isinstance(augmentation, ResizeShortestEdge):
                split = "TRAIN" if self._mapper.is_train else "TEST"
                key, limit = f"INPUT.MAX_SIZE_{split}", augmentation.max_size
            elif isinstance(augmentation, ResizeWithinRandomLimit):
                key, limit = "the start of CLSLOC.INPUT.MAX_SIZE_RANGE", min(augmentation.limits)
            else:
                continue
            width, height = upright_size(file_name)
            # Half a pixel rounds up to one, or, of floats, down.
            if 2 * min(width, height) * limit <= max(width, height):
                return thinness(width, height, key, limit)
        return ""


def thinness(width: int, height: int, key: str, limit: int) -> str:
    """What is wrong with an image of which resizing the longer side to ``limit``, the value of
    the config's ``key``, leaves no pixel."""
    enough = max(width, height) // (2 * min(width, height)) + 1  # more than half a pixel
    return (
        f"is too thin: {width} pixels wide and {height} high, no pixel is left of the shorter "
        f"side when the longer one is resized to {limit}; leave it out or raise {key} to {enough}"
    )


def _is_of_the_file(error: Exception, file_name: str) -> bool:
    if isinstance(error, ValueError):  # of the mapper, if the file is sound
        return not _can_be_read(file_name)
    return isinstance(error, IMAGE_ERRORS)


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
