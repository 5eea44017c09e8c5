"""Why an average precision has no value, or is 0."""

import contextlib
import io
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

_AREAS = {"APs": "below 32² pixels", "APm": "of 32² to 96² pixels", "APl": "above 96² pixels"}


def explain(results: dict[str, float], coco_eval: Any | None) -> list[str]:
    """A sentence for each metric or group of metrics that is NaN, or 0 throughout.

    Args:
        results: in percent, as of ``BoxEvaluator``.
        coco_eval: the ``COCOeval`` behind them; None if there was no prediction.
    """
    if coco_eval is None:
        return [
            "AP has no value: the model predicts nothing. No score reaches the test threshold; "
            "train longer, or lower MODEL.ROI_HEADS.SCORE_THRESH_TEST (or that of the dense head)."
        ]
    if np.isnan(results["AP"]):
        return ["AP has no value: the dataset has no object to find; look at its annotations."]
    sentences = [
        f"{metric} has no value: the dataset has no object {_AREAS[metric]}."
        for metric in _AREAS
        if metric in results and np.isnan(results[metric])
    ]
    if results["AP50"] == 0:
        sentences.append(_explain_zero(coco_eval))
    return sentences


def _explain_zero(coco_eval: Any) -> str:
    found = class_agnostic_recall(coco_eval)
    if found > 0.05:
        return (
            f"AP is 0 although {100 * found:.0f} % of the objects are found when classes are "
            "ignored: the classes of the weights and of the dataset differ in kind or order."
        )
    return (
        "AP is 0: no prediction overlaps an object of its class by half. The model is hardly "
        "trained, or the images are read otherwise than in training (INPUT.FORMAT, PIXEL_MEAN)."
    )


def class_agnostic_recall(coco_eval: Any) -> float:
    """The part of the objects that some prediction of any class overlaps with IoU 0.5 or more."""
    again = COCOeval(coco_eval.cocoGt, coco_eval.cocoDt, "bbox")
    again.params.useCats = 0
    again.params.iouThrs = np.array([0.5])
    again.params.areaRng = again.params.areaRng[:1]
    again.params.areaRngLbl = again.params.areaRngLbl[:1]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        again.evaluate()
    images = [image for image in again.evalImgs if image is not None]
    objects = sum(int((~image["gtIgnore"].astype(bool)).sum()) for image in images)
    matched = sum(
        int(((image["gtMatches"][0] > 0) & ~image["gtIgnore"].astype(bool)).sum())
        for image in images
    )
    return matched / max(objects, 1)
