"""Starting the processes of a distributed run."""

import logging
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detectron2.utils import comm

__all__ = ["DEFAULT_TIMEOUT", "launch"]

DEFAULT_TIMEOUT = timedelta(minutes=30)


def _find_free_port() -> int:
    """A TCP port that was free a moment ago; another program may take it in between."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def launch(
    main_func: Callable,
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Run ``main_func(*args)`` in one process per GPU, on this machine's share of the run.

    A single process is not spawned: the function is called here. Without CUDA the processes run
    on CPU and communicate through gloo, else through NCCL.

    Args:
        main_func: importable by name, since spawned processes unpickle it.
        num_gpus_per_machine: processes on each machine.
        num_machines: machines that take part; call ``launch`` on each.
        machine_rank: index of this machine.
        dist_url: where the processes meet, as ``torch.distributed`` takes it
            (``tcp://host:port``); ``"auto"`` takes a free port, on a single machine only.
        args: arguments of ``main_func``.
        timeout: for the processes' collective calls.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size == 1:
        main_func(*args)
        return
    if dist_url == "auto":
        assert num_machines == 1, (
            "dist_url 'auto' cannot tell other machines its port; give tcp://HOST:PORT."
        )
        dist_url = f"tcp://127.0.0.1:{_find_free_port()}"
    if num_machines > 1 and dist_url.startswith("file://"):
        logging.getLogger(__name__).warning(
            f"{dist_url} only works on a file system with locks; prefer tcp:// between machines."
        )
    mp.start_processes(
        _distributed_worker,
        args=(
            main_func,
            world_size,
            num_gpus_per_machine,
            machine_rank,
            dist_url,
            args,
            timeout,
        ),
        nprocs=num_gpus_per_machine,
        daemon=False,
    )


def _distributed_worker(
    local_rank: int,
    main_func: Callable,
    world_size: int,
    num_gpus_per_machine: int,
    machine_rank: int,
    dist_url: str,
    args: tuple[Any, ...],
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """A spawned process: join the group of all, then run ``main_func``."""
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        assert num_gpus_per_machine <= torch.cuda.device_count(), (
            f"{num_gpus_per_machine} GPUs were asked for, this machine has "
            f"{torch.cuda.device_count()}."
        )
    dist.init_process_group(
        backend="nccl" if has_gpu else "gloo",
        init_method=dist_url,
        world_size=world_size,
        rank=machine_rank * num_gpus_per_machine + local_rank,
        timeout=timeout,
    )
    comm.create_local_process_group(num_gpus_per_machine)
    if has_gpu:
        torch.cuda.set_device(local_rank)
    # Nobody goes on before all have joined, or an early timeout would be hard to read.
    comm.synchronize()
    main_func(*args)
