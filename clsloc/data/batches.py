"""Which samples stand in which training batch: a pure function of seed and sizes.

A training run can then be resumed at any iteration, with any number of loader workers, by
replaying the choice of batches without loading an image; and the processes of a run share every
batch between them, so that what is trained on does not depend on their number.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]
"""(position in the stream of samples, index in the dataset)"""


class ResumableBatches(Sampler[list[Key]]):
    """Deals an endless stream of indices out in batches of one aspect ratio.

    With grouping, a sample waits until as many others of its orientation (wider than high, or
    not) have come as a batch needs, as in Detectron2, though over the batch of all processes
    together. Without it, batch i is simply items i * B to (i + 1) * B of the stream.
    """

    def __init__(
        self,
        stream: Iterable[int],
        batch_size: int,
        *,
        wide: np.ndarray | None = None,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """
        Args:
            stream: indices into the dataset; iterating over it anew must give the same ones.
            batch_size: samples in a batch of all processes together; a multiple of ``world_size``.
            wide: (dataset size,) bool, whether an image is wider than high; None: no grouping.
            start: how many batches to pass over.
            rank: which samples of each batch to give: ``rank``, ``rank + world_size``, ...
            world_size: the number of processes.
        """
        self.stream = stream
        self.batch_size = batch_size
        self.wide = wide
        self.start = start
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[list[Key]]:
        for batch in islice(self._all_batches(), self.start, None):
            yield batch[self.rank :: self.world_size]

    def _all_batches(self) -> Iterator[list[Key]]:
        buckets: tuple[list[Key], list[Key]] = ([], [])
        for position, index in enumerate(self.stream):
            bucket = buckets[0 if self.wide is None else int(self.wide[index])]
            bucket.append((position, index))
            if len(bucket) == self.batch_size:
                yield bucket.copy()
                bucket.clear()
