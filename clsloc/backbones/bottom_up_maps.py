"""A bottom-up network that has run already."""

from torch import Tensor

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone

__all__ = ["BottomUpMaps"]


class BottomUpMaps(Backbone):
    """Stands for a bottom-up network in an `FPN` that is given the network's maps."""

    def __init__(self, shapes: dict[str, ShapeSpec]):
        """
        Args:
            shapes: of the maps, by name.
        """
        super().__init__()
        self.shapes = shapes

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """The maps as they are."""
        return maps

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self.shapes
