"""Predictors whose two tasks read vectors of their own."""

from torch import Tensor

from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Instances

__all__ = ["GRCNOutputLayers"]


class GRCNOutputLayers(FastRCNNOutputLayers):
    """Differs from `FastRCNNOutputLayers` in its two inputs alone; losses are the same."""

    def forward(self, x_cls: Tensor, x_loc: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            x_cls, x_loc: (R, C) each; they may be the same tensor.

        Returns:
            Class logits (R, K+1), background last, and box deltas (R, 4K), or (R, 4) if all classes
            share one box.
        """
        return self.cls_score(x_cls), self.bbox_pred(x_loc)

    def detect(
        self, probs: list[Tensor], deltas: Tensor, proposals: list[Instances]
    ) -> list[Instances]:
        """
        Decode boxes, then threshold, per-class NMS and top-k.

        Args:
            probs: per image (R_i, K+1).
            deltas: (R, 4K) or (R, 4).
            proposals: per image, what `deltas` refer to.
        """
        return fast_rcnn_inference(
            self.predict_boxes((None, deltas), proposals),
            probs,
            [p.image_size for p in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )[0]
