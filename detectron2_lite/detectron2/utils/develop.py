"""Stand-ins for names whose dependency is not installed."""

from collections.abc import Callable, Sequence
from typing import Any


def _missing(name: str, dependency: str | Sequence[str], message: str) -> str:
    if not isinstance(dependency, str):
        dependency = ", ".join(dependency)
    sentence = f"{name} cannot be used because {dependency} cannot be imported."
    return f"{sentence} {message}" if message else sentence


def create_dummy_class(klass: str, dependency: str, message: str = "") -> type:
    """A class of which every use raises ImportError.

    Args:
        klass: the class's name.
        dependency: the module that is missing.
        message: added to the error.
    """
    error = _missing(klass, dependency, message)

    class _DummyMeta(type):
        def __getattr__(cls, attribute: str) -> Any:
            raise ImportError(error)

    class _Dummy(metaclass=_DummyMeta):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise ImportError(error)

    return _Dummy


def create_dummy_func(func: str, dependency: str | Sequence[str], message: str = "") -> Callable:
    """A function that raises ImportError when called.

    Args:
        func: the function's name.
        dependency: the module or modules that are missing.
        message: added to the error.
    """
    error = _missing(func, dependency, message)

    def _dummy(*args: Any, **kwargs: Any) -> Any:
        raise ImportError(error)

    return _dummy
