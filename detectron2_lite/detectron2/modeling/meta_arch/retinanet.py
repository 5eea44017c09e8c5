"""RetinaNet (arXiv:1708.02002).

Shape shorthand:
    N: images      L: feature levels      A: anchors of one image over all levels      K: classes
    C: anchors per location
Label of an anchor: the class 0..K-1 of its object, K background, -1 takes no part in the loss.
"""

import logging
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss_jit
from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import CycleBatchNormList, ShapeSpec, batched_nms, cat, get_norm
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.backbone import Backbone, build_backbone
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage

from .build import META_ARCH_REGISTRY
from .dense_detector import DenseDetector

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class RetinaNet(DenseDetector):
    """A dense detector trained with focal loss on all anchors."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: list[str],
        anchor_generator: nn.Module,
        box2box_transform: Box2BoxTransform,
        anchor_matcher: Matcher,
        num_classes: int,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.5,
        max_detections_per_image: int = 100,
        pixel_mean: list[float],
        pixel_std: list[float],
        vis_period: int = 0,
        input_format: str = "BGR",
    ) -> None:
        """
        Args:
            backbone: maps images to named feature maps.
            head: maps L feature maps to L logit maps (N, C * K, H, W) and L delta maps
                (N, C * 4, H, W).
            head_in_features: names of the maps for the head.
            anchor_generator: maps L feature maps to L Boxes.
            box2box_transform: encodes and decodes boxes relative to anchors.
            anchor_matcher: labels anchors by their IoU with ground truth.
            num_classes: K.
            focal_loss_alpha, focal_loss_gamma: equation 5 of the paper.
            smooth_l1_beta: where smooth L1 turns from squared to absolute; 0 is L1.
            box_reg_loss_type: "smooth_l1", "giou", "diou" or "ciou".
            test_score_thresh: detections score above it.
            test_topk_candidates: boxes kept per level before NMS.
            test_nms_thresh: IoU threshold of NMS.
            max_detections_per_image: most detections per image.
            pixel_mean, pixel_std: per channel, in ``input_format``.
            vis_period: kept for a trainer that draws; the model itself does not.
            input_format: order of the channels.
        """
        super().__init__(
            backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.num_classes = num_classes
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.anchor_matcher = anchor_matcher
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.smooth_l1_beta = smooth_l1_beta
        self.box_reg_loss_type = box_reg_loss_type
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image
        self.vis_period = vis_period
        self.input_format = input_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        retinanet = cfg.MODEL.RETINANET
        backbone = build_backbone(cfg)
        shapes = [backbone.output_shape()[name] for name in retinanet.IN_FEATURES]
        return {
            "backbone": backbone,
            "head": RetinaNetHead(cfg, shapes),
            "head_in_features": retinanet.IN_FEATURES,
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "box2box_transform": Box2BoxTransform(weights=retinanet.BBOX_REG_WEIGHTS),
            "anchor_matcher": Matcher(
                retinanet.IOU_THRESHOLDS, retinanet.IOU_LABELS, allow_low_quality_matches=True
            ),
            "num_classes": retinanet.NUM_CLASSES,
            "focal_loss_alpha": retinanet.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": retinanet.FOCAL_LOSS_GAMMA,
            "smooth_l1_beta": retinanet.SMOOTH_L1_LOSS_BETA,
            "box_reg_loss_type": retinanet.BBOX_REG_LOSS_TYPE,
            "test_score_thresh": retinanet.SCORE_THRESH_TEST,
            "test_topk_candidates": retinanet.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": retinanet.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "vis_period": cfg.VIS_PERIOD,
            "input_format": cfg.INPUT.FORMAT,
        }

    def forward_training(
        self,
        images: ImageList,
        features: list[torch.Tensor],
        predictions: tuple[list[torch.Tensor], ...],
        gt_instances: list[Instances],
    ) -> dict[str, torch.Tensor]:
        """See :meth:`DenseDetector.forward_training`."""
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, logits, gt_labels, deltas, gt_boxes)

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[torch.Tensor],
        gt_labels: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        gt_boxes: list[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Focal loss of all labelled anchors and box regression of the positives.

        Both are sums divided by a moving average of the number of positives: the number in one
        batch varies too much.

        Args:
            anchors: L Boxes.
            pred_logits: L tensors (N, A_l, K).
            gt_labels: N tensors (A,).
            pred_anchor_deltas: L tensors (N, A_l, 4).
            gt_boxes: N tensors (A, 4).

        Returns:
            "loss_cls" and "loss_box_reg".
        """
        num_images = len(gt_labels)
        labels = torch.stack(gt_labels)
        labelled = labels >= 0
        positive = labelled & (labels != self.num_classes)
        num_positive = positive.sum().item()
        get_event_storage().put_scalar("num_pos_anchors", num_positive / num_images)
        normalizer = self._ema_update("loss_normalizer", max(num_positive, 1), 100)

        logits = cat(pred_logits, dim=1)[labelled]
        # Background has no column of its own: its target is zero for every class.
        target = F.one_hot(labels[labelled], self.num_classes + 1)[:, :-1].to(logits.dtype)
        loss_cls = sigmoid_focal_loss_jit(
            logits,
            target,
            alpha=self.focal_loss_alpha,
            gamma=self.focal_loss_gamma,
            reduction="sum",
        )
        loss_box_reg = _dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            pred_anchor_deltas,
            gt_boxes,
            positive,
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        return {"loss_cls": loss_cls / normalizer, "loss_box_reg": loss_box_reg / normalizer}

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Match anchors with ground truth.

        Args:
            anchors: L Boxes.
            gt_instances: N Instances with "gt_boxes" and "gt_classes".

        Returns:
            N label tensors (A,) and N box tensors (A, 4); the boxes mean something for positives
            only.
        """
        anchors = Boxes.cat(anchors)
        gt_labels, matched_gt_boxes = [], []
        for instances in gt_instances:
            matched, match_labels = self.anchor_matcher(pairwise_iou(instances.gt_boxes, anchors))
            if len(instances) > 0:
                boxes = instances.gt_boxes.tensor[matched]
                labels = instances.gt_classes[matched]
                labels[match_labels == 0] = self.num_classes
                labels[match_labels == -1] = -1
            else:
                boxes = torch.zeros_like(anchors.tensor)
                labels = torch.full_like(matched, self.num_classes)
            gt_labels.append(labels)
            matched_gt_boxes.append(boxes)
        return gt_labels, matched_gt_boxes

    def forward_inference(
        self,
        images: ImageList,
        features: list[torch.Tensor],
        predictions: tuple[list[torch.Tensor], ...],
    ) -> list[Instances]:
        """See :meth:`DenseDetector.forward_inference`."""
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        anchors = self.anchor_generator(features)
        return [
            self.inference_single_image(
                anchors,
                [level[index].sigmoid_() for level in logits],
                [level[index] for level in deltas],
                image_size,
            )
            for index, image_size in enumerate(images.image_sizes)
        ]

    def inference_single_image(
        self,
        anchors: list[Boxes],
        box_cls: list[torch.Tensor],
        box_delta: list[torch.Tensor],
        image_size: tuple[int, int],
    ) -> Instances:
        """Detections of one image: threshold, decode, NMS within classes, best overall.

        Args:
            anchors: L Boxes.
            box_cls: L tensors (A_l, K) of probabilities.
            box_delta: L tensors (A_l, 4).
            image_size: height and width.
        """
        candidates = self._decode_multi_level_predictions(
            anchors,
            box_cls,
            box_delta,
            self.test_score_thresh,
            self.test_topk_candidates,
            image_size,
        )
        keep = batched_nms(
            candidates.pred_boxes.tensor,
            candidates.scores,
            candidates.pred_classes,
            self.test_nms_thresh,
        )
        return candidates[keep[: self.max_detections_per_image]]


class RetinaNetHead(nn.Module):
    """Two towers of 3x3 convolutions, for classes and for boxes; the levels share their weights."""

    @configurable
    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_classes: int,
        num_anchors: int,
        conv_dims: list[int],
        norm: str | Callable[[int], nn.Module] = "",
        prior_prob: float = 0.01,
    ) -> None:
        """
        Args:
            input_shape: the L levels.
            num_classes: K.
            num_anchors: C.
            conv_dims: channels of the convolutions of each tower.
            norm: normalisation after each convolution, see :func:`detectron2.layers.get_norm`;
                "BN" and "SyncBN" keep statistics per level.
            prior_prob: probability of every class at the start (section 4.1 of the paper).
        """
        super().__init__()
        if norm in ("BN", "SyncBN"):
            norm = self._batch_norm_per_level(norm, len(input_shape))
        elif "BN" in type(get_norm(norm, 32)).__name__:
            logger.warning(
                "Levels of unlike statistics share the %s layers of RetinaNetHead.", norm
            )

        cls_subnet, bbox_subnet = [], []
        in_channels = input_shape[0].channels
        for out_channels in conv_dims:
            for tower in (cls_subnet, bbox_subnet):
                tower.append(nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1))
                if norm:
                    tower.append(get_norm(norm, out_channels))
                tower.append(nn.ReLU())
            in_channels = out_channels
        self.cls_subnet = nn.Sequential(*cls_subnet)
        self.bbox_subnet = nn.Sequential(*bbox_subnet)
        self.cls_score = nn.Conv2d(in_channels, num_anchors * num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(in_channels, num_anchors * 4, 3, padding=1)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))

    @staticmethod
    def _batch_norm_per_level(norm: str, num_levels: int) -> Callable[[int], nn.Module]:
        bn_class = nn.BatchNorm2d if norm == "BN" else nn.SyncBatchNorm
        return lambda channels: CycleBatchNormList(
            num_levels, bn_class=bn_class, num_features=channels
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        num_anchors = build_anchor_generator(cfg, input_shape).num_cell_anchors
        if len(set(num_anchors)) != 1:
            raise ValueError(
                "The head is shared by all levels, so the anchors per location must be equal, "
                f"but they are {num_anchors}."
            )
        retinanet = cfg.MODEL.RETINANET
        return {
            "input_shape": input_shape,
            "num_classes": retinanet.NUM_CLASSES,
            "num_anchors": num_anchors[0],
            "conv_dims": [input_shape[0].channels] * retinanet.NUM_CONVS,
            "norm": retinanet.NORM,
            "prior_prob": retinanet.PRIOR_PROB,
        }

    def forward(
        self, features: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Map L feature maps to L logit maps (N, C * K, H, W) and L delta maps (N, C * 4, H, W)."""
        logits = [self.cls_score(self.cls_subnet(feature)) for feature in features]
        deltas = [self.bbox_pred(self.bbox_subnet(feature)) for feature in features]
        return logits, deltas
