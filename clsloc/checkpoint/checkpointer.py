"""Detectron2's checkpointer with the guards of the core."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from clsloc.errors import UserError
from clsloc.files import atomic_write
from detectron2.checkpoint import DetectionCheckpointer

from .digest import LoadDigest
from .safe_load import load_pickle, load_torch

logger = logging.getLogger(__name__)


class Checkpointer(DetectionCheckpointer):
    """Reads the same files as Detectron2's; differs in four points.

    - Loading never runs code from a file (:mod:`clsloc.checkpoint.safe_load`).
    - A checkpoint is written whole or not at all, and ``last_checkpoint`` names it only then.
    - After loading, :attr:`digest` and the log say what was loaded, skipped and missing.
    - With ``complete=True`` (evaluation, prediction) an empty path is an error, and so is a tensor
      left unfilled; without, a file that fills no tensor at all is.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        complete: bool = False,
        extra: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            complete: see above.
            extra: plain values stored in every checkpoint, such as the class names.
            kwargs: see ``DetectionCheckpointer``.
        """
        super().__init__(model, save_dir, **kwargs)
        self.complete = complete
        self.extra = extra or {}
        self.digest: LoadDigest | None = None
        self._path = ""
        self._in_file = 0
        self._resuming = False

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if self.complete and not path:
            raise UserError(
                "There are no weights, since MODEL.WEIGHTS is empty; name the file of a trained "
                "model, or evaluate the last checkpoint in OUTPUT_DIR with --eval-only --resume."
            )
        self._path = path
        try:
            return super().load(path, *args, **kwargs)
        except (AssertionError, OSError) as error:
            if os.path.isfile(path):
                raise
            reason = "it does not exist" if isinstance(error, AssertionError) else str(error)
            raise UserError(
                f"The weight file {path!r} cannot be had ({reason}); check MODEL.WEIGHTS. "
                "docs/custom_data.md says where weights to start from are found."
            ) from error

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As in fvcore, but resuming without a complete checkpoint, or with that of another
        config, is an error."""
        if resume:
            file = self.get_checkpoint_file() if self.has_checkpoint() else ""
            if not os.path.isfile(file):
                what = f"the checkpoint {file!r} is gone" if file else "no checkpoint is there"
                raise UserError(
                    f"There is nothing to resume in {self.save_dir!r} ({what}); "
                    "leave out --resume to start anew, or name the folder in OUTPUT_DIR."
                )
        self._resuming = resume and not self.complete
        try:
            return super().resume_or_load(path, resume=resume)
        except (KeyError, ValueError) as error:  # of the optimizer and the trainer
            if not self._resuming:
                raise
            lacks = f"it has no {error}" if isinstance(error, KeyError) else _first_line(error)
            raise UserError(_of_another_config(self._path, lacks)) from error
        finally:
            self._resuming = False

    def save(self, name: str, **kwargs: Any) -> None:
        self.save_aside(name, **kwargs)
        if self.save_dir and self.save_to_disk:
            self.tag_last_checkpoint(f"{name}.pth")

    def save_aside(self, name: str, **kwargs: Any) -> None:
        """As ``save``, but resuming will not start from this checkpoint."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data |= {key: item.state_dict() for key, item in self.checkpointables.items()}
        path = os.path.join(self.save_dir, f"{name}.pth")
        try:
            with atomic_write(path) as file:
                torch.save(data | self.extra | kwargs, file)
        except RuntimeError as error:  # how torch reports that the file took no more bytes
            raise UserError(
                f"The checkpoint {path!r} could not be written ({_first_line(error)}); free some "
                "space there and continue with --resume from the one before."
            ) from error
        logger.info("Saved the checkpoint %s.", path)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(os.path.join(self.save_dir, "last_checkpoint"), "w") as file:
            file.write(last_filename_basename)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if not filename.endswith(".pkl"):
            return super()._load_file(filename)
        content = _by_name(load_pickle(filename), filename)
        if "model" in content and "__author__" in content:
            return content
        # A Caffe2 file: bare arrays, or arrays under "blobs"; its names need matching.
        arrays = _by_name(content.get("blobs", content), filename)
        model = {name: array for name, array in arrays.items() if not name.endswith("_momentum")}
        return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, filename: str) -> Any:
        return _by_name(load_torch(filename), filename)

    def _load_model(self, checkpoint: Any) -> Any:
        state = _by_name(checkpoint["model"], self._path, (torch.Tensor, np.ndarray))
        self._in_file = len(state)
        return super()._load_model(checkpoint)

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        self.digest = digest = LoadDigest.of(self.model, incompatible, self._in_file)
        if self.complete and not digest.complete:
            raise UserError(_incomplete(self._path, digest))
        if self._resuming and not digest.complete:
            raise UserError(_of_another_config(self._path, _problem(digest)))
        if digest.loaded == 0:
            raise UserError(
                f"No tensor of {self._path!r} fits the model; check that MODEL.WEIGHTS belongs to "
                f"this architecture: the file has {', '.join(digest.unused[:2])}, ..., the model "
                f"{', '.join(digest.missing[:2])}, ...; tools/convert_weights.py renames tensors."
            )
        for line in digest.lines():
            logger.info("%s: %s.", self._path, line)


def _by_name(content: Any, path: str, kinds: type | tuple[type, ...] = object) -> dict[str, Any]:
    """``content``, if it is a mapping to objects of these kinds."""
    if isinstance(content, Mapping) and all(isinstance(v, kinds) for v in content.values()):
        return content
    raise UserError(
        f"The weight file {path!r} holds no tensors by name; give a checkpoint or a state dict."
    )


def _incomplete(path: str, digest: LoadDigest) -> str:
    if digest.mismatched:
        remedy = "check the number of classes in the config"
    else:
        remedy = "check that the config is the one that the weights were trained with"
    return (
        f"The weights {path!r} do not fill the model: {_problem(digest)}; {remedy}, since a part "
        "left at its initial values would make up its output."
    )


def _problem(digest: LoadDigest) -> str:
    if digest.mismatched:
        name, found, wanted = digest.mismatched[0]
        return f"{name} has shape {list(found)} there and {list(wanted)} in the model"
    return f"{digest.missing[0]} and {len(digest.missing) - 1} more tensors are missing"


def _of_another_config(path: str, reason: str) -> str:
    return (
        f"The checkpoint {path!r} belongs to another config ({reason}); resume with the config of "
        "that run, or choose another OUTPUT_DIR."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
