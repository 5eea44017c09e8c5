"""From dense objectness scores to a short list of proposals per image.

Shape shorthand:
    L: feature levels      N: images in the batch      A_l: anchors of level l in one image
"""

import math
from collections.abc import Sequence

import torch

from detectron2.layers import batched_nms, cat
from detectron2.structures import Boxes, Instances

# Objectness given to ground truth boxes when they join the proposals: a probability of almost 1.
_GT_PROBABILITY = 1.0 - 1e-10
_GT_LOGIT = math.log(_GT_PROBABILITY / (1.0 - _GT_PROBABILITY))


def _top_anchors_per_level(
    proposals: list[torch.Tensor], logits: list[torch.Tensor], topk: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keep the ``topk`` best anchors of each level and image.

    Returns boxes (N, K, 4), logits (N, K) and level indices (K,), levels one after the other.
    """
    boxes, scores, levels = [], [], []
    for level, (level_boxes, level_logits) in enumerate(zip(proposals, logits)):
        count = min(topk, level_logits.shape[1])
        best, index = level_logits.topk(count, dim=1)
        boxes.append(level_boxes.gather(1, index.unsqueeze(2).expand(-1, -1, 4)))
        scores.append(best)
        levels.append(torch.full((count,), level, dtype=torch.int64, device=index.device))
    return cat(boxes, dim=1), cat(scores, dim=1), cat(levels)


def find_top_rpn_proposals(
    proposals: list[torch.Tensor],
    pred_objectness_logits: list[torch.Tensor],
    image_sizes: list[tuple[int, int]],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> list[Instances]:
    """Select proposals by score and NMS.

    In turn: the best of each level, clipped to the image, without small boxes, NMS within levels,
    the best over all levels.

    Args:
        proposals: L tensors (N, A_l, 4), absolute XYXY.
        pred_objectness_logits: L tensors (N, A_l).
        image_sizes: N pairs (height, width).
        nms_thresh: IoU above which the lower-scored of two boxes of a level goes.
        pre_nms_topk: boxes kept per image and level before NMS.
        post_nms_topk: boxes kept per image after NMS.
        min_box_size: boxes with a side of this length or shorter are dropped.
        training: in training a non-finite prediction is an error, else it is dropped.

    Returns:
        N Instances with "proposal_boxes" and "objectness_logits", best first. An image may have
        none.

    Raises:
        FloatingPointError: a prediction is inf or NaN in training.
    """
    boxes, scores, levels = _top_anchors_per_level(proposals, pred_objectness_logits, pre_nms_topk)
    results = []
    for image_size, image_boxes, image_scores in zip(image_sizes, boxes, scores):
        image_levels = levels
        finite = image_boxes.isfinite().all(dim=1) & image_scores.isfinite()
        if not finite.all():
            if training:
                raise FloatingPointError(
                    "The RPN predicted infinite or NaN boxes or scores: training has diverged. "
                    "A lower learning rate or gradient clipping may help."
                )
            image_boxes, image_scores = image_boxes[finite], image_scores[finite]
            image_levels = levels[finite]

        image_boxes = Boxes(image_boxes)
        image_boxes.clip(image_size)
        large = image_boxes.nonempty(threshold=min_box_size)
        image_boxes, image_scores = image_boxes[large], image_scores[large]
        keep = batched_nms(image_boxes.tensor, image_scores, image_levels[large], nms_thresh)
        keep = keep[:post_nms_topk]

        result = Instances(image_size)
        result.proposal_boxes = image_boxes[keep]
        result.objectness_logits = image_scores[keep]
        results.append(result)
    return results


def add_ground_truth_to_proposals(
    gt: Sequence[Instances | Boxes], proposals: list[Instances]
) -> list[Instances]:
    """Append its ground truth boxes to the proposals of each image.

    Early in training proposals match nothing: this guarantees positives.

    Args:
        gt: N Instances with "gt_boxes", or N Boxes.
        proposals: N Instances with "proposal_boxes" and "objectness_logits".
    """
    if len(gt) != len(proposals):
        raise ValueError(
            f"Ground truth of {len(gt)} images was given for proposals of {len(proposals)} images."
        )
    return [
        add_ground_truth_to_proposals_single_image(image_gt, image_proposals)
        for image_gt, image_proposals in zip(gt, proposals, strict=True)
    ]


def add_ground_truth_to_proposals_single_image(
    gt: Instances | Boxes, proposals: Instances
) -> Instances:
    """:func:`add_ground_truth_to_proposals` for one image.

    Fields of the proposals other than boxes and logits are taken from ``gt``, which must have them.
    """
    if isinstance(gt, Boxes):
        gt = Instances(proposals.image_size, gt_boxes=gt)
    boxes = gt.gt_boxes
    added = Instances(proposals.image_size, **gt.get_fields())
    added.proposal_boxes = boxes
    added.objectness_logits = torch.full((len(boxes),), _GT_LOGIT, device=boxes.device)
    for name in proposals.get_fields():
        assert added.has(name), (
            f"The proposals have the field '{name}' but the ground truth does not, "
            "so they cannot be joined."
        )
    return Instances.cat([proposals, added])
