import torch

from clsloc.accuracy import log_classification
from detectron2.utils.events import EventStorage


def logged(predicted, gt_classes, *prefix):
    logits = torch.eye(4)[predicted].reshape(-1, 4)  # three classes and background
    with EventStorage() as storage:
        log_classification(logits, torch.tensor(gt_classes, dtype=torch.int64), *prefix)
        return {name: value for name, (value, _) in storage.latest().items()}


def test_accuracy_by_hand():
    assert logged([0, 1, 3, 3, 2], [0, 2, 1, 3, 3]) == {
        "fast_rcnn/cls_accuracy": 2 / 5,
        "fast_rcnn/fg_cls_accuracy": 1 / 3,
        "fast_rcnn/false_negative": 1 / 3,
    }


def test_without_foreground_there_is_one_figure_and_without_regions_none():
    assert logged([3, 0], [3, 3], "double_head/fc") == {"double_head/fc/cls_accuracy": 0.5}
    assert logged([], []) == {}
