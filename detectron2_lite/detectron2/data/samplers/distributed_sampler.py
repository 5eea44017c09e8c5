"""Samplers in which every process takes its own share of one common stream of indices.

All processes draw the same stream from the same seed, so that no communication is needed
beyond agreeing on that seed once. None of them shards over data-loading workers:
``ToIterableDataset`` does that for samplers that run inside a worker.
"""

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterator

import torch
from torch.utils.data.sampler import Sampler

from detectron2.utils import comm

logger = logging.getLogger(__name__)


def _seeded_generator(seed: int) -> torch.Generator:
    generator = torch.Generator()
    generator.manual_seed(seed)
    return generator


class _SharedStreamSampler(Sampler):
    """Deals the endless stream of ``_infinite_indices`` out to the processes in turn.

    Process r of W yields items r, r + W, r + 2W, ... of the stream.
    """

    def __init__(self, shuffle: bool, seed: int | None) -> None:
        self._shuffle = shuffle
        self._seed = comm.shared_random_seed() if seed is None else int(seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def _infinite_indices(self) -> Iterator[int]:
        generator = _seeded_generator(self._seed)
        while True:
            indices = self._get_epoch_indices(generator)
            if self._shuffle:
                indices = indices[torch.randperm(len(indices), generator=generator)]
            yield from indices.tolist()

    def _get_epoch_indices(self, generator: torch.Generator) -> torch.Tensor:
        """The indices of one epoch, unshuffled; ``generator`` serves samplers that draw them."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)


class TrainingSampler(_SharedStreamSampler):
    """An endless stream in which each epoch holds every index once."""

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None) -> None:
        """
        Args:
            size: the number of samples in the dataset.
            shuffle: whether each epoch comes in a new random order.
            seed: of the shuffling; must be equal in all processes. None draws one and shares it.
        """
        if not isinstance(size, int):
            raise TypeError(f"The size of a dataset must be an int, got {size!r}.")
        if size <= 0:
            raise ValueError(f"A TrainingSampler needs a dataset of at least 1 sample, got {size}.")
        super().__init__(shuffle, seed)
        self._size = size

    def _get_epoch_indices(self, generator: torch.Generator) -> torch.Tensor:
        return torch.arange(self._size)


class RandomSubsetTrainingSampler(TrainingSampler):
    """A :class:`TrainingSampler` over a random subset that stays the same in all epochs."""

    def __init__(
        self,
        size: int,
        subset_ratio: float,
        shuffle: bool = True,
        seed_shuffle: int | None = None,
        seed_subset: int | None = None,
    ) -> None:
        """
        Args:
            size: the number of samples in the dataset.
            subset_ratio: the fraction of them to use, in (0, 1].
            shuffle: whether each epoch comes in a new random order.
            seed_shuffle, seed_subset: seeds of the order and of the choice of the subset; None
                draws one and shares it among the processes.
        """
        super().__init__(size, shuffle, seed_shuffle)
        assert 0.0 < subset_ratio <= 1.0, f"subset_ratio must be in (0, 1], got {subset_ratio}."
        self._size_subset = int(size * subset_ratio)
        self._seed_subset = comm.shared_random_seed() if seed_subset is None else int(seed_subset)
        order = torch.randperm(size, generator=_seeded_generator(self._seed_subset))
        self._indexes_subset = order[: self._size_subset]
        logger.info(f"Training on a random subset: {self._size_subset} of {size} samples.")

    def _get_epoch_indices(self, generator: torch.Generator) -> torch.Tensor:
        return self._indexes_subset


class RepeatFactorTrainingSampler(_SharedStreamSampler):
    """An endless stream in which sample i appears ``repeat_factors[i]`` times an epoch on average.

    A fractional factor is rounded up or down anew in each epoch, with the fraction as the
    probability of rounding up.
    """

    def __init__(
        self, repeat_factors: torch.Tensor, *, shuffle: bool = True, seed: int | None = None
    ) -> None:
        """
        Args:
            repeat_factors: float tensor of shape (number of samples,).
            shuffle, seed: see :class:`TrainingSampler`.
        """
        super().__init__(shuffle, seed)
        self._int_part = torch.trunc(repeat_factors)
        self._frac_part = repeat_factors - self._int_part

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: list[dict], repeat_thresh: float, sqrt: bool = True
    ) -> torch.Tensor:
        """Repeat factors that show rare categories more often (LVIS, arXiv:1908.03195, App. B.2).

        With f(c) the fraction of images that contain category c, r(c) = max(1, t / f(c)) or its
        square root; the factor of an image is the largest r(c) of its categories, 1 if it has
        none.

        Args:
            dataset_dicts: samples with "annotations".
            repeat_thresh: the frequency t below which a category is repeated.
            sqrt: whether to take the square root.

        Returns:
            float32 tensor of shape (len(dataset_dicts),).
        """
        categories = [{ann["category_id"] for ann in d["annotations"]} for d in dataset_dicts]
        images_with = Counter(itertools.chain.from_iterable(categories))
        factors: dict[int, float] = {}
        for category, count in sorted(images_with.items()):
            frequency = count / len(dataset_dicts)
            factor = repeat_thresh / frequency
            factors[category] = max(1.0, math.sqrt(factor) if sqrt else factor)
            logger.info(
                f"Category {category} is in {frequency:.2f} of the images, "
                f"repeat factor {factors[category]:.2f}."
            )
        per_image = [max((factors[c] for c in present), default=1.0) for present in categories]
        return torch.tensor(per_image, dtype=torch.float32)

    def _get_epoch_indices(self, generator: torch.Generator) -> torch.Tensor:
        rounded_up = torch.rand(len(self._frac_part), generator=generator) < self._frac_part
        repeats = (self._int_part + rounded_up).long()
        return torch.repeat_interleave(torch.arange(len(repeats)), repeats)


class InferenceSampler(Sampler):
    """Every index exactly once over all processes, each process taking one contiguous range.

    The first ``size % world_size`` processes have one index more than the others.
    """

    def __init__(self, size: int) -> None:
        """
        Args:
            size: the number of samples in the dataset.
        """
        assert size > 0, f"An InferenceSampler needs a dataset of at least 1 sample, got {size}."
        self._size = size
        self._local_indices = self._get_local_indices(size, comm.get_world_size(), comm.get_rank())

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        share, extra = divmod(total_size, world_size)
        begin = rank * share + min(rank, extra)
        return range(begin, begin + share + (rank < extra))

    def __iter__(self) -> Iterator[int]:
        yield from self._local_indices

    def __len__(self) -> int:
        return len(self._local_indices)
