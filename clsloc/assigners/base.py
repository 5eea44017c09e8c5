"""
The interface that all assigners of dense detectors share, so that a config can exchange them.

Shape shorthand, of one image: R anchors over all levels, M objects, K classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Anchors", "Assignment", "DenseAssigner", "Predictions"]


@dataclass(frozen=True)
class Anchors:
    """
    Anchors of one image.

    Attributes:
        boxes: (R, 4) absolute XYXY, level by level.
        level_sizes: how many of them each level has; the sum is R.
    """

    boxes: Tensor
    level_sizes: Sequence[int]

    @property
    def centres(self) -> Tensor:
        """(R, 2)."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2


@dataclass(frozen=True)
class Predictions:
    """
    What the detector says at the moment about the anchors of one image.

    Attributes:
        logits: (R, K) class logits, in front of a sigmoid.
        boxes: (R, 4) decoded boxes, not clipped to the image.
    """

    logits: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class Assignment:
    """
    What each anchor of one image has to learn.

    Attributes:
        labels: (R,) int64: the class 0..K-1 of the object, K for background, -1 for an anchor
            that takes no part.
        matched: (R,) int64 index of the object; means something for positives only.
    """

    labels: Tensor
    matched: Tensor


class DenseAssigner(ABC):
    """Labels anchors for the two tasks; a plain assigner gives both tasks the same labels."""

    @torch.no_grad()
    def __call__(
        self, anchors: Anchors, gt_boxes: Tensor, gt_classes: Tensor, predictions: Predictions
    ) -> tuple[Assignment, Assignment]:
        """
        Args:
            anchors: of one image; those that must not be labelled are left out by the caller.
            gt_boxes: (M, 4) absolute XYXY; M may be 0, then everything is background.
            gt_classes: (M,) int64.
            predictions: read by assigners that look at them, never differentiated.

        Returns:
            The assignment for classification and that for regression.
        """
        if len(gt_boxes) == 0:
            nothing = all_background(len(anchors.boxes), predictions.logits)
            return nothing, nothing
        return self._assign(anchors, gt_boxes, gt_classes, predictions)

    @abstractmethod
    def _assign(
        self, anchors: Anchors, gt_boxes: Tensor, gt_classes: Tensor, predictions: Predictions
    ) -> tuple[Assignment, Assignment]:
        """As `__call__`, with at least one object and without gradients."""


def all_background(num_anchors: int, logits: Tensor) -> Assignment:
    """The assignment of an image without objects."""
    zeros = torch.zeros(num_anchors, dtype=torch.int64, device=logits.device)
    return Assignment(zeros + logits.shape[1], zeros)
