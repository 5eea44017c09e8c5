"""Data loaders for training and testing: batches of mapped samples."""

import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils.data as torchdata

from detectron2.config import CfgNode, configurable
from detectron2.data._dataset_dicts import (
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
    get_detection_dataset_dicts,
    load_proposals_into_dataset,
    print_instances_class_histogram,
)
from detectron2.data.common import (
    AspectRatioGroupedDataset,
    DatasetFromList,
    MapDataset,
    ToIterableDataset,
)
from detectron2.data.dataset_mapper import DatasetMapper
from detectron2.data.samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils.comm import get_world_size
from detectron2.utils.env import seed_all_rng

__all__ = [
    "build_batch_data_loader",
    "build_detection_train_loader",
    "build_detection_test_loader",
    "filter_images_with_few_keypoints",
    "filter_images_with_only_crowd_annotations",
    "get_detection_dataset_dicts",
    "load_proposals_into_dataset",
    "print_instances_class_histogram",
]

logger = logging.getLogger(__name__)


def build_batch_data_loader(
    dataset: torchdata.Dataset,
    sampler: torchdata.Sampler | None,
    total_batch_size: int | None,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    drop_last: bool = True,
    single_gpu_batch_size: int | None = None,
    prefetch_factor: int = 2,
    persistent_workers: bool = False,
    pin_memory: bool = False,
    seed: int | None = None,
    **kwargs: Any,
) -> Any:
    """A loader whose batches are plain lists and may be grouped by aspect ratio.

    Args:
        dataset: map-style or iterable.
        sampler: yields indices into a map-style dataset; None for an iterable one.
        total_batch_size: the number of samples in the batches of all processes together.
        aspect_ratio_grouping: whether to batch wide images and others apart; samples must be
            dicts with "width" and "height". Incomplete batches are always dropped then.
        num_workers: data-loading processes; 0 loads in this process.
        collate_fn: what becomes of the list of samples; by default it is left as it is.
        drop_last: whether to drop an incomplete last batch.
        single_gpu_batch_size: the batch size of each process, in place of ``total_batch_size``.
        prefetch_factor: batches that each worker loads in advance.
        persistent_workers, pin_memory, kwargs: handed to ``torch.utils.data.DataLoader``.
        seed: of the random numbers in the workers; None draws it from torch's global state.

    Returns:
        an iterable of batches.
    """
    batch_size = _local_batch_size(total_batch_size, single_gpu_batch_size)
    logger.info(f"Batches of {batch_size} samples per process")
    if isinstance(dataset, torchdata.IterableDataset):
        assert sampler is None, "An iterable dataset has its own order; its sampler must be None."
    else:
        # Chunks of the batch size keep batches the same whatever the number of workers.
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)

    options = {
        "num_workers": num_workers,
        "worker_init_fn": worker_init_reset_seed,
        "prefetch_factor": prefetch_factor if num_workers > 0 else None,
        "persistent_workers": persistent_workers,
        "pin_memory": pin_memory,
        "generator": None if seed is None else torch.Generator().manual_seed(seed),
        **kwargs,
    }
    if not aspect_ratio_grouping:
        return torchdata.DataLoader(
            dataset,
            batch_size=batch_size,
            drop_last=drop_last,
            collate_fn=collate_fn or trivial_batch_collator,
            **options,
        )
    assert drop_last, "Batches grouped by aspect ratio are always complete; drop_last must be True."
    samples = torchdata.DataLoader(dataset, collate_fn=operator.itemgetter(0), **options)
    batches = AspectRatioGroupedDataset(samples, batch_size)
    return batches if collate_fn is None else MapDataset(batches, collate_fn)


def _local_batch_size(total_batch_size: int | None, single_gpu_batch_size: int | None) -> int:
    if single_gpu_batch_size:
        if total_batch_size:
            raise ValueError(
                f"Give either total_batch_size ({total_batch_size}) or "
                f"single_gpu_batch_size ({single_gpu_batch_size}), not both."
            )
        return single_gpu_batch_size
    world_size = get_world_size()
    assert total_batch_size and total_batch_size > 0 and total_batch_size % world_size == 0, (
        f"The total batch size must be a positive multiple of the number of processes "
        f"({world_size}), got {total_batch_size}."
    )
    return total_batch_size // world_size


