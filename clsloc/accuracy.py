"""How well a classifier of regions does in training."""

import torch
from torch import Tensor

from detectron2.utils.events import get_event_storage

__all__ = ["log_classification"]


@torch.no_grad()
def log_classification(logits: Tensor, gt_classes: Tensor, prefix: str = "fast_rcnn") -> None:
    """
    Put what Detectron2's own heads log in the storage, under its names: ``cls_accuracy``, and where
    there is foreground ``fg_cls_accuracy`` and ``false_negative``, the share of it that is called
    background. All counts come from the device at once.

    Args:
        logits: (R, K + 1), background last; R may be 0, then nothing is logged.
        gt_classes: (R,) int64, K for background; negative ones are not foreground.
        prefix: of the names.
    """
    if gt_classes.numel() == 0:
        return
    background = logits.shape[1] - 1
    predicted = logits.argmax(dim=1)
    foreground = (gt_classes >= 0) & (gt_classes < background)
    correct = predicted == gt_classes
    missed = foreground & (predicted == background)
    counts = torch.stack([correct, foreground, correct & foreground, missed]).sum(dim=1).tolist()
    num_correct, num_fg, num_fg_correct, num_missed = counts
    storage = get_event_storage()
    storage.put_scalar(f"{prefix}/cls_accuracy", num_correct / gt_classes.numel())
    if num_fg:
        storage.put_scalar(f"{prefix}/fg_cls_accuracy", num_fg_correct / num_fg)
        storage.put_scalar(f"{prefix}/false_negative", num_missed / num_fg)
