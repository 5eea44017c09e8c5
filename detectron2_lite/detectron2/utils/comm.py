"""Communication between processes; every function also works without ``torch.distributed``.

A *local* group holds the processes of one machine. Python objects travel over gloo, so that they
need no GPU memory.
"""

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

_LOCAL_PROCESS_GROUP: dist.ProcessGroup | None = None


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes; 1 without distribution."""
    return dist.get_world_size() if _initialized() else 1


def get_rank() -> int:
    """Index of this process among all; 0 without distribution."""
    return dist.get_rank() if _initialized() else 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Create the groups of the processes that share a machine; collective over all processes.

    Args:
        num_workers_per_machine: processes per machine, the same on each; it divides the
            world size, and consecutive ranks are on one machine.
    """
    global _LOCAL_PROCESS_GROUP
    assert _LOCAL_PROCESS_GROUP is None, "The local process group exists already."
    world_size = get_world_size()
    assert world_size % num_workers_per_machine == 0, (
        f"{world_size} processes cannot be split into machines of {num_workers_per_machine}."
    )
    # Each process has to take part in the creation of every group, its own or not.
    for start in range(0, world_size, num_workers_per_machine):
        ranks = list(range(start, start + num_workers_per_machine))
        group = dist.new_group(ranks)
        if get_rank() in ranks:
            _LOCAL_PROCESS_GROUP = group


def get_local_process_group() -> dist.ProcessGroup:
    """The group of the processes on this machine, made by :func:`create_local_process_group`."""
    assert _LOCAL_PROCESS_GROUP is not None, (
        "There is no local process group: start the processes with detectron2.engine.launch, or "
        "call detectron2.utils.comm.create_local_process_group after "
        "torch.distributed.init_process_group."
    )
    return _LOCAL_PROCESS_GROUP


def get_local_rank() -> int:
    """Index of this process on its machine; 0 without distribution."""
    return dist.get_rank(group=get_local_process_group()) if _initialized() else 0


def get_local_size() -> int:
    """Number of processes on this machine; 1 without distribution."""
    return dist.get_world_size(group=get_local_process_group()) if _initialized() else 1


def is_main_process() -> bool:
    """Whether this is the process that writes logs and files (rank 0)."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait until all processes have come to this point."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        # Naming the device keeps NCCL from guessing one and hanging when ranks share a machine.
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


@functools.lru_cache
def _get_global_gloo_group() -> dist.ProcessGroup:
    """All processes, over a backend that can move CPU bytes."""
    if dist.get_backend() == dist.Backend.NCCL:
        return dist.new_group(backend="gloo")
    return dist.group.WORLD


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Collect a picklable object from every process.

    Args:
        data: any picklable object.
        group: the processes taking part; by default all, over gloo.

    Returns:
        The objects in rank order, on every process.
    """
    if get_world_size() == 1:
        return [data]
    group = _get_global_gloo_group() if group is None else group
    size = dist.get_world_size(group)
    if size == 1:
        return [data]
    collected = [None] * size
    dist.all_gather_object(collected, data, group=group)
    return collected


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Collect a picklable object from every process on process ``dst``.

    Args:
        data: any picklable object.
        dst: the rank that receives.
        group: the processes taking part; by default all, over gloo.

    Returns:
        The objects in rank order on ``dst``, an empty list elsewhere.
    """
    if get_world_size() == 1:
        return [data]
    group = _get_global_gloo_group() if group is None else group
    size = dist.get_world_size(group)
    if size == 1:
        return [data]
    if dist.get_rank(group) != dst:
        dist.gather_object(data, None, dst=dst, group=group)
        return []
    collected = [None] * size
    dist.gather_object(data, collected, dst=dst, group=group)
    return collected


def shared_random_seed() -> int:
    """A random number that is the same on all processes (drawn from numpy by rank 0).

    Every process draws, so the numpy state advances equally everywhere. Collective.
    """
    return all_gather(np.random.randint(2**31))[0]


def reduce_dict(input_dict: dict[str, torch.Tensor], average: bool = True) -> dict:
    """Sum or average a dict of scalar tensors over processes, onto rank 0.

    Args:
        input_dict: scalar tensors; the same keys on every process.
        average: divide the sums by the number of processes.

    Returns:
        A dict of the same keys; only rank 0's values are meaningful.
    """
    world_size = get_world_size()
    if world_size < 2:
        return input_dict
    with torch.no_grad():
        # Sorted, since the order of insertion may differ between processes.
        names = sorted(input_dict)
        values = torch.stack([input_dict[name] for name in names])
        dist.reduce(values, dst=0)
        if average and dist.get_rank() == 0:
            values /= world_size
        return dict(zip(names, values))
