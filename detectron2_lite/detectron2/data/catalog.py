"""Two global registries: how to load a dataset by name, and the constant facts about it."""

import logging
from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

__all__ = ["DatasetCatalog", "MetadataCatalog", "Metadata"]

logger = logging.getLogger(__name__)


class _DatasetCatalog(UserDict):
    """Maps a dataset's name to a function that returns its samples, a list of dicts."""

    def register(self, name: str, func: Callable[[], Any]) -> None:
        """Make ``name`` known.

        Args:
            name: the name by which configs and loaders refer to the dataset.
            func: takes no argument and returns the same samples whenever it is called.

        Raises:
            AssertionError: if ``func`` is not callable or ``name`` is taken.
        """
        assert callable(func), f"Dataset '{name}' needs a function that loads it, got {func!r}."
        assert name not in self, (
            f"A dataset named '{name}' is registered already; choose another name "
            f"or call DatasetCatalog.remove('{name}') first."
        )
        self[name] = func

    def get(self, name: str) -> Any:
        """Load the dataset ``name``; raises KeyError if nothing is registered under it."""
        if name not in self:
            raise KeyError(
                f"No dataset named '{name}' is registered; known are: {', '.join(self)}."
            )
        return self[name]()

    def list(self) -> list[str]:
        """The names of all registered datasets, in order of registration."""
        return [*self]

    def remove(self, name: str) -> None:
        """Forget the dataset ``name``; raises KeyError if it is unknown."""
        self.pop(name)

    def __str__(self) -> str:
        return f"DatasetCatalog(registered datasets: {', '.join(self)})"

    __repr__ = __str__


class Metadata(SimpleNamespace):
    """A namespace of facts that stay constant during a program, such as class names.

    An attribute can be set once; setting it again is allowed only to an equal value, because
    other parts of the program may have read it already.
    """

    name: str = "N/A"

    _RENAMED = {
        "class_names": "thing_classes",
        "dataset_id_to_contiguous_id": "thing_dataset_id_to_contiguous_id",
        "stuff_class_names": "stuff_classes",
    }

    def _current_name(self, key: str) -> str:
        if key not in self._RENAMED:
            return key
        logger.warning(f"Metadata '{key}' is called '{self._RENAMED[key]}' now; use that name.")
        return self._RENAMED[key]

    def __getattr__(self, key: str) -> Any:  # called only when the normal look-up fails
        known = self.__dict__
        if key in self._RENAMED and self._RENAMED[key] in known:
            return known[self._current_name(key)]
        raise AttributeError(
            f"The metadata of dataset '{self.name}' has no '{key}'; it has: "
            f"{', '.join(known) or 'nothing, not even a name'}."
        )

    def __setattr__(self, key: str, val: Any) -> None:
        key = self._current_name(key)
        old = self.__dict__.get(key, val)
        assert old == val, (
            f"'{key}' of dataset '{self.name}' is {old} already and cannot become {val}; "
            "metadata is set once."
        )
        super().__setattr__(key, val)

    def as_dict(self) -> dict:
        """A copy of all attributes as a dict; changing it does not change the metadata."""
        return dict(self.__dict__)

    def set(self, **kwargs: Any) -> "Metadata":
        """Set several attributes; returns the metadata itself."""
        for key, val in kwargs.items():
            setattr(self, key, val)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute ``key``, or ``default`` where it does not exist."""
        return getattr(self, key, default)


class _MetadataCatalog(UserDict):
    """Maps a dataset's name to its one :class:`Metadata` object."""

    def get(self, name: str) -> Metadata:
        """The metadata of ``name``, made empty at the first call."""
        assert len(name), "The name of a dataset must not be empty."
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]

    def list(self) -> list[str]:
        """The names of all datasets that have metadata."""
        return [*self]

    def remove(self, name: str) -> None:
        """Forget the metadata of ``name``; raises KeyError if there is none."""
        self.pop(name)

    def __str__(self) -> str:
        return f"MetadataCatalog(registered metadata: {', '.join(self)})"

    __repr__ = __str__


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
