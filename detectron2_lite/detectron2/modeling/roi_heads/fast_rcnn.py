"""Fast R-CNN's predictor: classification and box regression of regions, losses and detections.

Shape shorthand:
    N: images      R: regions of the batch      R_i: regions of one image      K: classes
    Classes are 0..K-1; K is background.      B: box dimension, 4

Naming: ``pred_`` comes from the network, ``gt_`` from the annotation; ``deltas`` are the
parameters that :class:`Box2BoxTransform` turns a proposal into a box with.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from detectron2._left_out import left_out_error
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, batched_nms, cat, cross_entropy, nonzero_tuple
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage


def fast_rcnn_inference(
    boxes: list[torch.Tensor],
    scores: list[torch.Tensor],
    image_shapes: list[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[torch.Tensor]]:
    """:func:`fast_rcnn_inference_single_image` for each image of a batch.

    Returns:
        N Instances and N index tensors.
    """
    results = [
        fast_rcnn_inference_single_image(
            image_boxes, image_scores, shape, score_thresh, nms_thresh, topk_per_image
        )
        for image_boxes, image_scores, shape in zip(boxes, scores, image_shapes, strict=True)
    ]
    return [instances for instances, _ in results], [index for _, index in results]


def fast_rcnn_inference_single_image(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, torch.Tensor]:
    """Threshold the scores, clip the boxes, apply NMS within classes, keep the best.

    A region may give detections of several classes. Regions with a non-finite score or box give
    none.

    Args:
        boxes: (R_i, K * 4) or, if all classes share one box, (R_i, 4); absolute XYXY.
        scores: (R_i, K + 1), background last.
        image_shape: height and width to clip to.
        score_thresh: a score must be above it.
        nms_thresh: IoU above which the lower-scored of two boxes of a class goes.
        topk_per_image: most detections to return; negative for no limit.

    Returns:
        Instances with "pred_boxes", "scores" and "pred_classes", best first, and the region that
        each came from, as row of ``boxes``.
    """
    finite = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    passing = (scores[:, :-1] > score_thresh) & finite[:, None]
    region, label = nonzero_tuple(passing)
    scores = scores[region, label]
    per_class_boxes = boxes.unflatten(1, (-1, 4))
    boxes = per_class_boxes[region, label if per_class_boxes.shape[1] > 1 else 0]
    boxes = Boxes(boxes)
    boxes.clip(image_shape)

    keep = batched_nms(boxes.tensor, scores, label, nms_thresh)
    if topk_per_image >= 0:
        keep = keep[:topk_per_image]
    result = Instances(image_shape)
    result.pred_boxes = boxes[keep]
    result.scores = scores[keep]
    result.pred_classes = label[keep]
    return result, region[keep]


def _log_classification_stats(
    pred_logits: torch.Tensor, gt_classes: torch.Tensor, prefix: str = "fast_rcnn"
) -> None:
    """Log the accuracy over all regions and over foreground, and the share of foreground taken for
    background, as ``{prefix}/cls_accuracy``, ``fg_cls_accuracy`` and ``false_negative``.

    Args:
        pred_logits: (R, K + 1).
        gt_classes: (R,).
    """
    num_regions = gt_classes.numel()
    if num_regions == 0:
        return
    background = pred_logits.shape[1] - 1
    pred_classes = pred_logits.argmax(dim=1)
    foreground = (gt_classes >= 0) & (gt_classes < background)
    correct = pred_classes == gt_classes
    missed = foreground & (pred_classes == background)
    # One transfer for all counts: each .item() would wait for the device.
    num_correct, num_fg, num_fg_correct, num_missed = torch.stack(
        [x.sum() for x in (correct, foreground, correct & foreground, missed)]
    ).tolist()

    storage = get_event_storage()
    storage.put_scalar(f"{prefix}/cls_accuracy", num_correct / num_regions)
    if num_fg > 0:
        storage.put_scalar(f"{prefix}/fg_cls_accuracy", num_fg_correct / num_fg)
        storage.put_scalar(f"{prefix}/false_negative", num_missed / num_fg)


def _cat(tensors: Sequence[torch.Tensor], empty: torch.Tensor) -> torch.Tensor:
    """Concatenate the tensors of N images; ``empty`` stands for those of no image."""
    return cat(list(tensors), dim=0) if tensors else empty


class FastRCNNOutputLayers(nn.Module):
    """Two linear layers that predict class scores and box deltas of a region."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        box2box_transform: Box2BoxTransform,
        num_classes: int,
        test_score_thresh: float = 0.0,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
        cls_agnostic_bbox_reg: bool = False,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        loss_weight: float | dict[str, float] = 1.0,
        use_fed_loss: bool = False,
        use_sigmoid_ce: bool = False,
        get_fed_loss_cls_weights: Callable | None = None,
        fed_loss_num_classes: int = 50,
    ) -> None:
        """
        Args:
            input_shape: shape of one region's features, or their number.
            box2box_transform: encodes and decodes boxes relative to proposals.
            num_classes: foreground classes, K.
            test_score_thresh: detections score above it.
            test_nms_thresh: IoU threshold of NMS.
            test_topk_per_image: most detections per image.
            cls_agnostic_bbox_reg: all classes share one box.
            smooth_l1_beta: where smooth L1 turns from squared to absolute; 0 is L1.
            box_reg_loss_type: "smooth_l1", "giou", "diou" or "ciou".
            loss_weight: one factor, or one per loss name.
            use_sigmoid_ce: one binary cross-entropy per class in place of softmax.
            use_fed_loss, get_fed_loss_cls_weights, fed_loss_num_classes: the federated loss of
                LVIS, left out.
        """
        super().__init__()
        if use_fed_loss:
            raise left_out_error("FastRCNNOutputLayers with use_fed_loss")
        if isinstance(input_shape, int):
            input_shape = ShapeSpec(channels=input_shape)
        input_size = input_shape.channels * (input_shape.width or 1) * (input_shape.height or 1)
        num_box_classes = 1 if cls_agnostic_bbox_reg else num_classes
        box_dim = len(box2box_transform.weights)
        self.cls_score = nn.Linear(input_size, num_classes + 1)
        self.bbox_pred = nn.Linear(input_size, num_box_classes * box_dim)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

        self.num_classes = num_classes
        self.box2box_transform = box2box_transform
        self.smooth_l1_beta = smooth_l1_beta
        self.test_score_thresh = test_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_per_image = test_topk_per_image
        self.box_reg_loss_type = box_reg_loss_type
        if not isinstance(loss_weight, dict):
            loss_weight = {"loss_cls": loss_weight, "loss_box_reg": loss_weight}
        self.loss_weight = loss_weight
        self.use_fed_loss = use_fed_loss
        self.use_sigmoid_ce = use_sigmoid_ce
        self.fed_loss_num_classes = fed_loss_num_classes

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "box2box_transform": Box2BoxTransform(weights=head.BBOX_REG_WEIGHTS),
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "test_score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "test_nms_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "cls_agnostic_bbox_reg": head.CLS_AGNOSTIC_BBOX_REG,
            "smooth_l1_beta": head.SMOOTH_L1_BETA,
            "box_reg_loss_type": head.BBOX_REG_LOSS_TYPE,
            "loss_weight": {"loss_box_reg": head.BBOX_REG_LOSS_WEIGHT},
            "use_fed_loss": head.USE_FED_LOSS,
            "use_sigmoid_ce": head.USE_SIGMOID_CE,
            "fed_loss_num_classes": head.FED_LOSS_NUM_CLASSES,
        }

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map features (R, ...) to logits (R, K + 1), background last, and deltas (R, K * B), or
        (R, B) if all classes share one box."""
        x = x.flatten(1)
        return self.cls_score(x), self.bbox_pred(x)

    def losses(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """Classification and regression losses, each a mean over all R regions.

        Args:
            predictions: what :meth:`forward` returns.
            proposals: N Instances with "proposal_boxes" and "gt_classes", and with "gt_boxes" in
                images that have ground truth; in total R.

        Returns:
            "loss_cls" and "loss_box_reg".
        """
        scores, deltas = predictions
        gt_classes = _cat([p.gt_classes for p in proposals], scores.new_empty(0))
        _log_classification_stats(scores, gt_classes)

        no_boxes = deltas.new_empty((0, 4))
        proposal_boxes = _cat([p.proposal_boxes.tensor for p in proposals], no_boxes)
        if proposal_boxes.requires_grad:
            raise ValueError("Proposals must be detached: they are constants of the box loss.")
        # Without ground truth all regions are background; their box targets are never read.
        gt_boxes = _cat(
            [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals],
            no_boxes,
        )
        if self.use_sigmoid_ce:
            loss_cls = self.sigmoid_cross_entropy_loss(scores, gt_classes)
        else:
            loss_cls = cross_entropy(scores, gt_classes, reduction="mean")
        losses = {
            "loss_cls": loss_cls,
            "loss_box_reg": self.box_reg_loss(proposal_boxes, gt_boxes, deltas, gt_classes),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def sigmoid_cross_entropy_loss(
        self, pred_class_logits: torch.Tensor, gt_classes: torch.Tensor
    ) -> torch.Tensor:
        """Binary cross-entropy summed over classes, as mean over regions; background is all zeros.

        Args:
            pred_class_logits: (R, K + 1), the last column is not used.
            gt_classes: (R,).
        """
        if gt_classes.numel() == 0:
            return pred_class_logits.sum() * 0.0
        target = F.one_hot(gt_classes, self.num_classes + 1)[:, :-1].to(pred_class_logits.dtype)
        loss = F.binary_cross_entropy_with_logits(
            pred_class_logits[:, :-1], target, reduction="sum"
        )
        return loss / len(gt_classes)

    def box_reg_loss(
        self,
        proposal_boxes: torch.Tensor,
        gt_boxes: torch.Tensor,
        pred_deltas: torch.Tensor,
        gt_classes: torch.Tensor,
    ) -> torch.Tensor:
        """Regression loss of foreground regions: their sum divided by R, not by their number.

        So each foreground region weighs the same whatever the others are, and the classification
        loss, a mean over R, keeps its relation to it.

        Args:
            proposal_boxes, gt_boxes: (R, B).
            pred_deltas: (R, K * B) or (R, B).
            gt_classes: (R,).
        """
        deltas = self._of_class(pred_deltas, gt_classes, proposal_boxes.shape[-1])
        foreground = (gt_classes >= 0) & (gt_classes < self.num_classes)
        loss = _dense_box_regression_loss(
            [proposal_boxes],
            self.box2box_transform,
            [deltas[None]],
            [gt_boxes],
            foreground[None],
            self.box_reg_loss_type,
            self.smooth_l1_beta,
        )
        return loss / max(gt_classes.numel(), 1.0)

    def _of_class(self, values: torch.Tensor, classes: torch.Tensor, box_dim: int) -> torch.Tensor:
        """Pick the B numbers of its class for each region: (R, B) from (R, K * B), or from (R, B)
        if all classes share them. Regions without a foreground class get those of any."""
        if values.shape[1] == box_dim:
            return values
        rows = torch.arange(len(values), device=values.device)
        columns = classes.long().clamp(0, self.num_classes - 1)
        return values.unflatten(1, (self.num_classes, box_dim))[rows, columns]

    def inference(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[torch.Tensor]]:
        """Detections; see :func:`fast_rcnn_inference`.

        Args:
            predictions: what :meth:`forward` returns.
            proposals: N Instances with "proposal_boxes", in total R.
        """
        return fast_rcnn_inference(
            self.predict_boxes(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [p.image_size for p in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )

    def predict_boxes_for_gt_classes(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> list[torch.Tensor]:
        """N tensors (R_i, B): the predicted box of each region's ground truth class; of an
        arbitrary class for background.

        The arguments are those of :meth:`losses`.
        """
        if not proposals:
            return []
        boxes = cat(self.predict_boxes(predictions, proposals), dim=0)
        gt_classes = cat([p.gt_classes for p in proposals], dim=0)
        boxes = self._of_class(boxes, gt_classes, proposals[0].proposal_boxes.tensor.shape[1])
        return list(boxes.split([len(p) for p in proposals]))

    def predict_boxes(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> list[torch.Tensor]:
        """N tensors (R_i, K * B), or (R_i, B) if all classes share one box; not clipped.

        The arguments are those of :meth:`inference`.
        """
        if not proposals:
            return []
        _, deltas = predictions
        proposal_boxes = cat([p.proposal_boxes.tensor for p in proposals], dim=0)
        boxes = self.box2box_transform.apply_deltas(deltas, proposal_boxes)
        return list(boxes.split([len(p) for p in proposals]))

    def predict_probs(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> list[torch.Tensor]:
        """N tensors (R_i, K + 1) of class probabilities, background last.

        The arguments are those of :meth:`inference`.
        """
        scores, _ = predictions
        probs = scores.sigmoid() if self.use_sigmoid_ce else scores.softmax(dim=-1)
        return list(probs.split([len(p) for p in proposals]))
