"""Datasets that wrap other datasets: map a function, hold a list, iterate, group by shape."""

import contextlib
import itertools
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch.utils import data
from torch.utils.data.sampler import Sampler

from detectron2.utils.serialize import PicklableWrapper

__all__ = ["MapDataset", "DatasetFromList", "AspectRatioGroupedDataset", "ToIterableDataset"]

logger = logging.getLogger(__name__)


class _MapIterableDataset(data.IterableDataset):
    """What :class:`MapDataset` is for an iterable dataset; skips items that are mapped to None."""

    def __init__(self, dataset: data.IterableDataset, map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Any]:
        mapped = map(self._map_func, self._dataset)
        return (item for item in mapped if item is not None)


class MapDataset(data.Dataset):
    """Applies a function to the items of a dataset.

    The function may return None to refuse an item, for instance because its file is broken. A
    map-style dataset then yields another item chosen at random instead, an iterable one skips it.
    """

    _WARN_AFTER = 3  # failures in a row

    def __new__(cls, dataset: data.Dataset, map_func: Callable[[Any], Any]) -> data.Dataset:
        if isinstance(dataset, data.IterableDataset):
            return _MapIterableDataset(dataset, map_func)
        return super().__new__(cls)

    def __getnewargs__(self) -> tuple:  # __new__ has arguments, which unpickling must pass
        return self._dataset, self._map_func

    def __init__(self, dataset: data.Dataset, map_func: Callable[[Any], Any]) -> None:
        """
        Args:
            dataset: map-style or iterable; the result is of the same kind.
            map_func: called with each item.
        """
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)
        self._rng = random.Random(42)
        self._fallback_candidates = set(range(len(dataset)))

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        candidate = int(idx)
        for failures in itertools.count(1):
            item = self._map_func(self._dataset[candidate])
            if item is not None:
                self._fallback_candidates.add(candidate)
                return item
            self._fallback_candidates.discard(candidate)
            if failures >= self._WARN_AFTER:
                logger.warning(f"No usable item in place of item {idx} after {failures} tries.")
            candidate = self._rng.sample(list(self._fallback_candidates), k=1)[0]


class _TorchSerializedList:
    """A read-only list that keeps its pickled items in one byte tensor.

    Forked workers share the tensor's memory; a list of Python objects would be copied page by
    page as their reference counts change. Spawned processes get it through shared memory.
    """

    def __init__(self, lst: list) -> None:
        pickled = [np.frombuffer(pickle.dumps(item, protocol=-1), dtype=np.uint8) for item in lst]
        self._ends = torch.from_numpy(np.cumsum([len(item) for item in pickled], dtype=np.int64))
        self._bytes = torch.from_numpy(np.concatenate(pickled))
        logger.info(f"{len(lst)} samples take {len(self._bytes) / 1024**2:.2f} MiB serialized.")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, idx: int) -> Any:
        end = self._ends[idx].item()
        begin = self._ends[idx - 1].item() if idx % len(self) else 0
        return pickle.loads(memoryview(self._bytes[begin:end].numpy()))


_default_serialize_method: Callable[[list], Any] = _TorchSerializedList


@contextlib.contextmanager
def set_default_dataset_from_list_serialize_method(new: Callable[[list], Any]) -> Iterator[None]:
    """Within this context, ``DatasetFromList(serialize=True)`` stores its list as ``new(lst)``."""
    global _default_serialize_method
    previous, _default_serialize_method = _default_serialize_method, new
    try:
        yield
    finally:
        _default_serialize_method = previous


class DatasetFromList(data.Dataset):
    """A list as a map-style dataset."""

    def __init__(
        self, lst: list, copy: bool = True, serialize: bool | Callable[[list], Any] = True
    ) -> None:
        """
        Args:
            lst: the items.
            copy: whether to yield deep copies, so that a user may change what it gets. Without
                effect on serialized items, which are new objects each time.
            serialize: whether to store the items in memory that processes share; a function makes
                the storage (anything with ``__len__`` and ``__getitem__``) from the list.
        """
        self._copy = copy
        self._serialize = bool(serialize)
        method = serialize if callable(serialize) else _default_serialize_method
        self._lst = method(lst) if serialize else lst

    def __len__(self) -> int:
        return len(self._lst)

    def __getitem__(self, idx: int) -> Any:
        item = self._lst[idx]
        return deepcopy(item) if self._copy and not self._serialize else item


def _shard_for_worker(iterable: Iterable[Any], chunk_size: int) -> Iterator[Any]:
    """The part of ``iterable`` for this data-loading worker: every n-th chunk; all outside one."""
    worker = data.get_worker_info()
    if worker is None or worker.num_workers == 1:
        yield from iterable
        return
    for position, item in enumerate(iterable):
        if position // chunk_size % worker.num_workers == worker.id:
            yield item


class ToIterableDataset(data.IterableDataset):
    """A map-style dataset read in the order of a sampler, as an iterable dataset."""

    def __init__(
        self,
        dataset: data.Dataset,
        sampler: Sampler,
        shard_sampler: bool = True,
        shard_chunk_size: int = 1,
    ) -> None:
        """
        Args:
            dataset: map-style.
            sampler: yields indices into it and is cheap to iterate.
            shard_sampler: whether each data-loading worker takes only its part of the indices;
                False if the sampler sees to that itself.
            shard_chunk_size: the number of consecutive indices that go to the same worker. With
                the batch size here, batches have the content and order of a single process.
        """
        assert not isinstance(dataset, data.IterableDataset), f"{dataset} is iterable already."
        assert isinstance(sampler, Sampler), f"Expected a torch Sampler, got {sampler!r}."
        self.dataset = dataset
        self.sampler = sampler
        self.shard_sampler = shard_sampler
        self.shard_chunk_size = shard_chunk_size

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        indices: Iterable[int] = self.sampler
        if self.shard_sampler:
            indices = _shard_for_worker(indices, self.shard_chunk_size)
        for index in indices:
            yield self.dataset[index]


class AspectRatioGroupedDataset(data.IterableDataset):
    """Batches whose images are all wide or all not wide, so that they need little padding.

    Items that wait for a full batch when an iteration ends are kept for the next one.
    """

    def __init__(self, dataset: Iterable[dict], batch_size: int) -> None:
        """
        Args:
            dataset: an iterable of dicts with "width" and "height".
            batch_size: the number of items in each yielded list.
        """
        self.dataset = dataset
        self.batch_size = batch_size
        self._buckets: list[list[dict]] = [[], []]  # wide, not wide

    def __iter__(self) -> Iterator[list[dict]]:
        for item in self.dataset:
            bucket = self._buckets[0 if item["width"] > item["height"] else 1]
            bucket.append(item)
            if len(bucket) == self.batch_size:
                batch = bucket[:]
                bucket.clear()  # before the yield: an abandoned iteration leaves no full bucket
                yield batch
