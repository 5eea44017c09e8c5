"""RoI heads: match proposals with ground truth, sample them, run the box head on the sample.

Naming: a proposal is foreground if it is matched to an object, else background, class
``num_classes``; ``gt_`` fields of proposals are those of the object they are matched with.
"""

import torch
from fvcore.common.registry import Registry
from torch import nn

from detectron2._left_out import left_out, left_out_error
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage

from .box_head import build_box_head
from .fast_rcnn import FastRCNNOutputLayers

ROI_HEADS_REGISTRY = Registry("ROI_HEADS")
ROI_HEADS_REGISTRY.__doc__ = """
RoI heads by name. An entry is called as ``entry(cfg, input_shape)`` and returns a
:class:`ROIHeads`.
"""
RROIHeads = left_out("detectron2.modeling.roi_heads.RROIHeads")
ROI_HEADS_REGISTRY.register(RROIHeads)


def build_roi_heads(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> "ROIHeads":
    """Build ``MODEL.ROI_HEADS.NAME``."""
    return ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(cfg, input_shape)


def select_foreground_proposals(
    proposals: list[Instances], bg_label: int
) -> tuple[list[Instances], list[torch.Tensor]]:
    """Keep the proposals that are matched to an object.

    Args:
        proposals: N Instances with "gt_classes".
        bg_label: the class of background.

    Returns:
        N Instances, and N masks that tell which proposals were kept.
    """
    masks = [(p.gt_classes != -1) & (p.gt_classes != bg_label) for p in proposals]
    return [p[mask] for p, mask in zip(proposals, masks, strict=True)], masks


class ROIHeads(nn.Module):
    """What happens to each proposal; this base class matches and samples them for training.

    A subclass implements :meth:`forward`, in training usually with
    :meth:`label_and_sample_proposals` first.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        batch_size_per_image: int,
        positive_fraction: float,
        proposal_matcher: Matcher,
        proposal_append_gt: bool = True,
    ) -> None:
        """
        Args:
            num_classes: foreground classes.
            batch_size_per_image: proposals sampled per image.
            positive_fraction: largest share of foreground among them.
            proposal_matcher: matches proposals with ground truth by IoU.
            proposal_append_gt: whether ground truth boxes join the proposals in training.
        """
        super().__init__()
        self.num_classes = num_classes
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.proposal_matcher = proposal_matcher
        self.proposal_append_gt = proposal_append_gt

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        heads = cfg.MODEL.ROI_HEADS
        return {
            "num_classes": heads.NUM_CLASSES,
            "batch_size_per_image": heads.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": heads.POSITIVE_FRACTION,
            "proposal_matcher": Matcher(
                heads.IOU_THRESHOLDS, heads.IOU_LABELS, allow_low_quality_matches=False
            ),
            "proposal_append_gt": heads.PROPOSAL_APPEND_GT,
        }

    def _sample_proposals(
        self, matched_idxs: torch.Tensor, matched_labels: torch.Tensor, gt_classes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sample the proposals of one image for training.

        Args:
            matched_idxs: (P,), the object each of the P proposals is matched with.
            matched_labels: (P,), the matcher's label: 1 foreground, 0 background, -1 ignored.
            gt_classes: (M,), the classes of the image's M objects.

        Returns:
            The indices of the sampled proposals, foreground first, and their classes.
        """
        if len(gt_classes) > 0:
            classes = gt_classes[matched_idxs]
            classes[matched_labels == 0] = self.num_classes
            classes[matched_labels == -1] = -1
        else:
            classes = torch.full_like(matched_idxs, self.num_classes)
        foreground, background = subsample_labels(
            classes, self.batch_size_per_image, self.positive_fraction, self.num_classes
        )
        sampled = torch.cat([foreground, background])
        return sampled, classes[sampled]

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """Match proposals with ground truth and sample some of them for training.

        Args:
            proposals: N Instances with "proposal_boxes" and "objectness_logits".
            targets: N Instances with "gt_boxes", "gt_classes" and any other "gt_" fields.

        Returns:
            N Instances: the sampled proposals with "gt_classes" and, in images with objects, all
            "gt_" fields of the object matched with each; for background these mean nothing.
        """
        if self.proposal_append_gt:
            proposals = add_ground_truth_to_proposals(targets, proposals)
        sampled_proposals = []
        for image_proposals, image_targets in zip(proposals, targets, strict=True):
            iou = pairwise_iou(image_targets.gt_boxes, image_proposals.proposal_boxes)
            matched, labels = self.proposal_matcher(iou)
            sampled, classes = self._sample_proposals(matched, labels, image_targets.gt_classes)

            chosen = image_proposals[sampled]
            chosen.gt_classes = classes
            if len(image_targets) > 0:
                matched = matched[sampled]
                for name, value in image_targets.get_fields().items():
                    if name.startswith("gt_") and not chosen.has(name):
                        chosen.set(name, value[matched])
            sampled_proposals.append(chosen)
        self._log_sample_counts(sampled_proposals, "roi_head")
        return sampled_proposals

    def _log_sample_counts(self, proposals: list[Instances], prefix: str) -> None:
        """Log foreground and background proposals per image."""
        classes = torch.cat([p.gt_classes for p in proposals])
        num_background = (classes == self.num_classes).sum().item()
        storage = get_event_storage()
        num_images = len(proposals)
        storage.put_scalar(f"{prefix}/num_fg_samples", (len(classes) - num_background) / num_images)
        storage.put_scalar(f"{prefix}/num_bg_samples", num_background / num_images)

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """
        Args:
            images: N images.
            features: feature maps by name.
            proposals: N Instances with "proposal_boxes" and "objectness_logits".
            targets: N Instances with "gt_boxes" and "gt_classes"; needed in training.

        Returns:
            In training the sampled proposals and the losses; at inference N Instances of detections
            and no losses.
        """
        raise NotImplementedError


def _require_targets(targets: list[Instances] | None) -> None:
    if targets is None:
        raise ValueError("RoI heads need targets (ground truth) in training.")


def _require_given_boxes(training: bool, instances: list[Instances]) -> None:
    if training:
        raise RuntimeError("forward_with_given_boxes is for inference: call eval() first.")
    if instances and not (instances[0].has("pred_boxes") and instances[0].has("pred_classes")):
        raise ValueError("forward_with_given_boxes needs the fields pred_boxes and pred_classes.")


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeads(ROIHeads):
    """Faster R-CNN on C4: the last ResNet stage runs on every pooled region."""

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        pooler: ROIPooler,
        res5: nn.Module,
        box_predictor: nn.Module,
        mask_head: nn.Module | None = None,
        **kwargs,
    ) -> None:
        """
        Args:
            in_features: names of the feature maps to pool from.
            pooler: pools regions from them.
            res5: the stage that runs on pooled regions; a list is made a Sequential.
            box_predictor: predicts from its spatial mean.
            mask_head: left out.
            kwargs: arguments of :class:`ROIHeads`.
        """
        super().__init__(**kwargs)
        if mask_head is not None:
            raise left_out_error("Res5ROIHeads with a mask head")
        self.in_features = in_features
        self.pooler = pooler
        self.res5 = nn.Sequential(*res5) if isinstance(res5, (list, tuple)) else res5
        self.box_predictor = box_predictor
        self.mask_on = False

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        if cfg.MODEL.MASK_ON:
            raise left_out_error("Res5ROIHeads with MODEL.MASK_ON True")
        if cfg.MODEL.KEYPOINT_ON:
            raise left_out_error("Res5ROIHeads with MODEL.KEYPOINT_ON True")
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        if len(in_features) != 1:
            raise ValueError(
                "Res5ROIHeads pools from one feature map, but MODEL.ROI_HEADS.IN_FEATURES is "
                f"{in_features}."
            )
        head = cfg.MODEL.ROI_BOX_HEAD
        ret = super().from_config(cfg)
        ret["in_features"] = in_features
        ret["pooler"] = ROIPooler(
            output_size=head.POOLER_RESOLUTION,
            scales=[1.0 / input_shape[in_features[0]].stride],
            sampling_ratio=head.POOLER_SAMPLING_RATIO,
            pooler_type=head.POOLER_TYPE,
        )
        ret["res5"], out_channels = cls._build_res5_block(cfg)
        ret["box_predictor"] = FastRCNNOutputLayers(
            cfg, ShapeSpec(channels=out_channels, height=1, width=1)
        )
        return ret

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        """The fourth residual stage, and the number of its output channels."""
        resnets = cfg.MODEL.RESNETS
        if resnets.DEFORM_ON_PER_STAGE[-1]:
            raise left_out_error("Res5ROIHeads with a deformable res5")
        widening = 2**3  # res5 is three stages after res2, each twice as wide
        out_channels = resnets.RES2_OUT_CHANNELS * widening
        blocks = ResNet.make_stage(
            BottleneckBlock,
            num_blocks=3,
            stride_per_block=[2, 1, 1],
            in_channels=out_channels // 2,
            bottleneck_channels=resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP * widening,
            out_channels=out_channels,
            num_groups=resnets.NUM_GROUPS,
            norm=resnets.NORM,
            stride_in_1x1=resnets.STRIDE_IN_1X1,
        )
        return nn.Sequential(*blocks), out_channels

    def _shared_roi_transform(
        self, features: list[torch.Tensor], boxes: list[Boxes]
    ) -> torch.Tensor:
        """Region features (R, C, H, W) after res5."""
        return self.res5(self.pooler(features, boxes))

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """See :meth:`ROIHeads.forward`."""
        if self.training:
            _require_targets(targets)
            proposals = self.label_and_sample_proposals(proposals, targets)
        region_features = self._shared_roi_transform(
            [features[name] for name in self.in_features], [p.proposal_boxes for p in proposals]
        )
        predictions = self.box_predictor(region_features.mean(dim=[2, 3]))
        if self.training:
            return [], self.box_predictor.losses(predictions, proposals)
        detections, _ = self.box_predictor.inference(predictions, proposals)
        return self.forward_with_given_boxes(features, detections), {}

    def forward_with_given_boxes(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Predict what depends on detected boxes: nothing, as there is no mask head.

        Args:
            features: feature maps by name.
            instances: N Instances with "pred_boxes" and "pred_classes".
        """
        _require_given_boxes(self.training, instances)
        return instances


@ROI_HEADS_REGISTRY.register()
class StandardROIHeads(ROIHeads):
    """One pooler, one head and one predictor for boxes, as in Faster R-CNN with FPN.

    A subclass replaces :meth:`_init_box_head` to build other parts and :meth:`_forward_box` to use
    them in another way.
    """

    @configurable
    def __init__(
        self,
        *,
        box_in_features: list[str],
        box_pooler: ROIPooler,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_in_features: list[str] | None = None,
        mask_pooler: ROIPooler | None = None,
        mask_head: nn.Module | None = None,
        keypoint_in_features: list[str] | None = None,
        keypoint_pooler: ROIPooler | None = None,
        keypoint_head: nn.Module | None = None,
        train_on_pred_boxes: bool = False,
        **kwargs,
    ) -> None:
        """
        Args:
            box_in_features: names of the feature maps to pool from.
            box_pooler: pools regions from them.
            box_head: maps pooled regions to the predictor's input.
            box_predictor: has ``losses`` and ``inference`` as :class:`FastRCNNOutputLayers`.
            mask_in_features, mask_pooler, mask_head: left out.
            keypoint_in_features, keypoint_pooler, keypoint_head: left out.
            train_on_pred_boxes: whether the sampled proposals that :meth:`forward` returns in
                training have the predicted boxes.
            kwargs: arguments of :class:`ROIHeads`.
        """
        super().__init__(**kwargs)
        if mask_head is not None:
            raise left_out_error("StandardROIHeads with a mask head")
        if keypoint_head is not None:
            raise left_out_error("StandardROIHeads with a keypoint head")
        self.in_features = self.box_in_features = box_in_features
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.mask_on = False
        self.keypoint_on = False
        self.train_on_pred_boxes = train_on_pred_boxes

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        return {
            **super().from_config(cfg),
            "train_on_pred_boxes": cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES,
            **cls._init_box_head(cfg, input_shape),
            **cls._init_mask_head(cfg, input_shape),
            **cls._init_keypoint_head(cfg, input_shape),
        }

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Build the pooler, the head and the predictor; the result goes to ``__init__``."""
        pooler, channels = cls._build_box_pooler(cfg, input_shape)
        size = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        box_head = build_box_head(cfg, ShapeSpec(channels=channels, height=size, width=size))
        return {
            "box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "box_pooler": pooler,
            "box_head": box_head,
            "box_predictor": FastRCNNOutputLayers(cfg, box_head.output_shape),
        }

    @classmethod
    def _build_box_pooler(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]
    ) -> tuple[ROIPooler, int]:
        """The pooler of the box head, and the number of channels that it gives."""
        names = cfg.MODEL.ROI_HEADS.IN_FEATURES
        shapes = [input_shape[name] for name in names]
        channels = [shape.channels for shape in shapes]
        if len(set(channels)) != 1:
            raise ValueError(
                f"The box head needs maps of equal channels, but {names} have {channels}."
            )
        head = cfg.MODEL.ROI_BOX_HEAD
        pooler = ROIPooler(
            output_size=head.POOLER_RESOLUTION,
            scales=[1.0 / shape.stride for shape in shapes],
            sampling_ratio=head.POOLER_SAMPLING_RATIO,
            pooler_type=head.POOLER_TYPE,
        )
        return pooler, channels[0]

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        if cfg.MODEL.MASK_ON:
            raise left_out_error("StandardROIHeads with MODEL.MASK_ON True")
        return {}

    @classmethod
    def _init_keypoint_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        if cfg.MODEL.KEYPOINT_ON:
            raise left_out_error("StandardROIHeads with MODEL.KEYPOINT_ON True")
        return {}

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """See :meth:`ROIHeads.forward`."""
        if self.training:
            _require_targets(targets)
            proposals = self.label_and_sample_proposals(proposals, targets)
            losses = self._forward_box(features, proposals)
            losses.update(self._forward_mask(features, proposals))
            losses.update(self._forward_keypoint(features, proposals))
            return proposals, losses
        detections = self._forward_box(features, proposals)
        return self.forward_with_given_boxes(features, detections), {}

    def forward_with_given_boxes(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Predict what depends on detected boxes and return the instances with it.

        Args:
            features: feature maps by name.
            instances: N Instances with "pred_boxes" and "pred_classes".
        """
        _require_given_boxes(self.training, instances)
        instances = self._forward_mask(features, instances)
        return self._forward_keypoint(features, instances)

    def _forward_box(
        self, features: dict[str, torch.Tensor], proposals: list[Instances]
    ) -> dict[str, torch.Tensor] | list[Instances]:
        """Run the box head.

        Args:
            features: feature maps by name.
            proposals: N Instances with "proposal_boxes", in training also the "gt_" fields.

        Returns:
            In training the losses, at inference N Instances of detections.
        """
        maps = [features[name] for name in self.box_in_features]
        box_features = self.box_head(self.box_pooler(maps, [p.proposal_boxes for p in proposals]))
        predictions = self.box_predictor(box_features)
        del box_features
        if not self.training:
            detections, _ = self.box_predictor.inference(predictions, proposals)
            return detections
        losses = self.box_predictor.losses(predictions, proposals)
        if self.train_on_pred_boxes:
            self._replace_boxes(predictions, proposals)
        return losses

    @torch.no_grad()
    def _replace_boxes(self, predictions, proposals: list[Instances]) -> None:
        """Give the proposals the boxes predicted for their classes."""
        boxes = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
        for image_proposals, image_boxes in zip(proposals, boxes, strict=True):
            image_proposals.proposal_boxes = Boxes(image_boxes)

    def _forward_mask(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> dict[str, torch.Tensor] | list[Instances]:
        """The seam for a mask branch, of which there is none: no loss, the instances unchanged."""
        return {} if self.training else instances

    def _forward_keypoint(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> dict[str, torch.Tensor] | list[Instances]:
        """As :meth:`_forward_mask`, for keypoints."""
        return {} if self.training else instances
