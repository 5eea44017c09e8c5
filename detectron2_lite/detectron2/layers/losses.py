"""IoU losses with a penalty on centre distance (DIoU) and aspect ratio (CIoU).

Both are defined in arXiv:1911.08287. N boxes, XYXY, any scale.
"""

import math

import torch


def diou_loss(
    boxes1: torch.Tensor, boxes2: torch.Tensor, reduction: str = "none", eps: float = 1e-7
) -> torch.Tensor:
    """Distance-IoU loss (eq. 7): 1 - IoU + (centre distance / enclosing diagonal) squared.

    Args:
        boxes1, boxes2: (N, 4) predicted and target boxes, each with x1 >= x0 and y1 >= y0.
        reduction: "none" gives (N,), "mean" and "sum" one number; both are 0, with a gradient,
            for no boxes.
        eps: added to divisors.
    """
    loss, _ = _diou_and_iou(boxes1, boxes2, eps)
    return _reduce(loss, reduction)


def ciou_loss(
    boxes1: torch.Tensor, boxes2: torch.Tensor, reduction: str = "none", eps: float = 1e-7
) -> torch.Tensor:
    """Complete-IoU loss (eq. 10): :func:`diou_loss` plus a term on the aspect ratio.

    Arguments and result as in :func:`diou_loss`; boxes without height or width have no ratio and
    can give NaN.
    """
    loss, iou = _diou_and_iou(boxes1, boxes2, eps)
    angle1, angle2 = (_aspect_angle(boxes) for boxes in (boxes1, boxes2))
    inconsistency = (4 / math.pi**2) * (angle2 - angle1) ** 2
    with torch.no_grad():
        weight = inconsistency / (1 - iou + inconsistency + eps)
    return _reduce(loss + weight * inconsistency, reduction)


def _aspect_angle(boxes: torch.Tensor) -> torch.Tensor:
    x0, y0, x1, y1 = boxes.unbind(dim=-1)
    return torch.atan((x1 - x0) / (y1 - y0))


def _diou_and_iou(
    boxes1: torch.Tensor, boxes2: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) DIoU losses and IoUs."""
    ax0, ay0, ax1, ay1 = boxes1.unbind(dim=-1)
    bx0, by0, bx1, by1 = boxes2.unbind(dim=-1)
    assert (boxes1[..., :2] <= boxes1[..., 2:]).all(), (
        "A predicted box has its second corner left of or above its first."
    )

    width = torch.min(ax1, bx1) - torch.max(ax0, bx0)
    height = torch.min(ay1, by1) - torch.max(ay0, by0)
    overlap = torch.where((width > 0) & (height > 0), width * height, torch.zeros_like(width))
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - overlap + eps
    iou = overlap / union

    diagonal = (torch.max(ax1, bx1) - torch.min(ax0, bx0)) ** 2
    diagonal = diagonal + (torch.max(ay1, by1) - torch.min(ay0, by0)) ** 2 + eps
    distance = ((ax0 + ax1) / 2 - (bx0 + bx1) / 2) ** 2 + ((ay0 + ay1) / 2 - (by0 + by1) / 2) ** 2
    return 1 - iou + distance / diagonal, iou


def _reduce(loss: torch.Tensor, reduction: str) -> torch.Tensor:
    if reduction == "mean":
        return loss.mean() if loss.numel() > 0 else 0.0 * loss.sum()
    return loss.sum() if reduction == "sum" else loss
