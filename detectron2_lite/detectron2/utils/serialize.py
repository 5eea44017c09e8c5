"""Carrying closures and lambdas into other processes."""

from typing import Any

import cloudpickle


class PicklableWrapper:
    """Makes an object that plain pickle refuses (a lambda, a local function) picklable.

    Args:
        obj: a callable; calls and attribute reads are handed on to it.
    """

    def __init__(self, obj: Any) -> None:
        while isinstance(obj, PicklableWrapper):
            obj = obj._obj
        self._obj = obj

    def __reduce__(self) -> tuple:
        return _unwrap_bytes, (cloudpickle.dumps(self._obj),)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._obj(*args, **kwargs)

    def __getattr__(self, attribute: str) -> Any:
        # pickle and copy probe an object before its __init__ has run.
        if attribute == "_obj":
            raise AttributeError(attribute)
        return getattr(self._obj, attribute)


def _unwrap_bytes(data: bytes) -> Any:
    return PicklableWrapper(cloudpickle.loads(data))
