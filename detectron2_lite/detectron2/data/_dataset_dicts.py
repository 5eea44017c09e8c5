"""The samples of registered datasets, joined, filtered and checked."""

import itertools
import logging
import pickle
from collections.abc import Sequence

import numpy as np
import torch.utils.data as torchdata
from tabulate import tabulate
from termcolor import colored

from detectron2._left_out import left_out
from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import check_metadata_consistency
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n

logger = logging.getLogger(__name__)

filter_images_with_few_keypoints = left_out(
    "detectron2.data.build.filter_images_with_few_keypoints"
)


def filter_images_with_only_crowd_annotations(dataset_dicts: list[dict]) -> list[dict]:
    """The samples that have at least one annotation which is not a crowd."""
    kept = [
        sample
        for sample in dataset_dicts
        if any(not ann.get("iscrowd", 0) for ann in sample["annotations"])
    ]
    logger.info(
        f"{len(dataset_dicts) - len(kept)} images without usable annotations were left out, "
        f"{len(kept)} remain."
    )
    return kept


def load_proposals_into_dataset(dataset_dicts: list[dict], proposal_file: str) -> list[dict]:
    """Add precomputed proposals to the samples, best first.

    Args:
        dataset_dicts: samples with "image_id"; changed in place.
        proposal_file: a pickled dict of three parallel lists, "ids" of images, "boxes" (arrays of
            shape (N, 4)) and "objectness_logits" (arrays of shape (N,)), and optionally
            "bbox_mode" (XYXY_ABS unless given). It may hold images that are not in the dataset.

    Returns:
        the samples, with "proposal_boxes", "proposal_objectness_logits", "proposal_bbox_mode".
    """
    logger.info(f"Loading proposals from {proposal_file}")
    with PathManager.open(proposal_file, "rb") as f:
        proposals = pickle.load(f, encoding="latin1")
    for name, first_name in (("ids", "indexes"), ("objectness_logits", "scores")):
        if first_name in proposals:  # as files of the first Detectron call it
            proposals[name] = proposals.pop(first_name)
    position = {str(image_id): i for i, image_id in enumerate(proposals["ids"])}
    bbox_mode = BoxMode(proposals.get("bbox_mode", BoxMode.XYXY_ABS))

    for sample in dataset_dicts:
        i = position[str(sample["image_id"])]
        logits = proposals["objectness_logits"][i]
        best_first = np.argsort(logits)[::-1]
        sample["proposal_boxes"] = proposals["boxes"][i][best_first]
        sample["proposal_objectness_logits"] = logits[best_first]
        sample["proposal_bbox_mode"] = bbox_mode
    return dataset_dicts


def print_instances_class_histogram(dataset_dicts: list[dict], class_names: Sequence[str]) -> None:
    """Log how many instances, crowds not counted, each class has.

    Args:
        dataset_dicts: samples with "annotations".
        class_names: their position is the "category_id" of the annotations.

    Raises:
        AssertionError: if a "category_id" is not the position of a class.
    """
    counts = [0] * len(class_names)
    for ann in itertools.chain.from_iterable(sample["annotations"] for sample in dataset_dicts):
        if ann.get("iscrowd", 0):
            continue
        category = ann["category_id"]
        assert 0 <= category < len(counts), (
            f"An annotation has category_id {category}, but the dataset has {len(counts)} classes, "
            f"so ids go from 0 to {len(counts) - 1}."
        )
        counts[category] += 1

    short_names = [name if len(name) <= 13 else name[:11] + ".." for name in class_names]
    cells = [*zip(short_names, counts), ("total", sum(counts))]
    columns = min(3, len(cells))
    rows = [sum(cells[i : i + columns], ()) for i in range(0, len(cells), columns)]
    table = tabulate(
        rows, headers=["category", "#instances"] * columns, tablefmt="pipe", numalign="left"
    )
    log_first_n(
        logging.INFO,
        f"Instances of the {len(counts)} categories:\n" + colored(table, "cyan"),
        key="message",
    )


def get_detection_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
    check_consistency: bool = True,
) -> list[dict] | torchdata.Dataset:
    """Load registered datasets and join them.

    Args:
        names: one or more names of registered datasets.
        filter_empty: whether to leave out images without annotations other than crowds.
        min_keypoints: must be 0; keypoints are not supported.
        proposal_files: one file of proposals for each name, see
            :func:`load_proposals_into_dataset`.
        check_consistency: whether all datasets must have the same class names.

    Returns:
        the samples of all datasets. Where the registered functions return torch datasets, those
        as they are, concatenated if there are several.
    """
    names = [names] if isinstance(names, str) else list(names)
    assert names, "At least one dataset must be named, got none; see DATASETS in the config."
    per_dataset = [DatasetCatalog.get(name) for name in names]

    if isinstance(per_dataset[0], torchdata.Dataset):
        return torchdata.ConcatDataset(per_dataset) if len(names) > 1 else per_dataset[0]
    for name, samples in zip(names, per_dataset):
        assert len(samples), f"Dataset '{name}' has no samples."
    if proposal_files is not None:
        assert len(proposal_files) == len(names), (
            f"{len(names)} datasets need as many proposal files, got {len(proposal_files)}."
        )
        for samples, proposal_file in zip(per_dataset, proposal_files):
            load_proposals_into_dataset(samples, proposal_file)

    dataset_dicts = list(itertools.chain.from_iterable(per_dataset))
    has_instances = "annotations" in dataset_dicts[0]
    if filter_empty and has_instances:
        dataset_dicts = filter_images_with_only_crowd_annotations(dataset_dicts)
    if min_keypoints > 0 and has_instances:
        dataset_dicts = filter_images_with_few_keypoints(dataset_dicts, min_keypoints)
    metadata = [MetadataCatalog.get(name) for name in names]
    if check_consistency and has_instances and all(hasattr(m, "thing_classes") for m in metadata):
        check_metadata_consistency("thing_classes", names)
        print_instances_class_histogram(dataset_dicts, metadata[0].thing_classes)
    assert dataset_dicts, f"No image of {', '.join(names)} has annotations that can be used."
    return dataset_dicts
