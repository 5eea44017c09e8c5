"""The fields of the objects of one image: ground truth, proposals or predictions."""

import itertools
from typing import Any

import torch


class Instances:
    """Named fields of equal length N that belong to one image, readable as attributes.

    A field is anything with a length and indexing: a tensor (N, ...), :class:`Boxes`, a list.
    ``instances.gt_boxes = Boxes(...)`` sets a field, ``instances.gt_boxes`` reads it, and
    ``instances[mask]`` indexes every field alike.
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any) -> None:
        """``image_size`` is (height, width); each keyword becomes a field."""
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self._image_size

    def __setattr__(self, name: str, val: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, val)
        else:
            self.set(name, val)

    def __getattr__(self, name: str) -> Any:
        # Called only for what is no real attribute. Copying and unpickling ask before the
        # fields exist: looking `_fields` up through this method would never end.
        if name == "_fields" or name not in self._fields:
            raise AttributeError(f"These Instances have no field '{name}'.")
        return self._fields[name]

    def set(self, name: str, value: Any) -> None:
        """Add or replace a field; its length must be that of the fields already there."""
        length = len(value)
        assert not self._fields or len(self) == length, (
            f"Adding a field '{name}' of length {length} to Instances of length {len(self)}."
        )
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Whether the field exists."""
        return name in self._fields

    def remove(self, name: str) -> None:
        """Remove a field; KeyError where it does not exist."""
        del self._fields[name]

    def get(self, name: str) -> Any:
        """The field's value; KeyError where it does not exist."""
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """The fields by name; changing this dict changes the instances."""
        return self._fields

    def _with_fields(self, fields: dict[str, Any]) -> "Instances":
        return Instances(self._image_size, **fields)

    def to(self, *args: Any, **kwargs: Any) -> "Instances":
        """Call ``to`` of every field that has it, with these arguments."""
        return self._with_fields(
            {
                name: value.to(*args, **kwargs) if hasattr(value, "to") else value
                for name, value in self._fields.items()
            }
        )

    def __getitem__(self, item: int | slice | torch.BoolTensor) -> "Instances":
        """All fields indexed alike; an int gives Instances of length 1."""
        if type(item) is int:
            if not -len(self) <= item < len(self):
                raise IndexError(f"Index {item} is out of range for {len(self)} instances.")
            # A slice keeps the first dimension; -1 needs an open end.
            item = slice(item, item + 1 or None)
        return self._with_fields({name: value[item] for name, value in self._fields.items()})

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances without fields have no length.")

    def __iter__(self) -> Any:
        raise NotImplementedError("Instances cannot be iterated; index them instead.")

    @staticmethod
    def cat(instance_lists: list["Instances"]) -> "Instances":
        """Join instances of one image that have the fields of the first; one alone is returned."""
        assert instance_lists, "Instances.cat needs at least one element."
        assert all(isinstance(instances, Instances) for instances in instance_lists), (
            f"Instances.cat takes Instances only, got {[type(i).__name__ for i in instance_lists]}."
        )
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        sizes = {tuple(instances.image_size) for instances in instance_lists}
        assert len(sizes) == 1, f"Instances to join come from images of different sizes: {sizes}."
        return first._with_fields(
            {
                name: _concatenate([instances.get(name) for instances in instance_lists])
                for name in first.get_fields()
            }
        )

    def __repr__(self) -> str:
        height, width = self._image_size
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        return (
            f"Instances(num_instances={len(self)}, image_height={height}, image_width={width}, "
            f"fields=[{fields}])"
        )


def _concatenate(values: list[Any]) -> Any:
    """Join the values of one field: tensors, lists, or a type with a ``cat`` of its own."""
    kind = values[0]
    if isinstance(kind, torch.Tensor):
        return torch.cat(values, dim=0)
    if isinstance(kind, list):
        return list(itertools.chain.from_iterable(values))
    if hasattr(type(kind), "cat"):
        return type(kind).cat(values)
    raise ValueError(f"Fields of type {type(kind)} cannot be joined; use a tensor or a list.")
