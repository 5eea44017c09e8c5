"""Placeholders for the names of Detectron2's API that the embedded runtime does not implement.

They can be imported and used in ``isinstance`` checks; any other use raises one sentence that
names Detectron2.
"""

from typing import Any

_INSTALL = "https://detectron2.readthedocs.io/tutorials/install.html"


def left_out_error(name: str) -> NotImplementedError:
    """The error for using ``name`` (a dotted path such as ``detectron2.structures.BitMasks``)."""
    return NotImplementedError(
        f"{name} is not part of the embedded runtime of clsloc; "
        f"install Detectron2 ({_INSTALL}) to use it."
    )


class _LeftOutAttributeError(NotImplementedError, AttributeError):
    """Also an AttributeError, so that ``hasattr`` and what prints or inspects objects work."""


class _LeftOutType(type):
    """Makes calling a placeholder and reading any public attribute of it raise."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise left_out_error(cls.__qualname__)

    def __getattr__(cls, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise _LeftOutAttributeError(*left_out_error(cls.__qualname__).args)


def left_out(name: str) -> type:
    """A placeholder class for the dotted ``name``; nothing is an instance of it."""
    return _LeftOutType(name.rsplit(".", 1)[-1], (), {"__qualname__": name, "__slots__": ()})
