"""Predicting on single images, and telling the result in the terms of the dataset."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from clsloc.checkpoint import Checkpointer
from clsloc.data.safe_mapper import thinness
from clsloc.errors import UserError
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.structures import BoxMode, Instances

Category = dict[str, Any]


class Predictor(DefaultPredictor):
    """``DefaultPredictor`` whose weights are loaded safely and have to fill the whole model.

    Called with a BGR image (H, W, 3) of uint8, it returns ``{"instances": Instances}`` in the
    coordinates of that image.

    Attributes:
        categories: ``{"id", "name"}`` of each class in the order of their indices: the names that
            are stored with the weights, with the ids of the config's dataset where it has the same
            classes; without stored names those of the dataset (:func:`find_categories`).
    """

    def __init__(self, cfg: CfgNode) -> None:
        without_weights = cfg.clone()
        without_weights.defrost()
        without_weights.MODEL.WEIGHTS = ""
        super().__init__(without_weights)
        self.cfg = cfg.clone()
        stored = Checkpointer(self.model, complete=True).load(cfg.MODEL.WEIGHTS)
        datasets = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
        self.categories = _known_categories(
            stored.get("thing_classes"), find_categories(datasets), self.model
        )

    def predict(self, images: Sequence[np.ndarray]) -> list[dict[str, Instances]]:
        """As calling it on each image, in one pass of the model.

        Images that differ in size after resizing are padded to a common one, which changes
        predictions near the padding a little; see :func:`batches_of_one_size`.

        Args:
            images: BGR (H, W, 3) of uint8; may be empty.
        """
        if not images:
            return []
        with torch.no_grad():
            return self.model([self._prepare(image) for image in images])

    def check_size(self, image: np.ndarray, name: str) -> None:
        """
        Args:
            name: of the file, for the error.

        Raises:
            UserError: the image is so thin that resizing would leave no pixel of it.
        """
        height, width = image.shape[:2]
        resized = self.aug.get_transform(image)
        sides = getattr(resized, "new_h", height), getattr(resized, "new_w", width)
        if min(sides) < 1:
            reason = thinness(width, height, "INPUT.MAX_SIZE_TEST", self.cfg.INPUT.MAX_SIZE_TEST)
            raise UserError(f"{name!r} {reason}.")

    def _prepare(self, image: np.ndarray) -> dict[str, Any]:
        height, width = image.shape[:2]
        if self.input_format == "RGB":
            image = image[:, :, ::-1]
        resized = self.aug.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
        return {"image": tensor, "height": height, "width": width}


def batches_of_one_size(
    items: Iterable[tuple[Any, np.ndarray]], batch_size: int
) -> Iterator[list[tuple[Any, np.ndarray]]]:
    """Cut a stream of (anything, image) into batches of consecutive images of one size.

    In such a batch nothing is padded that would not be padded alone, and no more than one batch
    is held in memory.
    """
    batch: list[tuple[Any, np.ndarray]] = []
    for item in items:
        if batch and (len(batch) == batch_size or item[1].shape != batch[0][1].shape):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _known_categories(
    stored: Sequence[str] | None, of_dataset: list[Category], model: nn.Module
) -> list[Category]:
    """The class names stored with the weights count; ids are those of a dataset with the same."""
    if stored and [category["name"] for category in of_dataset] != list(stored):
        return [{"id": index, "name": name} for index, name in enumerate(stored)]
    return of_dataset or _numbered(model)


def find_categories(dataset_names: Sequence[str]) -> list[Category]:
    """The classes of the first of these datasets that tells them, in the order of their indices.

    Returns:
        ``{"id", "name"}`` of each class. The id is the dataset's own, or the index of the class
        where the dataset has no ids (VOC). Empty if no dataset is registered or can be loaded.
    """
    for name in dataset_names:
        if name in DatasetCatalog.list():
            metadata = _loaded_metadata(name)
            if names := metadata.get("thing_classes"):
                index_of = metadata.get("thing_dataset_id_to_contiguous_id") or {}
                id_of = {index: own_id for own_id, index in index_of.items()}
                return [{"id": id_of.get(i, i), "name": text} for i, text in enumerate(names)]
    return []


def _loaded_metadata(name: str) -> Metadata:
    """Metadata with the classes, which many datasets learn only when they are loaded."""
    metadata = MetadataCatalog.get(name)
    needs_ids = metadata.get("json_file") and not metadata.get("thing_dataset_id_to_contiguous_id")
    if needs_ids or not metadata.get("thing_classes"):
        try:
            DatasetCatalog.get(name)
        except (UserError, OSError):
            pass  # prediction may run where the data is not
    return metadata


def _numbered(model: nn.Module) -> list[Category]:
    count = getattr(getattr(model, "roi_heads", model), "num_classes", 0)
    return [{"id": index, "name": f"class {index}"} for index in range(count)]


def coco_annotations(instances: Instances, categories: Sequence[Category]) -> list[dict[str, Any]]:
    """Detections of one image as COCO annotations with a score and without ids; boxes are XYWH.

    Raises:
        UserError: the model predicts a class that is not among ``categories``.
    """
    boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    rows = zip(boxes.tolist(), instances.scores.tolist(), instances.pred_classes.tolist())
    return [
        {
            "category_id": _category(index, categories)["id"],
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            "score": score,
        }
        for box, score, index in rows
    ]


def _category(index: int, categories: Sequence[Category]) -> Category:
    if index >= len(categories):
        raise UserError(
            f"The model predicts class {index}, but its dataset has {len(categories)} classes; "
            "name in DATASETS.TEST the dataset with whose classes it was trained."
        )
    return categories[index]
