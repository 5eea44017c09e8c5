"""Parametrisations of a box relative to another, and the loss on them.

Shapes: N boxes, R anchors per image, K boxes per row (one per class). Boxes are XYXY.
"""

import math

import torch
from fvcore.nn import giou_loss, smooth_l1_loss

from detectron2._left_out import left_out
from detectron2.layers import cat, ciou_loss, diou_loss
from detectron2.structures import Boxes

__all__ = ["Box2BoxTransform", "Box2BoxTransformLinear", "Box2BoxTransformRotated"]

# The largest growth in one step: from 16 to 1000 pixels.
_DEFAULT_SCALE_CLAMP = math.log(1000.0 / 16)

Box2BoxTransformRotated = left_out("detectron2.modeling.box_regression.Box2BoxTransformRotated")


def _centre_and_size(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres and lengths of intervals along one axis."""
    size = high - low
    return low + 0.5 * size, size


class Box2BoxTransform:
    """Shift relative to the size and log of the growth, (dx, dy, dw, dh), as in R-CNN."""

    def __init__(
        self,
        weights: tuple[float, float, float, float],
        scale_clamp: float = _DEFAULT_SCALE_CLAMP,
    ) -> None:
        """
        Args:
            weights: factors of dx, dy, dw, dh, chosen to bring them to about unit variance.
            scale_clamp: dw and dh (without factor) are limited to this when applied, so that
                ``exp`` cannot overflow.
        """
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: torch.Tensor, target_boxes: torch.Tensor) -> torch.Tensor:
        """The (N, 4) deltas that turn ``src_boxes`` (N, 4), of width above 0, into the targets."""
        _assert_tensors(src_boxes, target_boxes)
        wx, wy, ww, wh = self.weights
        shifts, scales = [], []
        for axis, (shift_weight, scale_weight) in enumerate(((wx, ww), (wy, wh))):
            centre, size = _centre_and_size(src_boxes[:, axis], src_boxes[:, axis + 2])
            target, target_size = _centre_and_size(target_boxes[:, axis], target_boxes[:, axis + 2])
            shifts.append(shift_weight * (target - centre) / size)
            scales.append(scale_weight * torch.log(target_size / size))
        assert (src_boxes[:, 2] > src_boxes[:, 0]).all(), (
            "Box2BoxTransform cannot start from boxes without width; filter them out first."
        )
        return torch.stack((*shifts, *scales), dim=1)

    def apply_deltas(self, deltas: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Apply K deltas to each box.

        Args:
            deltas: (N, 4 K), computed in float32 whatever their dtype.
            boxes: (N, 4).

        Returns:
            (N, 4 K) float32 boxes.
        """
        deltas = deltas.float()
        boxes = boxes.to(deltas.dtype)
        wx, wy, ww, wh = self.weights
        low, high = [], []
        for axis, (shift_weight, scale_weight) in enumerate(((wx, ww), (wy, wh))):
            centre, size = _centre_and_size(boxes[:, axis, None], boxes[:, axis + 2, None])
            shift = deltas[:, axis::4] / shift_weight
            scale = torch.clamp(deltas[:, axis + 2 :: 4] / scale_weight, max=self.scale_clamp)
            new_centre, half = shift * size + centre, 0.5 * (torch.exp(scale) * size)
            low.append(new_centre - half)
            high.append(new_centre + half)
        return torch.stack((*low, *high), dim=-1).reshape(deltas.shape)


class Box2BoxTransformLinear:
    """Distances from the centre of a box to the four sides of another (l, t, r, b), as in FCOS."""

    def __init__(self, normalize_by_size: bool = True) -> None:
        """``normalize_by_size`` divides distances by width (l, r) and height (t, b) of the box."""
        self.normalize_by_size = normalize_by_size

    def get_deltas(self, src_boxes: torch.Tensor, target_boxes: torch.Tensor) -> torch.Tensor:
        """The (N, 4) distances; below 0 where a centre lies outside its target."""
        _assert_tensors(src_boxes, target_boxes)
        centre = 0.5 * (src_boxes[:, :2] + src_boxes[:, 2:])
        deltas = torch.cat((centre - target_boxes[:, :2], target_boxes[:, 2:] - centre), dim=1)
        return deltas / self._unit(src_boxes) if self.normalize_by_size else deltas

    def apply_deltas(self, deltas: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Apply K distances to each box.

        Args:
            deltas: (N, 4 K); what is below 0 counts as 0.
            boxes: (N, 4).

        Returns:
            (N, 4 K) boxes of the dtype of ``deltas``.
        """
        boxes = boxes.to(deltas.dtype)
        distances = torch.relu(deltas).unflatten(1, (-1, 4))
        if self.normalize_by_size:
            distances = distances * self._unit(boxes)[:, None]
        centre = 0.5 * (boxes[:, None, :2] + boxes[:, None, 2:])
        low, high = centre - distances[..., :2], centre + distances[..., 2:]
        return torch.cat((low, high), dim=-1).reshape(deltas.shape)

    @staticmethod
    def _unit(boxes: torch.Tensor) -> torch.Tensor:
        """(N, 4) width, height, width, height."""
        return (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)


def _assert_tensors(*boxes: torch.Tensor) -> None:
    for value in boxes:
        assert isinstance(value, torch.Tensor), (
            f"Boxes must be tensors here, got {type(value).__name__}; of Boxes pass `.tensor`."
        )


_IOU_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


def _dense_box_regression_loss(
    anchors: list[Boxes | torch.Tensor],
    box2box_transform: Box2BoxTransform,
    pred_anchor_deltas: list[torch.Tensor],
    gt_boxes: list[torch.Tensor],
    fg_mask: torch.Tensor,
    box_reg_loss_type: str = "smooth_l1",
    smooth_l1_beta: float = 0.0,
) -> torch.Tensor:
    """Sum over the foreground of the loss of dense box predictions.

    Args:
        anchors: per level, (R_l, 4); R is the sum of R_l.
        pred_anchor_deltas: per level, (images, R_l, 4).
        gt_boxes: per image, (R, 4) the box matched to each anchor; any number in the background.
        fg_mask: (images, R) bool.
        box_reg_loss_type: "smooth_l1" on deltas, or "giou", "diou", "ciou" on boxes.
        smooth_l1_beta: where smooth L1 turns from quadratic to linear; 0 is plain L1.

    Returns:
        A number; 0 with a gradient where nothing is foreground.
    """
    image, index = torch.nonzero(fg_mask, as_tuple=True)
    fg_anchors = cat([a.tensor if isinstance(a, Boxes) else a for a in anchors])[index]
    fg_targets = torch.stack(gt_boxes)[image, index]
    fg_deltas = cat(pred_anchor_deltas, dim=1)[image, index]
    if box_reg_loss_type == "smooth_l1":
        target_deltas = box2box_transform.get_deltas(fg_anchors, fg_targets)
        return smooth_l1_loss(fg_deltas, target_deltas, beta=smooth_l1_beta, reduction="sum")
    if box_reg_loss_type not in _IOU_LOSSES:
        raise ValueError(
            f"Unknown box regression loss {box_reg_loss_type!r}; "
            f"use one of smooth_l1, {', '.join(_IOU_LOSSES)}."
        )
    pred_boxes = box2box_transform.apply_deltas(fg_deltas, fg_anchors)
    return _IOU_LOSSES[box_reg_loss_type](pred_boxes, fg_targets, reduction="sum")
