"""
Two sets of proposals from the same candidates: a sparse one to classify, a dense one to regress.

NMS at 0.85 after NMS at 0.7 would change nothing: within a level no pair above 0.7 is left. Both
runs need the candidates from before NMS, and neither result contains the other.

Shape shorthand: L feature levels, N images, A_l anchors of level l, C candidates of an image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from detectron2.layers import batched_nms, cat
from detectron2.structures import Boxes, Instances

__all__ = ["Candidates", "dual_nms", "select_candidates"]

# NMS of so few boxes costs next to nothing.
_FEW = 2000


@dataclass(frozen=True)
class Candidates:
    """
    What NMS chooses from in one image.

    Attributes:
        boxes: clipped to the image, C of them.
        logits: (C,) objectness.
        levels: (C,) int64, index of the feature level; NMS runs within levels.
        image_size: (height, width).
    """

    boxes: Boxes
    logits: Tensor
    levels: Tensor
    image_size: tuple[int, int]


def select_candidates(
    proposals: list[Tensor],
    logits: list[Tensor],
    image_sizes: list[tuple[int, int]],
    pre_nms_topk: int,
    min_box_size: float = 0.0,
) -> list[Candidates]:
    """
    The best boxes of each level, clipped, without small ones: an RPN's steps before NMS.

    Args:
        proposals: L tensors (N, A_l, 4), absolute XYXY.
        logits: L tensors (N, A_l) of objectness.
        image_sizes: N pairs (height, width).
        pre_nms_topk: boxes to keep of each level and image.
        min_box_size: boxes with a side of this length or shorter are dropped.

    Raises:
        FloatingPointError: a box or a score is not finite.
    """
    boxes, scores, levels = [], [], []
    for level, (level_boxes, level_logits) in enumerate(zip(proposals, logits, strict=True)):
        count = min(pre_nms_topk, level_logits.shape[1])
        best, rows = level_logits.topk(count, dim=1)
        scores.append(best)
        boxes.append(torch.take_along_dim(level_boxes, rows[:, :, None], dim=1))
        levels.append(rows.new_full((count,), level))
    all_boxes, all_scores, all_levels = cat(boxes, dim=1), cat(scores, dim=1), cat(levels)
    if not (all_boxes.isfinite().all() & all_scores.isfinite().all()):
        raise FloatingPointError(
            "The RPN predicted boxes or scores that are not finite: training has diverged."
        )
    return [
        _clipped(Boxes(b), s, all_levels, size, min_box_size)
        for b, s, size in zip(all_boxes, all_scores, image_sizes, strict=True)
    ]


def _clipped(
    boxes: Boxes, logits: Tensor, levels: Tensor, size: tuple[int, int], min_box_size: float
) -> Candidates:
    boxes.clip(size)
    large = boxes.nonempty(threshold=min_box_size)
    return Candidates(boxes[large], logits[large], levels[large], size)


def dual_nms(
    candidates: Candidates,
    *,
    thresh_cls: float,
    thresh_reg: float,
    topk_cls: int,
    topk_reg: int,
) -> Instances:
    """
    Proposals_cls and Proposals_reg of an image (section IV-A), as one list.

    One list, because code that knows nothing of two sets, such as the drawing of proposals during
    training, can use it.

    Args:
        candidates: boxes from before NMS.
        thresh_cls, thresh_reg: the IoU above which the worse of two boxes of a level goes.
        topk_cls, topk_reg: boxes to keep for each task.

    Returns:
        The boxes that either run keeps, best first: "proposal_boxes", "objectness_logits", and the
        bool fields "for_cls" and "for_reg" that tell which runs kept a box.
    """
    order = candidates.logits.argsort(descending=True, stable=True)
    c = Candidates(
        candidates.boxes[order],
        candidates.logits[order],
        candidates.levels[order],
        candidates.image_size,
    )
    for_cls = torch.zeros_like(c.levels, dtype=torch.bool)
    for_reg = for_cls.clone()
    for_cls[_best_of_nms(c, thresh_cls, topk_cls)] = True
    for_reg[_best_of_nms(c, thresh_reg, topk_reg)] = True

    rows = (for_cls | for_reg).nonzero().flatten()
    proposals = Instances(c.image_size)
    proposals.proposal_boxes = c.boxes[rows]
    proposals.objectness_logits = c.logits[rows]
    proposals.for_cls = for_cls[rows]
    proposals.for_reg = for_reg[rows]
    return proposals


def _best_of_nms(c: Candidates, thresh: float, topk: int) -> Tensor:
    """
    The `topk` best boxes that NMS keeps, from candidates in falling order.

    No box depends on a worse one, so that NMS of the best candidates finds the same boxes; the
    denser the result, the fewer are enough, and the more NMS of all of them would cost.
    """
    count = max(2 * topk, _FEW)
    while True:
        keep = batched_nms(c.boxes.tensor[:count], c.logits[:count], c.levels[:count], thresh)
        if len(keep) >= topk or count >= len(c.boxes):
            return keep[:topk]
        count *= 2
