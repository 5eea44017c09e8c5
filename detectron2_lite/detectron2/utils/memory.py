"""Retrying a computation that ran out of GPU memory."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

__all__ = ["retry_if_cuda_oom"]


@contextmanager
def _ignore_torch_cuda_oom() -> Iterator[None]:
    """Swallow CUDA's out-of-memory error; other errors pass."""
    try:
        yield
    except RuntimeError as error:
        # torch.cuda.OutOfMemoryError is newer than some ways in which CUDA reports the same.
        if "CUDA out of memory. " not in str(error):
            raise


def retry_if_cuda_oom(func: Callable) -> Callable:
    """Wrap ``func`` so that, out of CUDA memory, it is called again.

    The second try comes after emptying the allocator's cache, the third with all CUDA tensors
    among the arguments (not those inside lists or objects) copied to the CPU, hence with the
    result on the CPU. ``func`` must be stateless, since it may be called several times.
    """

    def to_cpu(value: Any) -> Any:
        is_cuda = getattr(getattr(value, "device", None), "type", None) == "cuda"
        return value.to(device="cpu") if is_cuda and hasattr(value, "to") else value

    @wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with _ignore_torch_cuda_oom():
            return func(*args, **kwargs)
        torch.cuda.empty_cache()
        with _ignore_torch_cuda_oom():
            return func(*args, **kwargs)
        logging.getLogger(__name__).info(f"{func} ran out of CUDA memory twice; it runs on CPU.")
        cpu_args = [to_cpu(value) for value in args]
        cpu_kwargs = {name: to_cpu(value) for name, value in kwargs.items()}
        return func(*cpu_args, **cpu_kwargs)

    return wrapped
