"""Region proposal network.

Shape shorthand:
    L: feature levels      N: images in the batch      A: anchors of one image over all levels
    H_l, W_l: size of level l      C: anchors per location      B: box dimension, 4

Naming: ``pred_`` comes from the network, ``gt_`` from the annotation; ``deltas`` are the
parameters that :class:`Box2BoxTransform` turns an anchor into a box with.
Label of an anchor: 1 object, 0 background, -1 takes no part in the loss.
"""

import torch
import torch.nn.functional as F
from fvcore.common.registry import Registry
from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, cat
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from detectron2.utils.memory import retry_if_cuda_oom

from .build import PROPOSAL_GENERATOR_REGISTRY
from .proposal_utils import find_top_rpn_proposals

RPN_HEAD_REGISTRY = Registry("RPN_HEAD")
RPN_HEAD_REGISTRY.__doc__ = """
RPN heads by name. An entry is called as ``entry(cfg, input_shapes)`` with a list of ShapeSpec and
returns a module that maps L feature maps to ``(L objectness maps, L delta maps)``.
"""


def build_rpn_head(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """Build ``MODEL.RPN.HEAD_NAME``."""
    return RPN_HEAD_REGISTRY.get(cfg.MODEL.RPN.HEAD_NAME)(cfg, input_shape)


def _single_value(values, what: str):
    """The one value that all levels share."""
    distinct = set(values)
    if len(distinct) != 1:
        raise ValueError(
            f"The RPN head is shared by all levels, so their {what} must be equal, "
            f"but they are {list(values)}."
        )
    return distinct.pop()


@RPN_HEAD_REGISTRY.register()
class StandardRPNHead(nn.Module):
    """3x3 convolutions, then 1x1 siblings for objectness and deltas (Faster R-CNN, section 3.1).

    The same weights serve every level.
    """

    @configurable
    def __init__(
        self, *, in_channels: int, num_anchors: int, box_dim: int = 4, conv_dims: list[int] = (-1,)
    ) -> None:
        """
        Args:
            in_channels: channels of every level.
            num_anchors: anchors per location, C.
            box_dim: numbers that describe one box, B.
            conv_dims: channels of the hidden convolutions; -1 keeps the number of channels. One
                convolution is named ``conv``, several ``conv.conv0``, ``conv.conv1``, ...
        """
        super().__init__()
        hidden = []
        channels = in_channels
        for dim in conv_dims:
            out_channels = channels if dim == -1 else dim
            if out_channels <= 0:
                raise ValueError(
                    f"MODEL.RPN.CONV_DIMS must hold -1 or positive numbers, not {dim}."
                )
            hidden.append(self._get_rpn_conv(channels, out_channels))
            channels = out_channels
        if len(hidden) == 1:
            self.conv = hidden[0]
        else:
            self.conv = nn.Sequential()
            for index, conv in enumerate(hidden):
                self.conv.add_module(f"conv{index}", conv)
        self.objectness_logits = nn.Conv2d(channels, num_anchors, kernel_size=1)
        self.anchor_deltas = nn.Conv2d(channels, num_anchors * box_dim, kernel_size=1)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def _get_rpn_conv(self, in_channels: int, out_channels: int) -> nn.Module:
        return Conv2d(in_channels, out_channels, kernel_size=3, padding=1, activation=nn.ReLU())

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        # A one-off generator: only its counts are needed, the RPN has its own.
        anchor_generator = build_anchor_generator(cfg, input_shape)
        return {
            "in_channels": _single_value([s.channels for s in input_shape], "channels"),
            "num_anchors": _single_value(anchor_generator.num_anchors, "anchors per location"),
            "box_dim": anchor_generator.box_dim,
            "conv_dims": cfg.MODEL.RPN.CONV_DIMS,
        }

    def forward(
        self, features: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Map L feature maps to L objectness maps (N, C, H_l, W_l) and L delta maps
        (N, C*B, H_l, W_l)."""
        logits, deltas = [], []
        for feature in features:
            hidden = self.conv(feature)
            logits.append(self.objectness_logits(hidden))
            deltas.append(self.anchor_deltas(hidden))
        return logits, deltas


@PROPOSAL_GENERATOR_REGISTRY.register()
class RPN(nn.Module):
    """Region proposal network (Faster R-CNN, section 3)."""

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        head: nn.Module,
        anchor_generator: nn.Module,
        anchor_matcher: Matcher,
        box2box_transform: Box2BoxTransform,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_topk: tuple[float, float],
        post_nms_topk: tuple[float, float],
        nms_thresh: float = 0.7,
        min_box_size: float = 0.0,
        anchor_boundary_thresh: float = -1.0,
        loss_weight: float | dict[str, float] = 1.0,
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
    ) -> None:
        """
        Args:
            in_features: names of the feature maps to use, in the order of the anchor generator.
            head: maps a list of feature maps to objectness and delta maps.
            anchor_generator: maps a list of feature maps to a list of anchors.
            anchor_matcher: labels anchors by their IoU with ground truth.
            box2box_transform: encodes and decodes boxes relative to anchors.
            batch_size_per_image: anchors sampled per image for the loss.
            positive_fraction: largest share of positives among them.
            pre_nms_topk: boxes kept per level before NMS, (training, inference).
            post_nms_topk: boxes kept per image after NMS, (training, inference).
            nms_thresh: IoU threshold of NMS.
            min_box_size: boxes with a side of this length or shorter are dropped.
            anchor_boundary_thresh: if not negative, anchors that reach out of the image by more
                take no part in the loss.
            loss_weight: one factor, or one per loss name.
            box_reg_loss_type: "smooth_l1", "giou", "diou" or "ciou".
            smooth_l1_beta: where smooth L1 turns from squared to absolute; 0 is L1.
        """
        super().__init__()
        self.in_features = in_features
        self.rpn_head = head
        self.anchor_generator = anchor_generator
        self.anchor_matcher = anchor_matcher
        self.box2box_transform = box2box_transform
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        # Indexed by self.training.
        self.pre_nms_topk = {True: pre_nms_topk[0], False: pre_nms_topk[1]}
        self.post_nms_topk = {True: post_nms_topk[0], False: post_nms_topk[1]}
        self.nms_thresh = nms_thresh
        self.min_box_size = float(min_box_size)
        self.anchor_boundary_thresh = anchor_boundary_thresh
        if not isinstance(loss_weight, dict):
            loss_weight = {"loss_rpn_cls": loss_weight, "loss_rpn_loc": loss_weight}
        self.loss_weight = loss_weight
        self.box_reg_loss_type = box_reg_loss_type
        self.smooth_l1_beta = smooth_l1_beta

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        rpn = cfg.MODEL.RPN
        shapes = [input_shape[name] for name in rpn.IN_FEATURES]
        return {
            "in_features": rpn.IN_FEATURES,
            "head": build_rpn_head(cfg, shapes),
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "anchor_matcher": Matcher(
                rpn.IOU_THRESHOLDS, rpn.IOU_LABELS, allow_low_quality_matches=True
            ),
            "box2box_transform": Box2BoxTransform(weights=rpn.BBOX_REG_WEIGHTS),
            "batch_size_per_image": rpn.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": rpn.POSITIVE_FRACTION,
            "pre_nms_topk": (rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
            "post_nms_topk": (rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
            "nms_thresh": rpn.NMS_THRESH,
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "anchor_boundary_thresh": rpn.BOUNDARY_THRESH,
            "loss_weight": {
                "loss_rpn_cls": rpn.LOSS_WEIGHT,
                "loss_rpn_loc": rpn.BBOX_REG_LOSS_WEIGHT * rpn.LOSS_WEIGHT,
            },
            "box_reg_loss_type": rpn.BBOX_REG_LOSS_TYPE,
            "smooth_l1_beta": rpn.SMOOTH_L1_BETA,
        }

    def _subsample_labels(self, label: torch.Tensor) -> torch.Tensor:
        """Set all but a random sample of the labels (A,) to -1, in place; subclasses may sample
        otherwise."""
        positive, negative = subsample_labels(
            label, self.batch_size_per_image, self.positive_fraction, 0
        )
        label.fill_(-1)
        label[positive] = 1
        label[negative] = 0
        return label

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Decide which anchors take part in the loss, and with which targets.

        Args:
            anchors: L Boxes.
            gt_instances: N Instances with "gt_boxes".

        Returns:
            N label tensors (A,) of int8 and N box tensors (A, 4); the boxes mean something for
            positives only, and are zeros in an image without ground truth.
        """
        anchors = Boxes.cat(anchors)
        gt_labels, matched_gt_boxes = [], []
        for instances in gt_instances:
            gt_boxes = instances.gt_boxes
            iou = retry_if_cuda_oom(pairwise_iou)(gt_boxes, anchors)
            matched, labels = retry_if_cuda_oom(self.anchor_matcher)(iou)
            labels = labels.to(device=gt_boxes.device)
            del iou  # the largest tensor here
            if self.anchor_boundary_thresh >= 0:
                inside = anchors.inside_box(instances.image_size, self.anchor_boundary_thresh)
                labels[~inside] = -1
            gt_labels.append(self._subsample_labels(labels))
            if len(gt_boxes) == 0:
                matched_gt_boxes.append(torch.zeros_like(anchors.tensor))
            else:
                matched_gt_boxes.append(gt_boxes.tensor[matched])
        return gt_labels, matched_gt_boxes

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[torch.Tensor],
        gt_labels: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        gt_boxes: list[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Binary cross-entropy of the sampled anchors and box regression of the positives.

        Both are sums divided by N times ``batch_size_per_image``.

        Args:
            anchors: L Boxes.
            pred_objectness_logits: L tensors (N, A_l).
            gt_labels: N tensors (A,).
            pred_anchor_deltas: L tensors (N, A_l, B).
            gt_boxes: N tensors (A, B).

        Returns:
            "loss_rpn_cls" and "loss_rpn_loc".
        """
        num_images = len(gt_labels)
        labels = torch.stack(gt_labels)
        positive = labels == 1
        self._log_anchor_counts(positive, labels == 0)

        localization_loss = _dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            pred_anchor_deltas,
            gt_boxes,
            positive,
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        sampled = labels >= 0
        objectness_loss = F.binary_cross_entropy_with_logits(
            cat(pred_objectness_logits, dim=1)[sampled],
            labels[sampled].to(torch.float32),
            reduction="sum",
        )
        normalizer = self.batch_size_per_image * num_images
        losses = {
            "loss_rpn_cls": objectness_loss / normalizer,
            "loss_rpn_loc": localization_loss / normalizer,
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    @staticmethod
    def _log_anchor_counts(positive: torch.Tensor, negative: torch.Tensor) -> None:
        num_images = len(positive)
        num_positive, num_negative = torch.stack([positive.sum(), negative.sum()]).tolist()
        storage = get_event_storage()
        storage.put_scalar("rpn/num_pos_anchors", num_positive / num_images)
        storage.put_scalar("rpn/num_neg_anchors", num_negative / num_images)

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """
        Args:
            images: N images.
            features: feature maps by name.
            gt_instances: N Instances with "gt_boxes"; needed in training.

        Returns:
            N Instances with "proposal_boxes" and "objectness_logits", and the losses: none at
            inference.
        """
        features = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(features)
        logits, deltas = self.rpn_head(features)
        # Anchors are ordered by row, column, then cell anchor.
        logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
        box_dim = self.anchor_generator.box_dim
        deltas = [
            x.unflatten(1, (-1, box_dim)).permute(0, 3, 4, 1, 2).flatten(1, -2) for x in deltas
        ]

        losses = {}
        if self.training:
            if gt_instances is None:
                raise ValueError("RPN needs gt_instances in training.")
            gt_labels, gt_boxes = self.label_and_sample_anchors(anchors, gt_instances)
            losses = self.losses(anchors, logits, gt_labels, deltas, gt_boxes)
        return self.predict_proposals(anchors, logits, deltas, images.image_sizes), losses

    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Decode all anchors and select proposals; see :func:`find_top_rpn_proposals`.

        Proposals carry no gradient: joint training is approximate (Faster R-CNN, section 3.2).
        """
        with torch.no_grad():
            return find_top_rpn_proposals(
                self._decode_proposals(anchors, pred_anchor_deltas),
                pred_objectness_logits,
                image_sizes,
                self.nms_thresh,
                self.pre_nms_topk[self.training],
                self.post_nms_topk[self.training],
                self.min_box_size,
                self.training,
            )

    def _decode_proposals(
        self, anchors: list[Boxes], pred_anchor_deltas: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """L tensors (N, A_l, B) of boxes from L tensors of deltas."""
        proposals = []
        for level_anchors, deltas in zip(anchors, pred_anchor_deltas, strict=True):
            tiled = level_anchors.tensor.expand(len(deltas), -1, -1).flatten(0, 1)
            boxes = self.box2box_transform.apply_deltas(deltas.flatten(0, 1), tiled)
            proposals.append(boxes.view_as(deltas))
        return proposals
