"""The official measure of PASCAL VOC."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.evaluation.pascal_voc_evaluation import voc_eval
from detectron2.utils import comm


class OfficialVOCEvaluator(PascalVOCDetectionEvaluator):
    """Reports as task ``voc``, so that it can stand beside the COCO measure of the same boxes, and
    adds the AP at an IoU of 0.7 that papers on localisation give."""

    def __init__(self, dataset_name: str, *, per_class: bool = False) -> None:
        """
        Args:
            dataset_name: a dataset registered by ``register_pascal_voc``.
            per_class: report ``AP70-<class>`` of every class, too, in the dataset's order.
        """
        super().__init__(dataset_name)
        self._per_class = per_class

    def evaluate(self) -> dict[str, Any] | None:
        """AP (mean over the thresholds 0.5 to 0.95), AP50, AP75 and AP70 in percent; None in all
        processes but the first."""
        results = super().evaluate()
        lines: dict[int, list[str]] = {}
        for predictions in comm.gather(self._predictions, dst=0):
            for category, of_process in predictions.items():
                lines.setdefault(category, []).extend(of_process)
        if results is None:
            return None
        aps = self._class_aps(lines, 0.7)
        per_class = {f"AP70-{name}": ap for name, ap in aps.items()} if self._per_class else {}
        return {"voc": {**results["bbox"], "AP70": float(np.mean(list(aps.values()))), **per_class}}

    def _class_aps(self, lines: dict[int, list[str]], iou: float) -> dict[str, float]:
        """AP of each class in percent.

        Args:
            lines: by class, as in the result files of the challenges.
            iou: a detection needs more.
        """
        aps = {}
        with tempfile.TemporaryDirectory() as folder:
            for category, name in enumerate(self._class_names):
                content = "\n".join(lines.get(category, ()))
                Path(folder, f"{name}.txt").write_text(content, encoding="utf-8")
                _, _, ap = voc_eval(
                    str(Path(folder, "{}.txt")),
                    self._anno_file_template,
                    self._image_set_path,
                    name,
                    ovthresh=iou,
                    use_07_metric=self._is_2007,
                )
                aps[name] = float(100 * ap)
        return aps
