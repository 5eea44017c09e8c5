"""
Predictors of IoU-uniform R-CNN, their losses and their inference.

Shape shorthand in this module:

    N: number of images in the minibatch
    R: number of RoIs of all images, R_i of image i
    K: number of foreground classes; class K is the background
    M: number of IoU intervals with a weight of their own
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clsloc.accuracy import log_classification
from clsloc.errors import UserError
from clsloc.iou_guided import iou_guided_inference
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat, cross_entropy
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from iou_uniform.losses import interval_of, iou_loss, row_box_losses
from iou_uniform.plan import HeadPlan
from iou_uniform.samples import LocalisationSamples

__all__ = ["IoUUniformOutputLayers"]

INIT_STD = {"cls": 0.01, "reg": 0.001, "iou": 0.01}


class IoUUniformOutputLayers(nn.Module):
    """
    The linear predictors of one stage: classes, one box for all classes, and the IoU.

    Outputs are a dict: "cls" logits (R, K+1), "reg" deltas (R, 4), "iou" raw values (R, 1) without
    an activation.

    The IoU is that of the box whose features are pooled, not of the box that the deltas lead to.
    In training both are learnt from boxes that are constants: gradients flow through the pooled
    features into the tower, the pyramid and the backbone, never into coordinates or proposals.
    """

    @configurable
    def __init__(
        self,
        input_shapes: dict[str, ShapeSpec],
        *,
        plan: HeadPlan,
        box2box_transform: Box2BoxTransform,
        num_classes: int,
        weight_edges: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 1.0),
        interval_weights: Sequence[float] = (1.0, 1.5, 2.0, 3.0),
        reg_loss_beta: float = 1.0,
        reg_loss_weight: float = 1.0,
        iou_loss_beta: float = 0.5,
        iou_loss_weight: float = 1.0,
        iou_clamp: bool = False,
        test_score_thresh: float = 0.05,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
    ):
        """
        Args:
            input_shapes: shape of the features of each tower, by the tower's name.
            plan: which predictors exist.
            box2box_transform: encodes and decodes boxes.
            num_classes: K.
            weight_edges: (M + 1) ascending IoUs.
            interval_weights: M weights of the regression loss, one between two edges each.
            reg_loss_beta, iou_loss_beta: where smooth L1 turns from squared to absolute.
            reg_loss_weight, iou_loss_weight: factors on the losses.
            iou_clamp: whether predicted IoUs are clamped to [0, 1].
            test_score_thresh: a detection needs a larger class probability.
            test_nms_thresh: IoU above which NMS suppresses.
            test_topk_per_image: detections to keep.
        """
        super().__init__()
        _check_weights(weight_edges, interval_weights)
        self.plan = plan
        self.box2box_transform = box2box_transform
        self.num_classes = num_classes
        self.reg_loss_beta = reg_loss_beta
        self.reg_loss_weight = reg_loss_weight
        self.iou_loss_beta = iou_loss_beta
        self.iou_loss_weight = iou_loss_weight
        self.iou_clamp = iou_clamp
        self.test_score_thresh = test_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_per_image = test_topk_per_image
        for name, values in (
            ("weight_edges", weight_edges),
            ("interval_weights", interval_weights),
        ):
            values = torch.tensor(values, dtype=torch.float32)
            self.register_buffer(name, values, persistent=False)

        sizes = {"cls": num_classes + 1, "reg": 4, "iou": 1}
        self.predictors = nn.ModuleDict()
        for output, tower in plan.towers.items():
            layer = nn.Linear(input_shapes[tower].channels, sizes[output])
            nn.init.normal_(layer.weight, std=INIT_STD[output])
            nn.init.zeros_(layer.bias)
            self.predictors[output] = layer

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shapes: dict[str, ShapeSpec]) -> dict[str, Any]:
        node, box_head = cfg.MODEL.IOU_UNIFORM, cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shapes": input_shapes,
            "plan": HeadPlan.from_config(cfg),
            "box2box_transform": Box2BoxTransform(weights=box_head.BBOX_REG_WEIGHTS),
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "weight_edges": node.WEIGHT_EDGES,
            "interval_weights": node.INTERVAL_WEIGHTS,
            "reg_loss_beta": node.REG_LOSS_BETA,
            "reg_loss_weight": node.REG_LOSS_WEIGHT,
            "iou_loss_beta": node.IOU_LOSS_BETA,
            "iou_loss_weight": node.IOU_LOSS_WEIGHT,
            "iou_clamp": node.IOU_CLAMP,
            "test_score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "test_nms_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    def forward(self, output: str, features: Tensor) -> Tensor:
        """One output for the features (R, D) of its tower."""
        return self.predictors[output](features)

    def classification_loss(self, logits: Tensor, proposals: list[Instances]) -> Tensor:
        """Cross-entropy, as mean over the sampled proposals."""
        gt_classes = cat([p.gt_classes for p in proposals])
        log_classification(logits, gt_classes)
        return cross_entropy(logits, gt_classes)

    def localisation_losses(
        self, outputs: dict[str, Tensor], samples: LocalisationSamples
    ) -> dict[str, Tensor]:
        """
        The losses of those outputs that are given.

        Args:
            outputs: "reg" (R, 4), "iou" (R, 1), or one of them, for the boxes of `samples`.

        Returns:
            `loss_box_reg` and `loss_iou`; a zero with a gradient for no boxes.
        """
        losses = {}
        if "reg" in outputs:
            losses["loss_box_reg"] = self._box_loss(outputs["reg"], samples)
        if "iou" in outputs:
            predicted = outputs["iou"].flatten().float()
            loss = iou_loss(predicted, samples.iou, self.iou_loss_beta)
            losses["loss_iou"] = loss * self.iou_loss_weight
            if len(predicted):
                error = (predicted.detach() - samples.iou).abs().mean()
                get_event_storage().put_scalar("iou_uniform/iou_mae", error.item())
        return losses

    def _box_loss(self, deltas: Tensor, samples: LocalisationSamples) -> Tensor:
        boxes = cat([b.tensor for b in samples.boxes])
        gt_deltas = self.box2box_transform.get_deltas(boxes, samples.gt_boxes)
        interval = interval_of(samples.iou, self.weight_edges)
        weights = self.interval_weights[interval]
        losses = row_box_losses(deltas, gt_deltas, weights, self.reg_loss_beta)
        self._log_box_losses(losses.detach(), interval)
        return losses.sum() / samples.reg_divisor * self.reg_loss_weight

    def _log_box_losses(self, losses: Tensor, interval: Tensor) -> None:
        """The mean weighted loss of a number of a box, for each interval that has boxes."""
        zeros = losses.new_zeros(len(self.interval_weights))
        sums = zeros.index_add(0, interval, losses / 4)
        counts = zeros.index_add(0, interval, torch.ones_like(losses))
        storage = get_event_storage()
        for number, (total, count) in enumerate(torch.stack([sums, counts]).T.tolist(), start=1):
            if count:
                storage.put_scalar(f"iou_uniform/reg_loss_int{number}", total / count)

    def predict_boxes(self, deltas: Tensor, proposals: list[Instances]) -> list[Tensor]:
        """
        Decoded boxes, clipped to their images: per image (R_i, 4) in float32.

        Rows that are not finite are NaN throughout, so that clipping does not hide them.
        """
        boxes = cat([p.proposal_boxes.tensor for p in proposals])
        decoded = self.box2box_transform.apply_deltas(deltas.float(), boxes)
        finite = decoded.isfinite().all(dim=1, keepdim=True)
        decoded = decoded.masked_fill(~finite, torch.nan)
        per_image = decoded.split([len(p) for p in proposals])
        return [_clip(b, p.image_size) for b, p in zip(per_image, proposals)]

    def predict_iou(self, output: Tensor, sizes: list[int]) -> list[Tensor]:
        """Predicted IoU, clamped if the config says so: per image (R_i,)."""
        iou = output.flatten().float()
        return list((iou.clamp(0, 1) if self.iou_clamp else iou).split(sizes))

    def inference(
        self,
        boxes: list[Tensor],
        probs: list[Tensor],
        iou: list[Tensor] | None,
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Threshold, per-class NMS and top-k; see `iou_guided_inference`."""
        detections, _ = iou_guided_inference(
            boxes,
            probs,
            iou,
            image_sizes,
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )
        return detections


def _clip(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Unlike `Boxes.clip`, this lets NaN pass."""
    height, width = image_size
    x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    return torch.stack([x, y], dim=2).flatten(1)


def _check_weights(edges: Sequence[float], weights: Sequence[float]) -> None:
    if len(edges) != len(weights) + 1 or list(edges) != sorted(set(edges)):
        raise UserError(
            "MODEL.IOU_UNIFORM.WEIGHT_EDGES must rise, and have one entry more than "
            f"INTERVAL_WEIGHTS: got edges {tuple(edges)} and weights {tuple(weights)}."
        )
