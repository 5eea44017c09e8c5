"""What modules know about the shape of a feature map before they see one."""

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """Number of channels and size of a feature map; None means unknown.

    Backbones describe their outputs with it, and heads are built from these descriptions.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
    """Image pixels per cell of the map."""
