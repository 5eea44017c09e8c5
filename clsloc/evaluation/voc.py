"""The official measure of PASCAL VOC."""

from typing import Any

from detectron2.evaluation import PascalVOCDetectionEvaluator


class OfficialVOCEvaluator(PascalVOCDetectionEvaluator):
    """Reports as task ``voc``, so that it can stand beside the COCO measure of the same boxes."""

    def evaluate(self) -> dict[str, Any] | None:
        """AP (mean over the thresholds 0.5 to 0.95), AP50 and AP75 in percent; None in all
        processes but the first."""
        results = super().evaluate()
        return None if results is None else {"voc": results["bbox"]}
