"""The same images with the ground truth and the predictions of many methods."""

import json
import random
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.ops import nms

from clsloc.errors import UserError
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from detectron2.utils.visualizer import Visualizer

TRUTH = "ground truth"
TRUTH_COLOUR, RIGHT, WRONG = "#4db8ff", "#00e05a", "#ff5a4f"
RIGHT_IOU = 0.5
SAME_PLACE_IOU = 0.5
LONGER_SIDE = 320  # pixels of a picture
QUALITY = 82

Record = dict[str, Any]  # of a dataset
Prediction = dict[str, Any]  # of coco_instances_results.json


def draw_gallery(
    dataset: str, folders: Mapping[str, Path], count: int, seed: int = 0
) -> list[tuple[str, dict[str, bytes]]]:
    """Pictures of some images of a dataset.

    Of each method as many predictions are drawn as the image has objects, the best scored: scores
    of different methods mean different things, and a common threshold would be fair to none. Of
    predictions at one place, whatever their classes, only the best scored counts.

    Args:
        dataset: the name of a registered one.
        folders: of one run of each method; a run without stored predictions is left out.
        count: how many images that have objects to take.
        seed: chooses them.

    Returns:
        For each image its file name and JPEG files by title, :data:`TRUTH` first.

    Raises:
        UserError, OSError: the dataset or an image is not there.
    """
    if dataset not in DatasetCatalog.list():
        raise UserError(f"There is no dataset {dataset!r}.")
    records = [record for record in DatasetCatalog.get(dataset) if _objects(record)]
    chosen = sorted(random.Random(seed).sample(range(len(records)), min(count, len(records))))
    records = [records[index] for index in chosen]
    metadata = MetadataCatalog.get(dataset)
    found = {
        method: _read_predictions(path, [record["image_id"] for record in records])
        for method, folder in folders.items()
        for path in [predictions_file(folder, dataset)]
        if path.exists()
    }
    return [
        (Path(record["file_name"]).name, _draw_image(record, metadata, found)) for record in records
    ]


def predictions_file(folder: Path, dataset: str) -> Path:
    """Where a run keeps its predictions; after several datasets each has a folder of its own."""
    name = "coco_instances_results.json"
    of_dataset = folder / "inference" / dataset / name
    return of_dataset if of_dataset.exists() else folder / "inference" / name


def _objects(record: Record) -> list[dict[str, Any]]:
    return [item for item in record.get("annotations", ()) if not item.get("iscrowd", 0)]


def _read_predictions(path: Path, image_ids: Sequence[Any]) -> dict[Any, list[Prediction]]:
    """Those of some images."""
    of_image: dict[Any, list[Prediction]] = {image_id: [] for image_id in image_ids}
    for prediction in json.loads(path.read_text(encoding="utf-8")):
        if prediction["image_id"] in of_image:
            of_image[prediction["image_id"]].append(prediction)
    return of_image


def _draw_image(
    record: Record, metadata: Metadata, found: Mapping[str, Mapping[Any, list[Prediction]]]
) -> dict[str, bytes]:
    image = read_image(record["file_name"], format="RGB")
    names = metadata.get("thing_classes")
    objects = _objects(record)
    true_boxes = torch.tensor(
        [BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS) for item in objects]
    )
    true_classes = [item["category_id"] for item in objects]
    labels = [names[index] for index in true_classes]
    pictures = {TRUTH: _draw(image, true_boxes, labels, [TRUTH_COLOUR] * len(objects))}
    index_of = metadata.get("thing_dataset_id_to_contiguous_id")
    for method, predictions in found.items():
        boxes, best = _best_of_places(predictions[record["image_id"]], len(objects))
        classes = [index_of[p["category_id"]] if index_of else p["category_id"] for p in best]
        ious = match(boxes, classes, true_boxes, true_classes)
        labels = [
            names[index] if iou is None else f"{iou:.2f}" for index, iou in zip(classes, ious)
        ]
        colours = [WRONG if iou is None else RIGHT for iou in ious]
        pictures[method] = _draw(image, boxes, labels, colours)
    return pictures


def _best_of_places(
    predictions: Sequence[Prediction], count: int
) -> tuple[torch.Tensor, list[Prediction]]:
    """The ``count`` best scored predictions that do not cover each other, and their boxes XYXY."""
    boxes = torch.tensor([p["bbox"] for p in predictions], dtype=torch.float32).reshape(-1, 4)
    boxes = BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    kept = nms(boxes, torch.tensor([p["score"] for p in predictions]), SAME_PLACE_IOU)[:count]
    return boxes[kept], [predictions[index] for index in kept]


def match(
    boxes: torch.Tensor,
    classes: Sequence[int],
    true_boxes: torch.Tensor,
    true_classes: Sequence[int],
) -> list[float | None]:
    """The IoU of each prediction with the object that it finds, or None.

    Args:
        boxes: (R, 4) XYXY, the best scored first, with their ``classes``.
        true_boxes: (M, 4) XYXY, with their ``true_classes``. An object is found once, by the first
            prediction of its class with an IoU of :data:`RIGHT_IOU` or more.
    """
    overlap = pairwise_iou(Boxes(boxes), Boxes(true_boxes))
    overlap[torch.tensor(classes)[:, None] != torch.tensor(true_classes)[None]] = 0
    ious: list[float | None] = []
    for row in overlap:
        iou, index = row.max(0)
        if right := bool(iou >= RIGHT_IOU):
            overlap[:, index] = 0
        ious.append(float(iou) if right else None)
    return ious


def _draw(
    image: np.ndarray, boxes: torch.Tensor, labels: Sequence[str], colours: Sequence[str]
) -> bytes:
    """A JPEG file of the image with boxes (R, 4) XYXY, the first ones on top."""
    drawer = Visualizer(image, scale=LONGER_SIDE / max(image.shape[:2]))
    for box, label, colour in list(zip(boxes.tolist(), labels, colours))[::-1]:
        drawer.draw_box(box, alpha=1, edge_color=colour)
        drawer.draw_text(label, box[:2], color=colour, horizontal_alignment="left")
    file = BytesIO()
    Image.fromarray(drawer.output.get_image()).save(file, format="JPEG", quality=QUALITY)
    return file.getvalue()
