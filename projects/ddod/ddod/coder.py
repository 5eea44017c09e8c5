"""Box regression from a point, in strides."""

from torch import Tensor

from clsloc.errors import UserError
from detectron2.modeling.box_regression import Box2BoxTransformLinear

__all__ = ["PointTransform", "anchor_side_in_strides"]


class PointTransform(Box2BoxTransformLinear):
    """
    Distances from the centre of an anchor to the four sides of a box (l, t, r, b), divided by the
    stride of the level (FCOS*, DDOD section 5.2).

    Detectron2's transform divides by the side of the anchor, which here is several strides: the
    anchors have the size that ATSS needs. Distances below 0 count as 0.

    NOTE(paper): the authors do not limit them, and get boxes inside out.
    """

    def __init__(self, side_in_strides: float = 8.0):
        """
        Args:
            side_in_strides: side of the square anchors of every level over its stride.
        """
        super().__init__(normalize_by_size=True)
        self.side_in_strides = side_in_strides

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """(R, 4) anchors and boxes to (R, 4) distances."""
        return super().get_deltas(src_boxes, target_boxes) * self.side_in_strides

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """(R, 4) distances and anchors to (R, 4) boxes."""
        return super().apply_deltas(deltas / self.side_in_strides, boxes)


def anchor_side_in_strides(
    sizes: list[list[float]], ratios: list[list[float]], strides: list[int]
) -> float:
    """
    The ratio of the side of the square anchor of each level to its stride.

    Raises:
        UserError: if a level has several anchors or ones that are not square, or the ratios differ.
    """
    if len(sizes) == 1:
        sizes = sizes * len(strides)
    found = {size[0] / stride for size, stride in zip(sizes, strides)}
    if len(found) > 1 or any(len(size) > 1 for size in sizes) or {*map(tuple, ratios)} != {(1.0,)}:
        raise UserError(
            "MODEL.DDOD.CODER ltrb needs one square anchor at each location, as many strides wide "
            f"on all levels; MODEL.ANCHOR_GENERATOR.SIZES are {sizes} for strides {strides}."
        )
    return found.pop()
