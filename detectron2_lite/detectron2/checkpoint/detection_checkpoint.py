"""``DetectionCheckpointer``: reads Detectron2's checkpoints, model-zoo files and older formats."""

from __future__ import annotations

import os
import pickle
from typing import Any
from urllib.parse import parse_qs

from fvcore.common.checkpoint import Checkpointer
from torch import nn

import detectron2.utils.comm as comm
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.utils.file_io import PathManager

__all__ = ["DetectionCheckpointer"]


class DetectionCheckpointer(Checkpointer):
    """A fvcore ``Checkpointer`` that also reads the following, by the extension of the file:

    - ``.pkl`` of the model zoo: a pickle of ``{"model": arrays, "__author__": name}``;
    - ``.pkl`` of Detectron: a pickle of arrays with Caffe2 names, perhaps below ``"blobs"``;
    - ``.pyth`` of pycls: ``{"model_state": tensors}``;
    - any other file: what ``torch.save`` wrote, either a checkpoint or a plain state dict.

    Where a checkpoint says ``matching_heuristics``, its parameters are matched to the model's by
    the ends of their names. The two formats in the middle imply it; for the last one append
    ``?matching_heuristics=True`` to the path.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        """
        Args:
            model: the model, which may be wrapped for parallel training.
            save_dir: folder of the checkpoints; empty: nothing is saved.
            save_to_disk: whether this process writes; by default only the main process does.
            checkpointables: further objects with ``state_dict`` and ``load_state_dict``.
        """
        if save_to_disk is None:
            save_to_disk = comm.is_main_process()
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = PathManager
        self._query: dict[str, list[str]] = {}

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a file or URL into the model and the checkpointables; every process reads it.

        Args:
            path: anything that ``PathManager`` opens, perhaps followed by a query as described
                for the class. Empty: nothing is loaded.
            checkpointables: names of those to load; None: all that the file has.

        Returns:
            What else the file holds, for example the iteration.
        """
        path, _, query = (path or "").partition("?")
        self._query = parse_qs(query)
        return super().load(path, checkpointables)

    def _load_file(self, filename: str) -> dict[str, Any]:
        extension = os.path.splitext(filename)[1]
        if extension == ".pkl":
            with PathManager.open(filename, "rb") as f:
                # Files of the model zoo were pickled by Python 2.
                return self._describe_pickle(pickle.load(f, encoding="latin1"))
        if extension == ".pyth":
            content = self._torch_load(filename)
            assert "model_state" in content, (
                f"'{filename}' has no 'model_state' and so is not a checkpoint of pycls; "
                "rename it to .pth if it was written by something else."
            )
            return {
                "model": content["model_state"],
                "__author__": "pycls",
                "matching_heuristics": True,
            }
        checkpoint = self._torch_load(filename)
        if "model" not in checkpoint:
            checkpoint = {"model": checkpoint}
        return self._apply_query(checkpoint)

    def _torch_load(self, f: str) -> Any:
        return super()._load_file(f)

    def _describe_pickle(self, content: dict[str, Any]) -> dict[str, Any]:
        """The content of a ``.pkl`` as a checkpoint."""
        if "model" in content and "__author__" in content:
            self.logger.info("The checkpoint was written by '%s'.", content["__author__"])
            return content
        blobs = content.get("blobs", content)
        weights = {k: v for k, v in blobs.items() if not k.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}

    def _apply_query(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        query = dict(self._query)
        if query.pop("matching_heuristics", None) == ["True"]:
            checkpoint["matching_heuristics"] = True
        if query:
            raise ValueError(
                f"The path of a checkpoint has the unknown query {query}; "
                "only '?matching_heuristics=True' is known."
            )
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if checkpoint.get("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            checkpoint["model"] = align_and_update_state_dicts(
                self.model.state_dict(),
                checkpoint["model"],
                c2_conversion=checkpoint.get("__author__") == "Caffe2",
            )
        incompatible = super()._load_model(checkpoint)
        # Nothing is wrong if a backbone's file lacks the pixel statistics, which come from the
        # config, or an old file holds the anchors, which are computed now.
        incompatible.missing_keys[:] = [
            k for k in incompatible.missing_keys if k not in ("pixel_mean", "pixel_std")
        ]
        incompatible.unexpected_keys[:] = [
            k for k in incompatible.unexpected_keys if "anchor_generator.cell_anchors" not in k
        ]
        return incompatible
