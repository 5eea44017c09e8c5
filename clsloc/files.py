"""Output: files that are written whole or not at all, folders, and pictures."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from clsloc.errors import UserError

if TYPE_CHECKING:  # python -m clsloc.env works without PIL
    from PIL import Image

_NO_RIGHT = "choose an output folder that you may write to"
_REMEDIES = {
    errno.ENOSPC: "free some space there or choose another output folder",
    errno.EDQUOT: "free some of the quota or choose another output folder",
    errno.EFBIG: "raise the limit for the size of files or choose another output folder",
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.EROFS: _NO_RIGHT,
    errno.ENOTDIR: "a part of this path is a file; choose another output folder",
    errno.EISDIR: "this is a folder; choose another name",
}
OUTPUT_ERRORS = frozenset(_REMEDIES)
"""The ``errno`` values of errors that the choice of the output folder causes."""


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """Open a file that appears under ``path`` only when the block ends without an error.

    The content goes to a temporary file in the same folder, is flushed to the disk and renamed;
    a process killed at any moment leaves the earlier file as it was. The folder is made if needed.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    path = os.fspath(path)
    folder = os.path.dirname(path) or "."
    temporary = None
    try:
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=folder)
        # mkstemp makes private files; a result should get the usual rights.
        os.chmod(temporary, 0o666 & ~_umask())
        with os.fdopen(handle, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if temporary is not None:
            os.unlink(temporary)


def make_folder(name: str) -> Path:
    """Make a folder, and those around it, unless it exists.

    Raises:
        UserError: it cannot be made.
    """
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(name, error) from error
    return folder


def save_picture(picture: "Image.Image", path: Path, **options: Any) -> None:
    """Save a picture in the format that the ending of ``path`` says.

    Args:
        options: of the format, such as ``quality``.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        picture.save(path, **options)
    except OSError as error:
        raise write_error(str(path), error) from error


def write_error(path: str, error: OSError) -> UserError:
    """The sentence for a file that could not be written."""
    remedy = _REMEDIES.get(error.errno, "check the output folder")
    return UserError(f"{path!r} could not be written ({error.strerror or error}); {remedy}.")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
