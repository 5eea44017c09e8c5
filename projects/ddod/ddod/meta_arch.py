"""The detector: ATSS, FCOS and RetinaNet, each with or without DDOD, by its config."""

from typing import Any

import torch
from torch import Tensor, nn

from clsloc.assigners import (
    Anchors,
    Assignment,
    ATSSAssigner,
    CostAssigner,
    DenseAssigner,
    MaxIoUAssigner,
    Predictions,
    anchors_in_crowds,
    valid_anchors,
)
from clsloc.config import check_choice
from clsloc.errors import UserError
from clsloc.sample_record import is_recording, record_samples
from ddod.checks import check_values
from ddod.coder import PointTransform, anchor_side_in_strides
from ddod.head import DDODHead
from ddod.inference import DenseInference
from ddod.losses import DDODLosses, DenseOutputs, Targets
from ddod.normalizer import LossNormalizer
from ddod.reweight import PyramidReweighter
from ddod.tta import DDODWithTTA
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_anchor_generator, build_backbone
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage

__all__ = ["DDOD", "build_assigner"]


@META_ARCH_REGISTRY.register()
class DDOD(DenseDetector):
    """
    "Disentangle Your Dense Object Detector" (ACM MM 2021): labels, features and supervision of
    classification and regression apart.

    Shape shorthand: N images, R anchors of an image over L levels, K classes.
    """

    CLASS_COUNT_KEY = "MODEL.DDOD.NUM_CLASSES"

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: list[str],
        anchor_generator: nn.Module,
        assigner: DenseAssigner,
        losses: DDODLosses,
        inference: DenseInference,
        num_classes: int,
        mask_padding: bool = True,
        ignore_iof_thr: float = -1.0,
        pixel_mean: list[float],
        pixel_std: list[float],
    ):
        """
        Args:
            backbone, head, head_in_features: see `DenseDetector`.
            anchor_generator: as many anchors at every location of every level.
            assigner: labels the anchors for the two tasks.
            losses: from outputs and labels.
            inference: from outputs to detections.
            num_classes: K.
            mask_padding: anchors on what pads an image to the size of the batch are not trained.
            ignore_iof_thr: anchors of which a larger share lies in a crowd are not trained; below
                0 crowds are background.
            pixel_mean, pixel_std: per channel.
        """
        super().__init__(
            backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.anchor_generator = anchor_generator
        self.assigner = assigner
        self.losses = losses
        self.inference = inference
        self.num_classes = num_classes
        self.mask_padding = mask_padding
        self.ignore_iof_thr = ignore_iof_thr

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.DDOD
        backbone = build_backbone(cfg)
        check_values(node, list(backbone.output_shape()))
        shapes = [backbone.output_shape()[name] for name in node.IN_FEATURES]
        anchor_generator = build_anchor_generator(cfg, shapes)
        num_anchors = _anchors_of_location(anchor_generator)
        coder = _build_coder(cfg, shapes)
        return {
            "backbone": backbone,
            "head": DDODHead(cfg, shapes, num_anchors),
            "head_in_features": node.IN_FEATURES,
            "anchor_generator": anchor_generator,
            "assigner": build_assigner(cfg, num_anchors),
            "losses": _build_losses(cfg, coder, len(shapes)),
            "inference": DenseInference(
                coder,
                score_thresh=node.TEST.SCORE_THRESH,
                topk_candidates=node.TEST.TOPK_CANDIDATES,
                topk_mode=node.TEST.TOPK_MODE,
                nms_thresh=node.TEST.NMS_THRESH,
                nms_type=node.TEST.NMS_TYPE,
                soft_nms_method=node.TEST.SOFT_NMS_METHOD,
                soft_nms_sigma=node.TEST.SOFT_NMS_SIGMA,
                soft_nms_min_score=node.TEST.SOFT_NMS_MIN_SCORE,
                score_fusion=node.TEST.SCORE_FUSION,
                score_powers=tuple(node.TEST.SCORE_POWERS),
                max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
                min_height=node.TEST.MIN_HEIGHT,
            ),
            "num_classes": node.NUM_CLASSES,
            "mask_padding": node.ASSIGN.MASK_PADDING,
            "ignore_iof_thr": node.ASSIGN.IGNORE_IOF_THR,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As the base; detections that are too low in the original image go."""
        outputs = super().forward(batched_inputs)
        if self.training:
            return outputs
        return [{"instances": self.inference.without_low(out["instances"])} for out in outputs]

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """As the base; the crowds of the images travel with them to `forward_training`, which does
        not see `batched_inputs`."""
        images = super().preprocess_image(batched_inputs)
        images.crowds = None
        if self.training and self.ignore_iof_thr >= 0:
            none = torch.zeros(0, 4)
            images.crowds = [
                item.get("crowd_boxes", none).to(self.device) for item in batched_inputs
            ]
        return images

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: tuple[list[Tensor], ...],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """The losses by name; see `DDODLosses`."""
        levels = [boxes.tensor for boxes in self.anchor_generator(features)]
        anchors = Anchors(torch.cat(levels), [len(level) for level in levels])
        logits, deltas, quality = self._flatten(predictions)
        outputs = DenseOutputs(
            *(torch.cat(kind, dim=1).float() for kind in (logits, deltas)),
            torch.cat(quality, dim=1).float() if quality[0] is not None else None,
        )
        grids = [tuple(feature.shape[-2:]) for feature in features]
        targets = self.label_anchors(
            anchors, grids, outputs, images.image_sizes, gt_instances, images.crowds
        )
        losses, log = self.losses(anchors.boxes, anchors.level_sizes, outputs, targets)
        self._log(log)
        return losses

    @torch.no_grad()
    def label_anchors(
        self,
        anchors: Anchors,
        grids: list[tuple[int, int]],
        outputs: DenseOutputs,
        image_sizes: list[tuple[int, int]],
        gt_instances: list[Instances],
        crowds: list[Tensor] | None = None,
    ) -> Targets:
        """
        Assign the anchors of each image to its objects.

        Args:
            anchors: of every image.
            grids: (height, width) of each level.
            outputs: what the head says about all images; not differentiated.
            image_sizes: without padding.
            gt_instances: with "gt_boxes" and "gt_classes".
            crowds: (C, 4) boxes of each image, in which anchors are not trained.
        """
        num_images = len(gt_instances)
        flat = anchors.boxes.repeat(num_images, 1)
        boxes = self.inference.coder.apply_deltas(outputs.deltas.flatten(0, 1), flat)
        boxes = boxes.view_as(outputs.deltas)
        labels, matched, start = ([], []), [], 0
        for i, (size, objects) in enumerate(zip(image_sizes, gt_instances, strict=True)):
            predicted = Predictions(outputs.logits[i], boxes[i])
            trained = self._trained_anchors(anchors, grids, size, crowds[i] if crowds else None)
            pair = self._assign(anchors, *trained, predicted, objects)
            for task, assignment in zip(labels, pair, strict=True):
                task.append(assignment.labels)
            matched.append(pair[1].matched + start)
            start += len(objects)
        if is_recording():
            self._record(anchors, *labels)
        return Targets(
            *(torch.stack(task) for task in labels),
            torch.stack(matched),
            torch.cat([objects.gt_boxes.tensor for objects in gt_instances]),
        )

    def _record(self, anchors: Anchors, labels_cls: list[Tensor], labels_reg: list[Tensor]) -> None:
        """Note the positives of each task with their levels, for who draws them."""
        levels = torch.cat([torch.full((n,), i) for i, n in enumerate(anchors.level_sizes)])
        for task, labels in (("classification", labels_cls), ("localisation", labels_reg)):
            positive = [((x >= 0) & (x < self.num_classes)).nonzero().flatten() for x in labels]
            boxes = [anchors.boxes[rows] for rows in positive]
            record_samples(task, boxes, levels=[levels[rows.cpu()] for rows in positive])

    def _trained_anchors(
        self,
        anchors: Anchors,
        grids: list[tuple[int, int]],
        image_size: tuple[int, int],
        crowds: Tensor | None,
    ) -> tuple[Tensor | None, list[int]]:
        """Indices of the anchors of one image that are neither on its padding nor in a crowd, and
        how many of them each level has; None in place of the indices where it is all of them."""
        index, sizes = None, list(anchors.level_sizes)
        if self.mask_padding:
            index, sizes = valid_anchors(
                tuple(map(int, image_size)),
                grids,
                self.anchor_generator.strides,
                self.anchor_generator.num_anchors[0],
                device=anchors.boxes.device,
            )
        if crowds is None or len(crowds) == 0:
            return index, sizes
        if index is None:
            index = torch.arange(len(anchors.boxes), device=anchors.boxes.device)
        kept = ~anchors_in_crowds(anchors.boxes[index], crowds, self.ignore_iof_thr)
        per_level = torch.stack([level.sum() for level in kept.split(sizes)])
        return index[kept], per_level.tolist()

    def _assign(
        self,
        anchors: Anchors,
        index: Tensor | None,
        level_sizes: list[int],
        predicted: Predictions,
        objects: Instances,
    ) -> tuple[Assignment, Assignment]:
        """The assignments of one image among the anchors of `index`; the others get -1."""
        gt = (objects.gt_boxes.tensor, objects.gt_classes)
        if index is None:
            return self.assigner(anchors, *gt, predicted)
        pair = self.assigner(
            Anchors(anchors.boxes[index], level_sizes),
            *gt,
            Predictions(predicted.logits[index], predicted.boxes[index]),
        )
        total = len(anchors.boxes)
        return tuple(
            Assignment(
                assigned.labels.new_full((total,), -1).scatter_(0, index, assigned.labels),
                assigned.matched.new_zeros(total).scatter_(0, index, assigned.matched),
            )
            for assigned in pair
        )

    def forward_inference(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: tuple[list[Tensor], ...],
    ) -> list[Instances]:
        """Detections of each image, see `DenseInference`."""
        found = self._candidates(images, features, predictions)
        return [self.inference.select(candidates) for candidates in found]

    def candidates(self, batched_inputs: list[dict[str, Any]]) -> list[Instances]:
        """What is found in each image before NMS, with scores as they rank detections, in the frame
        of the image as it is given."""
        images = self.preprocess_image(batched_inputs)
        maps = self.backbone(images.tensor)
        features = [maps[name] for name in self.head_in_features]
        return self._candidates(images, features, self.head(features))

    def _candidates(
        self, images: ImageList, features: list[Tensor], predictions: tuple[list[Tensor], ...]
    ) -> list[Instances]:
        anchors = [boxes.tensor for boxes in self.anchor_generator(features)]
        kinds = self._flatten(predictions)
        return [
            self.inference.candidates(
                anchors,
                *([level if level is None else level[i] for level in kind] for kind in kinds),
                size,
            )
            for i, size in enumerate(images.image_sizes)
        ]

    def with_tta(self, cfg: CfgNode) -> DDODWithTTA:
        """This model with the test-time augmentation of ``TEST.AUG``."""
        return DDODWithTTA(cfg, self)

    def _flatten(self, predictions: tuple[list[Tensor], ...]) -> tuple[list[Tensor | None], ...]:
        """Logits (N, R_l, K), deltas (N, R_l, 4) and quality (N, R_l) or None of each level."""
        dims = [self.num_classes, 4, 1][: len(predictions)]
        logits, deltas, *quality = self._transpose_dense_predictions(list(predictions), dims)
        if not quality:
            return logits, deltas, [None] * len(logits)
        return logits, deltas, [level.squeeze(2) for level in quality[0]]

    def _log(self, log: dict[str, Tensor]) -> None:
        """Into the event storage, after a single transfer from the device."""
        log["acc_cls"] = self.losses.reweighter.acc_cls
        log["acc_reg"] = self.losses.reweighter.acc_reg
        values = torch.cat([value.detach().double().view(-1) for value in log.values()]).tolist()
        storage, position = get_event_storage(), 0
        for name, value in log.items():
            if value.dim() == 0:
                names = [f"ddod/{name}"]
            else:
                names = [f"ddod/{name}/{level}" for level in self.head_in_features]
            for each in names:
                storage.put_scalar(each, values[position])
                position += 1


def build_assigner(cfg: CfgNode, num_anchors: int) -> DenseAssigner:
    """The assigner of ``MODEL.DDOD.ASSIGN``, for that many anchors at a location."""
    node = cfg.MODEL.DDOD.ASSIGN
    check_choice("MODEL.DDOD.ASSIGN.MODE", node.MODE, ("cost", "atss", "iou"))
    topk = node.TOPK * (num_anchors if node.TOPK_PER_ANCHOR else 1)
    if node.MODE == "cost":
        return CostAssigner(
            node.ALPHA_CLS,
            node.ALPHA_REG,
            topk=topk,
            topk_metric=node.TOPK_METRIC,
            shared=node.SHARED,
        )
    if node.MODE == "atss":
        return ATSSAssigner(topk)
    reg = node.IOU_CLS if node.SHARED else node.IOU_REG
    return MaxIoUAssigner(node.IOU_CLS, reg, low_quality=node.LOW_QUALITY)


def _anchors_of_location(anchor_generator: nn.Module) -> int:
    numbers = set(anchor_generator.num_anchors)
    if len(numbers) > 1:
        raise UserError(
            "The levels share one head, so that each needs as many anchors at a location; "
            f"MODEL.ANCHOR_GENERATOR gives {anchor_generator.num_anchors}."
        )
    return numbers.pop()


def _build_coder(cfg: CfgNode, shapes: list[ShapeSpec]) -> Box2BoxTransform | PointTransform:
    node, anchors = cfg.MODEL.DDOD, cfg.MODEL.ANCHOR_GENERATOR
    check_choice("MODEL.DDOD.CODER", node.CODER, ("delta", "ltrb"))
    if node.CODER == "delta":
        return Box2BoxTransform(weights=tuple(node.BBOX_REG_WEIGHTS))
    strides = [shape.stride for shape in shapes]
    return PointTransform(anchor_side_in_strides(anchors.SIZES, anchors.ASPECT_RATIOS, strides))


def _build_losses(
    cfg: CfgNode, coder: Box2BoxTransform | PointTransform, num_levels: int
) -> DDODLosses:
    node, reweight = cfg.MODEL.DDOD.LOSS, cfg.MODEL.DDOD.REWEIGHT
    return DDODLosses(
        reweighter=PyramidReweighter(
            num_levels, reweight.TYPE, reweight.RANGE, reweight.MOVING_AVERAGE
        ),
        normalizer=LossNormalizer(node.NORMALIZER, reweight.SYNC),
        coder=coder,
        quality=cfg.MODEL.DDOD.QUALITY,
        box_type=node.BOX_TYPE,
        focal=(node.FOCAL_ALPHA, node.FOCAL_GAMMA),
        cls_weight=node.CLS_WEIGHT,
        box_weight=node.BOX_WEIGHT,
        quality_weight=node.QUALITY_WEIGHT,
        smooth_l1_beta=node.SMOOTH_L1_BETA,
    )