def _train_sampler_from_config(cfg: CfgNode, dataset: Any) -> torchdata.Sampler | None:
    if isinstance(dataset, torchdata.IterableDataset):
        logger.info("The training dataset is iterable; no sampler is used.")
        return None
    name = cfg.DATALOADER.SAMPLER_TRAIN
    logger.info(f"Training sampler: {name}")
    if name == "TrainingSampler":
        # A SEED below 0 asks for a random run, but as in Detectron2 the order of the data is fixed.
        return TrainingSampler(len(dataset), seed=cfg.SEED)
    if name == "RandomSubsetTrainingSampler":
        return RandomSubsetTrainingSampler(len(dataset), cfg.DATALOADER.RANDOM_SUBSET_RATIO)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        return RepeatFactorTrainingSampler(factors, seed=cfg.SEED)
    raise ValueError(
        f"DATALOADER.SAMPLER_TRAIN is '{name}'; use TrainingSampler, "
        "RepeatFactorTrainingSampler or RandomSubsetTrainingSampler."
    )


def _train_loader_from_config(
    cfg: CfgNode,
    mapper: Callable[[dict], Any] | None = None,
    *,
    dataset: Any = None,
    sampler: torchdata.Sampler | None = None,
) -> dict:
    if dataset is None:
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=(
                cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
            ),
            proposal_files=(
                cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None
            ),
        )
    if mapper is None:
        mapper = DatasetMapper(cfg, True)
    return {
        "dataset": dataset,
        "sampler": _train_sampler_from_config(cfg, dataset) if sampler is None else sampler,
        "mapper": mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


def _mapped_dataset(dataset: Any, mapper: Callable[[dict], Any] | None) -> torchdata.Dataset:
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    return dataset if mapper is None else MapDataset(dataset, mapper)


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: list[dict] | torchdata.Dataset,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: torchdata.Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    **kwargs: Any,
) -> Any:
    """A loader of training batches, endless with the usual samplers; also called with a config.

    Args:
        dataset: samples, or a torch dataset of them (map-style or iterable).
        mapper: makes the model's input of a sample; None to leave samples as they are. From a
            config: ``DatasetMapper(cfg, True)``.
        sampler: yields indices into a map-style dataset, by default a :class:`TrainingSampler`;
            None for an iterable one.
        total_batch_size, aspect_ratio_grouping, num_workers, collate_fn, kwargs: see
            :func:`build_batch_data_loader`.

    Returns:
        an iterable of this process's batches, lists of mapped samples.
    """
    dataset = _mapped_dataset(dataset, mapper)
    if not isinstance(dataset, torchdata.IterableDataset):
        if sampler is None:
            sampler = TrainingSampler(len(dataset))
        assert isinstance(sampler, torchdata.Sampler), f"Expected a Sampler, got {sampler!r}."
    return build_batch_data_loader(
        dataset,
        sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        **kwargs,
    )


def _test_loader_from_config(
    cfg: CfgNode, dataset_name: str | Sequence[str], mapper: Callable[[dict], Any] | None = None
) -> dict:
    """``dataset_name`` is given because test sets are evaluated one at a time."""
    names = [dataset_name] if isinstance(dataset_name, str) else list(dataset_name)
    proposal_files = None
    if cfg.MODEL.LOAD_PROPOSALS:
        file_of = dict(zip(cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST))
        proposal_files = [file_of[name] for name in names]
    dataset = get_detection_dataset_dicts(names, filter_empty=False, proposal_files=proposal_files)
    iterable = isinstance(dataset, torchdata.IterableDataset)
    return {
        "dataset": dataset,
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "sampler": None if iterable else InferenceSampler(len(dataset)),
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: list[dict] | torchdata.Dataset,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: torchdata.Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
) -> torchdata.DataLoader:
    """A loader that visits every sample once; also called with a config and a dataset's name.

    Args:
        dataset, mapper: see :func:`build_detection_train_loader`.
        sampler: by default an :class:`InferenceSampler`; None for an iterable dataset.
        batch_size: per process; 1 is usual, so that no image is padded to the size of another.
        num_workers, collate_fn: see :func:`build_batch_data_loader`.
    """
    dataset = _mapped_dataset(dataset, mapper)
    if isinstance(dataset, torchdata.IterableDataset):
        assert sampler is None, "An iterable dataset has its own order; its sampler must be None."
    elif sampler is None:
        sampler = InferenceSampler(len(dataset))
    return torchdata.DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate_fn or trivial_batch_collator,
    )


def trivial_batch_collator(batch: list) -> list:
    """The batch as it is: samples of different sizes cannot be stacked."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Give each data-loading worker its own seed for all random number generators."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)
