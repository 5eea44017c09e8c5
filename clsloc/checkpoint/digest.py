"""What happened to each tensor when weights were loaded, in a few lines."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

__all__ = ["LoadDigest", "group_names"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LoadDigest:
    """The outcome of loading a weight file.

    Attributes:
        total: the tensors of the model.
        in_file: the tensors of the file.
        missing: names of the model that the file does not have.
        mismatched: (name, shape in the file, shape in the model) of tensors that do not fit.
        unused: names of the file that the model does not have.
    """

    total: int
    in_file: int
    missing: tuple[str, ...]
    mismatched: tuple[tuple[str, Shape, Shape], ...]
    unused: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, incompatible: object, in_file: int) -> "LoadDigest":
        """From what fvcore's ``Checkpointer._load_model`` returned, and the file's tensors."""
        mismatched = tuple(
            (name, tuple(found), tuple(wanted))
            for name, found, wanted in incompatible.incorrect_shapes
        )
        names = {name for name, _, _ in mismatched}
        return cls(
            total=len(model.state_dict()),
            in_file=in_file,
            missing=tuple(sorted(set(incompatible.missing_keys) - names)),
            mismatched=mismatched,
            unused=tuple(sorted(set(incompatible.unexpected_keys) - names)),
        )

    @property
    def loaded(self) -> int:
        """How many tensors of the file went into the model.

        Not those of the model that are not missing: a frozen batch norm, for one, makes up the
        statistics that an old file does not have.
        """
        return self.in_file - len(self.unused) - len(self.mismatched)

    @property
    def complete(self) -> bool:
        """Whether every tensor of the model was filled."""
        return not self.missing and not self.mismatched

    def lines(self) -> list[str]:
        """A line for what was loaded, and one for each kind of remainder."""
        lines = [f"{self.loaded} of {self.total} tensors loaded"]
        if self.missing:
            lines.append(
                f"not in the file, left at their initial values: {group_names(self.missing)}"
            )
        if self.mismatched:
            lines.append(
                "of another shape, left at their initial values: "
                + ", ".join(
                    f"{name} {list(found)} for {list(wanted)}"
                    for name, found, wanted in self.mismatched
                )
            )
        if self.unused:
            lines.append(f"in the file, not in the model, skipped: {group_names(self.unused)}")
        return lines


def group_names(names: Iterable[str], depth: int = 2) -> str:
    """``["a.b.c", "a.b.d", "e"]`` -> ``"a.b (2), e"``."""
    counts = Counter(".".join(name.split(".")[:depth]) for name in names)
    return ", ".join(
        prefix if count == 1 else f"{prefix} ({count})" for prefix, count in counts.items()
    )
