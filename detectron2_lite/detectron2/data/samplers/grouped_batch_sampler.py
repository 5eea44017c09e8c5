"""Batches of indices that all belong to one group."""

from collections.abc import Iterator, Sequence

from torch.utils.data.sampler import BatchSampler, Sampler

__all__ = ["GroupedBatchSampler"]


class GroupedBatchSampler(BatchSampler):
    """Collects the indices of ``sampler`` by group and yields a batch once a group has enough.

    The order of the wrapped sampler is kept within each group. Indices left in an incomplete
    batch when the sampler ends are held back for the next iteration.
    """

    def __init__(self, sampler: Sampler, group_ids: Sequence[int], batch_size: int) -> None:
        """
        Args:
            sampler: yields indices in [0, N).
            group_ids: N integers, the group of each index.
            batch_size: the number of indices in each batch.
        """
        if not isinstance(sampler, Sampler):
            raise ValueError(f"sampler must be a torch.utils.data.Sampler, got {sampler!r}.")
        self.sampler = sampler
        self.group_ids = [int(group) for group in group_ids]
        self.batch_size = batch_size
        self.buffer_per_group = {group: [] for group in set(self.group_ids)}

    def __iter__(self) -> Iterator[list[int]]:
        for index in self.sampler:
            group = self.group_ids[index]
            pending = self.buffer_per_group[group]
            pending.append(index)
            if len(pending) == self.batch_size:
                self.buffer_per_group[group] = []
                yield pending

    def __len__(self) -> int:
        raise NotImplementedError(
            "GroupedBatchSampler has no length: how many batches come depends on the order."
        )
