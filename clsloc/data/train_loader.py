"""A training loader that can start at any iteration.

Detectron2's loader restarts its sampler on resume, groups by aspect ratio inside the stream, and
draws augmentations from generators that depend on the number of workers. Here the batches come
from :class:`~clsloc.data.batches.ResumableBatches`, and the augmentation of a sample depends on
the seed and on its position in the stream alone.
"""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from clsloc.data.batches import Key, ResumableBatches
from clsloc.data.safe_mapper import Mapper, SafeMapper, Sample, raise_errors
from clsloc.errors import UserError
from detectron2.utils import comm


class TrainLoader:
    """Yields batches (lists of mapped samples) without end, from iteration :attr:`start` on.

    Attributes:
        seed: of the order of the samples and of their augmentation; may be set until the loader
            is iterated over.
        start: the iteration (from 0) whose batch comes first; likewise.
    """

    def __init__(
        self,
        dataset: Sequence[Sample],
        mapper: Mapper,
        make_sampler: Callable[[int], Sampler[int]],
        batch_size: int,
        *,
        seed: int,
        wide: np.ndarray | None = None,
        num_workers: int = 0,
    ) -> None:
        """
        Args:
            dataset: Detectron2's dataset dicts.
            mapper: from a dataset dict to what the model takes.
            make_sampler: from a seed to one of Detectron2's training samplers.
            batch_size: images of all processes together.
            wide: (dataset size,) bool, whether an image is wider than high, to group the batches
                by; None: no grouping.
            num_workers: loader processes; 0 loads in the training process.

        Raises:
            UserError: the batch cannot be shared out equally.
        """
        self.world_size = comm.get_world_size()
        if batch_size <= 0 or batch_size % self.world_size:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH {batch_size} cannot be shared out among "
                f"{self.world_size} processes; give a multiple of their number."
            )
        self.dataset = dataset
        self.mapper = mapper
        self.make_sampler = make_sampler
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.start = 0
        self.wide = wide

    def __iter__(self) -> Iterator[list[Sample]]:
        batches = ResumableBatches(
            _Stream(self.make_sampler(self.seed)),
            self.batch_size,
            wide=self.wide,
            start=self.start,
            rank=comm.get_rank(),
            world_size=self.world_size,
        )
        loader = DataLoader(
            _SeededDataset(self.dataset, self.mapper, self.seed),
            batch_sampler=batches,
            num_workers=self.num_workers,
            collate_fn=_as_list,
            worker_init_fn=_one_thread,
            # Else the loader would draw from the generator that the training step uses.
            generator=torch.Generator().manual_seed(self.seed),
        )
        return raise_errors(loader)


class _Stream:
    """The samples of all processes, where iterating over the sampler gives one process's share."""

    def __init__(self, sampler: Sampler[int]) -> None:
        self._sampler = sampler

    def __iter__(self) -> Iterator[int]:
        # The stream before it is shared out; every training sampler of Detectron2 has it.
        return iter(self._sampler._infinite_indices())


class _SeededDataset(Dataset):
    """Maps the sample of a key with generators seeded by the key's position."""

    def __init__(self, dataset: Sequence[Sample], mapper: Mapper, seed: int) -> None:
        self._dataset = dataset
        self._mapper = SafeMapper(mapper)
        self._seed = seed

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, key: Key) -> Sample | UserError:
        position, index = key
        sample = copy.deepcopy(self._dataset[index])
        with seeded(self._seed, position):
            return self._mapper(sample)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Inside, the global generators of Python, NumPy and torch (CPU) start from ``key``;
    afterwards they go on as if nothing had been. Those of GPUs are left alone."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _seed_on_cpu(*key)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def seed_generators(*key: int) -> None:
    """Seed the global generators of Python, NumPy and torch, those of GPUs among them, with a
    hash of non-negative ints."""
    torch.manual_seed(_seed_on_cpu(*key))


def _seed_on_cpu(*key: int) -> int:
    # The length belongs to the key: SeedSequence takes (1, 2) and (1, 2, 0) for the same.
    words = np.random.SeedSequence((len(key), *key)).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    seed = int(words[2]) << 32 | int(words[3])
    torch.default_generator.manual_seed(seed)
    return seed


def _as_list(batch: list[Sample]) -> list[Sample]:
    return batch


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
