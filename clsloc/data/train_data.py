"""The training loader of a config."""

from functools import partial

import numpy as np
from torch.utils.data import Sampler

from clsloc.data.augmentations import build_train_augmentations
from clsloc.data.crowd_mapper import CrowdMapper
from clsloc.data.square_crop import CentreMapper
from clsloc.data.train_loader import Mapper, TrainLoader
from clsloc.errors import UserError
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)


def build_train_loader(cfg: CfgNode, seed: int, mapper: Mapper | None = None) -> TrainLoader:
    """The loader of ``DATASETS.TRAIN`` with what ``DATALOADER`` and ``INPUT`` say.

    Args:
        seed: of the order of the samples and of their augmentation.
        mapper: if None, a :class:`~clsloc.data.crowd_mapper.CrowdMapper`, or for square crops a
            :class:`~clsloc.data.square_crop.CentreMapper`, with the augmentations of
            :func:`~clsloc.data.augmentations.build_train_augmentations`.

    Raises:
        UserError: there is no image to train on, or the sampler is unknown.
    """
    dicts = training_dicts(cfg)
    return TrainLoader(
        DatasetFromList(dicts, copy=False),
        _default_mapper(cfg) if mapper is None else mapper,
        _sampler_maker(cfg, dicts),
        cfg.SOLVER.IMS_PER_BATCH,
        seed=seed,
        wide=_wider_than_high(dicts) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def _wider_than_high(dicts: list[dict]) -> np.ndarray:
    # Of the plain dicts: a DatasetFromList would unpickle each of them.
    return np.array([sample["width"] > sample["height"] for sample in dicts], dtype=bool)


def _default_mapper(cfg: CfgNode) -> CrowdMapper:
    kind = CentreMapper if len(cfg.CLSLOC.INPUT.SQUARE_CROP.SHARES) else CrowdMapper
    return kind(cfg, is_train=True, augmentations=build_train_augmentations(cfg))


def training_dicts(cfg: CfgNode) -> list[dict]:
    """The dataset dicts of all training sets together."""
    if not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty; name the datasets to train on.")
    try:
        return get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
    except AssertionError as error:
        raise UserError(
            f"The training sets {list(cfg.DATASETS.TRAIN)} hold no image to train on ({error}); "
            "look at them with tools/check_dataset.py, or keep images without objects with "
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS False."
        ) from error


def _sampler_maker(cfg: CfgNode, dicts: list[dict]) -> partial[Sampler]:
    match cfg.DATALOADER.SAMPLER_TRAIN:
        case "TrainingSampler":
            return partial(_seeded, TrainingSampler, len(dicts))
        case "RepeatFactorTrainingSampler":
            factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
                dicts, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
            )
            return partial(_seeded, RepeatFactorTrainingSampler, factors)
        case "RandomSubsetTrainingSampler":
            return partial(_subset, len(dicts), cfg.DATALOADER.RANDOM_SUBSET_RATIO)
        case other:
            raise UserError(
                f"DATALOADER.SAMPLER_TRAIN {other!r} is unknown; choose TrainingSampler, "
                "RepeatFactorTrainingSampler or RandomSubsetTrainingSampler."
            )


def _seeded(kind: type[Sampler], argument: object, seed: int) -> Sampler:
    return kind(argument, seed=seed)


def _subset(size: int, ratio: float, seed: int) -> Sampler:
    # The same subset in every run of one seed, too.
    return RandomSubsetTrainingSampler(size, ratio, seed_shuffle=seed, seed_subset=seed)
