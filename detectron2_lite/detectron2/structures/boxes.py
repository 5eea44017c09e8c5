"""Axis-aligned boxes, the modes they are stored in, and their overlaps.

Shapes: N, M boxes; P points. Boxes are (x0, y0, x1, y1) in absolute pixels unless a mode says
otherwise, and widths and heights are plain differences (no ``+ 1``).
"""

import math
from collections.abc import Iterator
from enum import IntEnum, unique

import numpy as np
import torch

RawBox = list[float] | tuple[float, ...] | torch.Tensor | np.ndarray


@unique
class BoxMode(IntEnum):
    """How the numbers of a box are to be read. The values are stored in datasets: never reorder."""

    XYXY_ABS = 0
    """Two corners (x0, y0, x1, y1) in pixels."""
    XYWH_ABS = 1
    """Top-left corner and size (x0, y0, w, h) in pixels."""
    XYXY_REL = 2
    """Two corners as fractions of the image's size; cannot be converted."""
    XYWH_REL = 3
    """Corner and size as fractions of the image's size; cannot be converted."""
    XYWHA_ABS = 4
    """Centre, size and counter-clockwise angle in degrees (xc, yc, w, h, a)."""

    @staticmethod
    def convert(box: RawBox, from_mode: "BoxMode", to_mode: "BoxMode") -> RawBox:
        """Convert one box (a list or tuple) or N boxes (an N x 4 or N x 5 array or tensor).

        The result has the container type and dtype of ``box``, which is never changed; equal modes
        give ``box`` itself. Supported are XYXY_ABS <-> XYWH_ABS, XYWH_ABS -> XYWHA_ABS and
        XYWHA_ABS -> XYXY_ABS (the enclosing upright box).
        """
        if from_mode == to_mode:
            return box
        relative = (BoxMode.XYXY_REL, BoxMode.XYWH_REL)
        assert from_mode not in relative and to_mode not in relative, (
            f"Boxes relative to the image size cannot be converted (asked for {from_mode!r} to "
            f"{to_mode!r}); multiply them by the image size first."
        )
        if (from_mode, to_mode) not in _CONVERTERS:
            raise NotImplementedError(
                f"No conversion from BoxMode {from_mode!r} to {to_mode!r}; supported are "
                "XYXY_ABS <-> XYWH_ABS, XYWH_ABS -> XYWHA_ABS and XYWHA_ABS -> XYXY_ABS."
            )
        if isinstance(box, (list, tuple)):
            assert len(box) in (4, 5), f"A box has 4 or 5 numbers, got {len(box)}: {box}."
            rows = torch.tensor(box)
        else:
            rows = torch.as_tensor(box)
        if from_mode == BoxMode.XYWHA_ABS:
            assert rows.shape[-1] == 5, (
                f"XYWHA_ABS boxes have 5 numbers each, got shape {tuple(rows.shape)}."
            )
        rows = _CONVERTERS[from_mode, to_mode](rows)
        if isinstance(box, (list, tuple)):
            return type(box)(rows.tolist())
        return rows.numpy() if isinstance(box, np.ndarray) else rows


def _shift_far_corner(boxes: torch.Tensor, sign: int) -> torch.Tensor:
    """Add ``sign`` times the first corner to columns 2 and 3 of a copy of ``boxes``."""
    boxes = boxes.clone()
    boxes[..., 2:4] += sign * boxes[..., :2]
    return boxes


def _corner_to_rotated(boxes: torch.Tensor) -> torch.Tensor:
    size = boxes[..., 2:4]
    # Rounded toward zero for integer boxes, which stay integer.
    centre = (boxes[..., :2] + size / 2.0).to(boxes.dtype)
    return torch.cat([centre, size, torch.zeros_like(size[..., :1])], dim=-1)


def _rotated_to_upright(boxes: torch.Tensor) -> torch.Tensor:
    centre, size, angle = boxes.double().split([2, 2, 1], dim=-1)
    angle = angle * (math.pi / 180.0)
    cos, sin = angle.cos().abs(), angle.sin().abs()
    half = (cos * size + sin * size.flip(-1)) / 2.0
    return torch.cat([centre - half, centre + half], dim=-1).to(boxes.dtype)


_CONVERTERS = {
    (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS): lambda boxes: _shift_far_corner(boxes, 1),
    (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS): lambda boxes: _shift_far_corner(boxes, -1),
    (BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS): _corner_to_rotated,
    (BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS): _rotated_to_upright,
}


