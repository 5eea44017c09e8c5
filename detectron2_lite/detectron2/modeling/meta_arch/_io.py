"""What all meta-architectures do with their input dicts and results."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, Instances

InputDicts = list[dict[str, Any]]


def register_pixel_statistics(model: nn.Module, mean: list[float], std: list[float]) -> None:
    """Give the model ``pixel_mean`` and ``pixel_std`` (C, 1, 1), which checkpoints do not hold."""
    if len(mean) != len(std):
        raise ValueError(
            f"MODEL.PIXEL_MEAN and PIXEL_STD must be equally long, not {mean} and {std}."
        )
    model.register_buffer("pixel_mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
    model.register_buffer("pixel_std", torch.tensor(std).view(-1, 1, 1), persistent=False)


def preprocess(model: nn.Module, batched_inputs: InputDicts) -> ImageList:
    """Normalise the images (C, H, W) and pad them to one batch as the model's backbone needs."""
    images = [x["image"].to(model.device) for x in batched_inputs]
    return ImageList.from_tensors(
        [(image - model.pixel_mean) / model.pixel_std for image in images],
        model.backbone.size_divisibility,
        padding_constraints=model.backbone.padding_constraints,
    )


def instances_on_device(
    batched_inputs: InputDicts, key: str, device: torch.device
) -> list[Instances] | None:
    """The Instances under ``key`` of each input, None if the inputs have no such key."""
    if key not in batched_inputs[0]:
        return None
    return [x[key].to(device) for x in batched_inputs]


def postprocess(
    results: list[Instances],
    batched_inputs: InputDicts,
    image_sizes: list[tuple[int, int]],
) -> Iterator[Instances]:
    """Scale each result to the "height" and "width" of its input, by default the image's size."""
    for result, inputs, (height, width) in zip(results, batched_inputs, image_sizes, strict=True):
        yield detector_postprocess(result, inputs.get("height", height), inputs.get("width", width))


def draw_boxes(inputs: dict[str, Any], boxes: np.ndarray, input_format: str) -> tuple:
    """Two pictures (H, W, 3) of an image: with its ground truth, and with ``boxes`` (N, 4)."""
    from detectron2.utils.visualizer import Visualizer  # slow to import, needed only here

    image = convert_image_to_rgb(inputs["image"].permute(1, 2, 0), input_format)
    gt_boxes = inputs["instances"].gt_boxes
    return tuple(
        Visualizer(image, None).overlay_instances(boxes=b).get_image() for b in (gt_boxes, boxes)
    )
