"""A region proposal network that proposes for two tasks."""

from typing import Any

import torch
from torch import Tensor

from decoupled_rcnn.proposals import dual_nms, select_candidates
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances

__all__ = ["DecoupledRPN"]


@PROPOSAL_GENERATOR_REGISTRY.register()
class DecoupledRPN(RPN):
    """
    An `RPN` that runs NMS twice in training: decoupled sampling (section IV-A).

    At inference it is the `RPN` itself. In training the proposals have two more fields, see
    `dual_nms`.
    """

    @configurable
    def __init__(
        self,
        *,
        nms_thresh_cls: float = 0.7,
        nms_thresh_reg: float = 0.85,
        post_nms_topk_reg: int = 1000,
        **kwargs: Any,
    ):
        """
        Args:
            nms_thresh_cls, nms_thresh_reg: IoU thresholds in training.
            post_nms_topk_reg: proposals for regression to keep of an image in training.
            kwargs: arguments of `RPN`.
        """
        super().__init__(**kwargs)
        self.nms_thresh_cls = nms_thresh_cls
        self.nms_thresh_reg = nms_thresh_reg
        self.post_nms_topk_reg = post_nms_topk_reg

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        node = cfg.MODEL.DECOUPLED
        return super().from_config(cfg, input_shape) | {
            "nms_thresh_cls": node.NMS_THRESH_CLS,
            "nms_thresh_reg": node.NMS_THRESH_REG,
            "post_nms_topk_reg": node.POST_NMS_TOPK_REG_TRAIN,
        }

    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """As in `RPN`, but with two NMS runs over the same candidates in training."""
        if not self.training:
            return super().predict_proposals(
                anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes
            )
        with torch.no_grad():
            candidates = select_candidates(
                self._decode_proposals(anchors, pred_anchor_deltas),
                [logits.detach() for logits in pred_objectness_logits],
                image_sizes,
                self.pre_nms_topk[True],
                self.min_box_size,
            )
            return [
                dual_nms(
                    image_candidates,
                    thresh_cls=self.nms_thresh_cls,
                    thresh_reg=self.nms_thresh_reg,
                    topk_cls=self.post_nms_topk[True],
                    topk_reg=self.post_nms_topk_reg,
                )
                for image_candidates in candidates
            ]