class Boxes:
    """N boxes as one float32 tensor of shape (N, 4), with the operations detectors need.

    Attributes:
        tensor: (N, 4) float32, XYXY_ABS.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        """Take an (N, 4) tensor (kept as it is when float32), array or list of rows.

        Anything without elements becomes a (0, 4) tensor.
        """
        if not isinstance(tensor, torch.Tensor):
            tensor = torch.as_tensor(tensor, device="cpu")
        tensor = tensor.to(torch.float32)
        if tensor.numel() == 0:
            # Reshaping keeps an empty result connected to the graph it came from.
            tensor = tensor.reshape(-1, 4)
        assert tensor.dim() == 2 and tensor.size(1) == 4, (
            f"Boxes need a tensor of shape (N, 4), got {tuple(tensor.shape)}."
        )
        self.tensor = tensor

    def clone(self) -> "Boxes":
        """A copy that shares no memory."""
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device) -> "Boxes":
        """The boxes on ``device``."""
        return Boxes(self.tensor.to(device=device))

    def area(self) -> torch.Tensor:
        """(N,) areas."""
        x0, y0, x1, y1 = self.tensor.unbind(1)
        return (x1 - x0) * (y1 - y0)

    def clip(self, box_size: tuple[int, int]) -> None:
        """Limit the boxes in place to an image of ``box_size`` = (height, width).

        ``tensor`` is replaced, not written to, so that tensors it was made from stay as they are.
        """
        assert torch.isfinite(self.tensor).all(), "Boxes to clip contain infinite or NaN numbers."
        height, width = box_size
        x0, y0, x1, y1 = self.tensor.unbind(1)
        x0, x1 = x0.clamp(0, width), x1.clamp(0, width)
        y0, y1 = y0.clamp(0, height), y1.clamp(0, height)
        self.tensor = torch.stack((x0, y0, x1, y1), dim=1)

    def nonempty(self, threshold: float = 0.0) -> torch.Tensor:
        """(N,) bool: both sides longer than ``threshold``."""
        x0, y0, x1, y1 = self.tensor.unbind(1)
        return (x1 - x0 > threshold) & (y1 - y0 > threshold)

    def __getitem__(self, item: int | slice | torch.Tensor) -> "Boxes":
        """Boxes chosen by an int (one box), a slice, a bool mask (N,) or indices.

        An int or a slice shares memory with this object.
        """
        if isinstance(item, int):
            return Boxes(self.tensor[item][None])
        rows = self.tensor[item]
        assert rows.dim() == 2, f"Indexing Boxes with {item} gives no list of boxes."
        return Boxes(rows)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> torch.Tensor:
        """(N,) bool: within (height, width) = ``box_size`` widened by ``boundary_threshold``."""
        height, width = box_size
        x0, y0, x1, y1 = self.tensor.unbind(1)
        return (
            (x0 >= -boundary_threshold)
            & (y0 >= -boundary_threshold)
            & (x1 < width + boundary_threshold)
            & (y1 < height + boundary_threshold)
        )

    def get_centers(self) -> torch.Tensor:
        """(N, 2) centres as (x, y)."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply x by ``scale_x`` and y by ``scale_y``, in place."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    @classmethod
    def cat(cls, boxes_list: list["Boxes"]) -> "Boxes":
        """All boxes of the list one after the other; an empty list gives no boxes, on the CPU."""
        assert isinstance(boxes_list, (list, tuple)), f"Expected a list, got {type(boxes_list)}."
        if not boxes_list:
            return cls(torch.empty(0))
        assert all(isinstance(boxes, Boxes) for boxes in boxes_list), (
            f"Boxes.cat takes Boxes only, got {[type(boxes).__name__ for boxes in boxes_list]}."
        )
        return cls(torch.cat([boxes.tensor for boxes in boxes_list]))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield one (4,) tensor per box."""
        yield from self.tensor


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """(N, M) areas of the overlaps of all N boxes with all M boxes; 0 where they are apart."""
    first, second = boxes1.tensor[:, None], boxes2.tensor[None]
    # One side after the other: half the memory of doing both in an (N, M, 2) tensor.
    area = None
    for axis in (0, 1):
        side = torch.min(first[..., axis + 2], second[..., axis + 2])
        side = (side - torch.max(first[..., axis], second[..., axis])).clamp_(min=0)
        area = side if area is None else area * side
    return area


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """(N, M) intersection over union of all pairs; 0 where boxes do not overlap, empty ones too."""
    overlap = pairwise_intersection(boxes1, boxes2)
    union = boxes1.area()[:, None] + boxes2.area() - overlap
    return torch.where(overlap > 0, overlap / union, overlap.new_zeros(1))


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """(N, M) intersection over the area of the box of ``boxes2``; 0 where boxes do not overlap."""
    overlap = pairwise_intersection(boxes1, boxes2)
    return torch.where(overlap > 0, overlap / boxes2.area(), overlap.new_zeros(1))


def pairwise_point_box_distance(points: torch.Tensor, boxes: Boxes) -> torch.Tensor:
    """Distances of P points (P, 2) to the four sides of N boxes.

    Returns:
        (P, N, 4): left, top, right, bottom; negative where the point lies beyond that side.
    """
    x, y = points[:, None].unbind(dim=2)
    x0, y0, x1, y1 = boxes.tensor[None].unbind(dim=2)
    return torch.stack((x - x0, y - y0, x1 - x, y1 - y), dim=2)


def matched_pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """(N,) intersection over union of the i-th box of one with the i-th of the other.

    Unlike :func:`pairwise_iou`, two boxes without area give NaN.
    """
    assert len(boxes1) == len(boxes2), (
        f"Both lists of boxes need the same number of boxes, got {len(boxes1)} and {len(boxes2)}."
    )
    first, second = boxes1.tensor, boxes2.tensor
    top_left = torch.max(first[:, :2], second[:, :2])
    side = (torch.min(first[:, 2:], second[:, 2:]) - top_left).clamp(min=0)
    overlap = side[:, 0] * side[:, 1]
    return overlap / (boxes1.area() + boxes2.area() - overlap)
