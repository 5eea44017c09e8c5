"""RoI heads that differ from Detectron2's in the predictor alone."""

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, nonzero_tuple
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import Instances
from kl_loss.loss import kl_regression_loss


class KLLossOutputLayers(FastRCNNOutputLayers):
    """`FastRCNNOutputLayers` with a log variance for each delta, used by the loss alone.

    The log variances travel behind the deltas, in one tensor: what Detectron2 does with predictions
    needs no change.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, init_std: float, **kwargs: object):
        """
        Args:
            input_shape: of the features of a region.
            init_std: standard deviation of the start of the layer of log variances.
            kwargs: arguments of `FastRCNNOutputLayers`.
        """
        super().__init__(input_shape, **kwargs)
        self.log_variance = nn.Linear(self.bbox_pred.in_features, self.bbox_pred.out_features)
        nn.init.normal_(self.log_variance.weight, std=init_std)
        nn.init.zeros_(self.log_variance.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        return super().from_config(cfg, input_shape) | {"init_std": cfg.MODEL.KL_LOSS.INIT_STD}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (R, K + 1); deltas and log variances (R, 2 * B), B the width of the deltas."""
        scores, deltas = super().forward(x)
        return scores, torch.cat([deltas, self.log_variance(x.flatten(start_dim=1))], dim=1)

    def box_reg_loss(
        self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor
    ) -> Tensor:
        (rows,) = nonzero_tuple((gt_classes >= 0) & (gt_classes < self.num_classes))
        targets = self.box2box_transform.get_deltas(proposal_boxes[rows], gt_boxes[rows])
        # (F, 2, classes or 1, 4), of which each row takes its class.
        predicted = pred_deltas[rows].unflatten(1, (2, -1, 4))
        column = gt_classes[rows] if predicted.shape[2] > 1 else torch.zeros_like(rows)
        each = torch.arange(len(rows), device=rows.device)
        deltas, log_variance = predicted[each, :, column].unbind(dim=1)
        return kl_regression_loss(deltas, targets, log_variance) / max(gt_classes.numel(), 1)

    def predict_boxes(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[Tensor]:
        scores, deltas_and_variances = predictions
        return super().predict_boxes((scores, deltas_and_variances.chunk(2, dim=1)[0]), proposals)


@ROI_HEADS_REGISTRY.register()
class KLLossROIHeads(StandardROIHeads):
    """`StandardROIHeads` with the predictor above."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        parts = super()._init_box_head(cfg, input_shape)
        parts["box_predictor"] = KLLossOutputLayers(cfg, parts["box_head"].output_shape)
        return parts
