"""Which anchors lie in a crowd, of which nobody says how many objects it holds."""

import torch
from torch import Tensor

from clsloc.assigners.adaptive import chunks
from detectron2.structures import Boxes, pairwise_ioa

__all__ = ["anchors_in_crowds"]


def anchors_in_crowds(anchors: Tensor, crowds: Tensor, threshold: float) -> Tensor:
    """
    Anchors of which a share larger than `threshold` lies in a single crowd.

    Args:
        anchors: (R, 4) absolute XYXY.
        crowds: (C, 4) likewise; without any, nothing lies in one.
        threshold: share of the area of the anchor.

    Returns:
        (R,) bool.
    """
    found = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
    for part in chunks(len(anchors), len(crowds)):
        shares = pairwise_ioa(Boxes(crowds[part]), Boxes(anchors))
        found |= (shares > threshold).any(dim=0)
    return found
