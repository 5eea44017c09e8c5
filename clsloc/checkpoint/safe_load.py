"""Reads weight files without running code from them."""

import io
import os
import pickle
from typing import Any

import numpy as np
import torch

from clsloc.errors import UserError

# What a model-zoo file is made of: arrays and plain containers. The array helpers moved from
# numpy.core to numpy._core in NumPy 2.
_ADMITTED = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
} | {
    (f"numpy.{core}.multiarray", name)
    for core in ("core", "_core")
    for name in ("_reconstruct", "scalar")
}


class _ArrayUnpickler(pickle.Unpickler):
    """Admits arrays and plain containers alone."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it holds an object of type {module}.{name}")
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)


def load_pickle(path: str) -> Any:
    """The content of a ``.pkl`` file of arrays and plain containers, such as a model-zoo file.

    Raises:
        UserError: the file is damaged, or holds any other kind of object; no code of it is run.
    """
    with _open(path) as file:
        try:
            # latin1: the files were written by Python 2.
            return _ArrayUnpickler(file, encoding="latin1").load()
        except Exception as error:  # bytes of unknown origin may raise anything
            raise _unreadable(path, error) from error


def load_torch(path: str) -> Any:
    """The content of a file written by ``torch.save``, tensors on the CPU.

    Old files may hold NumPy scalars; these are admitted beside what ``weights_only`` admits.

    Raises:
        UserError: the file is damaged, or holds any other kind of object; no code of it is run.
    """
    with _open(path) as file:
        try:
            with torch.serialization.safe_globals(_numpy_scalars()):
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # as above
            raise _unreadable(path, error) from error


def load_file(path: str) -> Any:
    """The content of a weight file; the ending ``.pkl`` tells a pickle from a ``torch.save``."""
    return load_pickle(path) if path.endswith(".pkl") else load_torch(path)


def _numpy_scalars() -> list[Any]:
    scalar = np._core.multiarray.scalar
    kinds = "?bhilqBHILQefd"
    return [
        np.dtype,
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        *{type(np.dtype(kind)) for kind in kinds},
    ]


def _open(path: str) -> io.BufferedReader:
    if os.path.isdir(path):
        raise UserError(f"The weight file {path!r} is a folder; give the path of the file.")
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        raise UserError(f"The weight file {path!r} does not exist; check its path.") from error
    except OSError as error:
        raise UserError(f"The weight file {path!r} cannot be read: {error.strerror}.") from error


def _unreadable(path: str, error: Exception) -> UserError:
    # PyTorch goes on with advice to load it unsafely.
    reason = " ".join(str(error).split()).split(". In PyTorch")[0] or type(error).__name__
    if len(reason) > 200:
        reason = reason[:200] + "..."
    return UserError(
        f"The weight file {path!r} is damaged or holds more than tensors, arrays and plain "
        f"containers ({reason}); fetch it again, or save its state dict alone."
    )
