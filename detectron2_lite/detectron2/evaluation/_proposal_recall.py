"""Recall of proposals over IoU thresholds."""

from typing import Any

import torch
from pycocotools.coco import COCO

from detectron2.structures import Boxes, BoxMode, pairwise_iou

# Smallest and largest area of an object, in pixels.
_AREA_RANGES = {
    "all": (0, 1e5**2),
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, 1e5**2),
    "96-128": (96**2, 128**2),
    "128-256": (128**2, 256**2),
    "256-512": (256**2, 512**2),
    "512-inf": (512**2, 1e5**2),
}


def _evaluate_box_proposals(
    dataset_predictions: list[dict],
    coco_api: COCO,
    thresholds: torch.Tensor | None = None,
    area: str = "all",
    limit: int | None = None,
) -> dict[str, Any]:
    """Recall of proposals; a fast stand-in for COCO's own, with slightly other numbers.

    Args:
        dataset_predictions: dicts with "image_id" and "proposals".
        coco_api: the annotations.
        thresholds: of IoU, by default 0.50, 0.55, ..., 0.95.
        area: which objects count, a key of ``_AREA_RANGES``.
        limit: how many of the best proposals of an image count.

    Returns:
        "ar" (mean of "recalls"), "recalls" and "thresholds", "gt_overlaps" (ascending IoUs
        of the objects with their proposals) and "num_pos", the number of objects.
    """
    assert area in _AREA_RANGES, f"area is one of {', '.join(_AREA_RANGES)}, got '{area}'."
    smallest, largest = _AREA_RANGES[area]
    overlaps = []
    num_pos = 0
    for prediction in dataset_predictions:
        proposals = prediction["proposals"]
        order = proposals.objectness_logits.sort(descending=True)[1]
        boxes = proposals[order].proposal_boxes

        ann_ids = coco_api.getAnnIds(imgIds=prediction["image_id"])
        annos = [ann for ann in coco_api.loadAnns(ann_ids) if ann["iscrowd"] == 0]
        if not annos or len(boxes) == 0:
            continue
        annos = [ann for ann in annos if smallest <= ann["area"] <= largest]
        num_pos += len(annos)
        if not annos:
            continue
        gt_boxes = [
            BoxMode.convert(ann["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for ann in annos
        ]
        ious = pairwise_iou(boxes[:limit], Boxes(torch.as_tensor(gt_boxes)))
        overlaps.append(_greedy_overlaps(ious))

    gt_overlaps = torch.cat(overlaps) if overlaps else torch.zeros(0, dtype=torch.float32)
    gt_overlaps = gt_overlaps.sort()[0]
    if thresholds is None:
        thresholds = torch.arange(0.5, 0.95 + 1e-5, 0.05, dtype=torch.float32)
    recalls = (gt_overlaps[None] >= thresholds[:, None]).float().sum(dim=1) / float(num_pos)
    return {
        "ar": recalls.mean(),
        "recalls": recalls,
        "thresholds": thresholds,
        "gt_overlaps": gt_overlaps,
        "num_pos": num_pos,
    }


def _greedy_overlaps(ious: torch.Tensor) -> torch.Tensor:
    """IoU of each object with its proposal when the best remaining pair is matched in turn.

    Args:
        ious: float tensor of shape (number of proposals, number of objects).

    Returns:
        float tensor of shape (number of objects,), 0 for those left without proposal.
    """
    ious = ious.clone()
    overlaps = torch.zeros(ious.shape[1])
    for i in range(min(ious.shape)):
        best = int(ious.argmax())
        proposal, gt = divmod(best, ious.shape[1])
        overlaps[i] = ious[proposal, gt]
        ious[proposal, :] = -1
        ious[:, gt] = -1
    return overlaps
