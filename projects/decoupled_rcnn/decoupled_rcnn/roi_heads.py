"""
RoI heads of Decoupled R-CNN.

Shape shorthand:

    N: images in the batch
    R: RoIs of all images, R_i of image i
    K: foreground classes; class K is the background
    S: regression stages
"""

import torch
from torch import Tensor

from clsloc.accuracy import log_classification
from clsloc.boxes import elementwise_iou
from clsloc.lazy import rows_of_batch, surviving_rows, take_rows
from clsloc.nms import soft_nms_inference
from clsloc.sample_record import is_recording, record_samples
from decoupled_rcnn.branches import DecoupledBranches
from decoupled_rcnn.sampling import match_positives, sample_positives, split_proposals
from detectron2.layers import cat, cross_entropy
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage

__all__ = ["DecoupledROIHeads"]


@ROI_HEADS_REGISTRY.register()
class DecoupledROIHeads(DecoupledBranches):
    """
    A classifier and S regressors in sequence, with proposals and layers of their own ("Decoupled
    R-CNN: Sensitivity-Specific Detector for Higher Accurate Localization", TCSVT 2022).

    The k-th regressor trains on the positives among the boxes of the one before, detached. All
    stages have the same IoU threshold and full gradients into the backbone. At inference scores
    are those of the proposals as the RPN made them; refined boxes are not scored again.

    Differs from `StandardROIHeads` in the box branch and in the samples; whatever else trains on
    proposals gets those of the classifier.
    """

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """As in `ROIHeads`; in training the proposals are those of a `DecoupledRPN`."""
        if not self.training:
            detections = self._forward_box(features, proposals)
            return self.forward_with_given_boxes(features, detections), {}
        if targets is None:
            raise ValueError("Decoupled R-CNN needs targets (ground truth) in training.")
        for_cls, for_reg = split_proposals(proposals)
        _log_proposals(for_cls, for_reg)
        cls_samples = self.label_and_sample_proposals(for_cls, targets)
        reg_samples, batch_size = self._sample_for_regression(for_reg, cls_samples, targets)

        maps = [features[name] for name in self.box_in_features]
        losses = self._classification_losses(maps, cls_samples, targets)
        losses.update(self._regression_losses(maps, reg_samples, targets, batch_size))
        losses.update(self._forward_mask(features, cls_samples))
        losses.update(self._forward_keypoint(features, cls_samples))
        return cls_samples, losses

    # --- training ---

    def _sample_for_regression(
        self, proposals: list[Instances], cls_samples: list[Instances], targets: list[Instances]
    ) -> tuple[list[Instances], int]:
        """P_1, and the size of the mini-batch that all regression losses are divided by."""
        if self.plan.sampler == "shared":
            boxes = [p.proposal_boxes for p in cls_samples]
            return match_positives(boxes, targets, self.reg_matchers[0]), sum(map(len, boxes))
        return sample_positives(
            [p.proposal_boxes for p in proposals],
            targets,
            self.reg_matchers[0],
            batch_size=self.reg_batch_size_per_image,
            positive_fraction=self.reg_positive_fraction,
            append_gt=self.reg_append_gt,
        )

    def _classification_losses(
        self, maps: list[Tensor], samples: list[Instances], targets: list[Instances]
    ) -> dict[str, Tensor]:
        """Cross-entropy (Eq. 3) of each classifier, averaged over its samples."""
        losses, last = {}, len(self.cls_heads) - 1
        boxes = [p.proposal_boxes for p in samples]
        gt_classes = [p.gt_classes for p in samples]
        for stage in range(last + 1):
            pooled = self._pool(maps, boxes)
            logits, labels = self._score(stage, pooled), cat(gt_classes)
            suffix = f"_stage{stage}" if last else ""
            log_classification(logits, labels, f"fast_rcnn{suffix if stage else ''}")
            loss = cross_entropy(logits, labels, reduction="mean")
            losses[f"loss_cls{suffix}"] = loss * self.plan.cls_loss_weights[stage]
            if stage < last:
                with torch.no_grad():
                    deltas = self._regress(stage, maps, boxes, pooled)
                boxes = self._refine(stage, deltas, boxes, [t.image_size for t in targets])
                gt_classes = self._label(boxes, targets, self.cls_matchers[stage + 1])
                if is_recording():
                    positive = [classes < self.num_classes for classes in gt_classes]
                    record_samples(f"classification, stage {stage + 2}", boxes, positive)
        return losses

    def _regression_losses(
        self,
        maps: list[Tensor],
        samples: list[Instances],
        targets: list[Instances],
        batch_size: int,
    ) -> dict[str, Tensor]:
        """
        The regression part of Eq. 8: for each stage the L1 loss of its positives.

        What is not positive at a stage leaves the cascade. Nothing would bring it back: later
        stages would see background, which they do not move.

        Args:
            samples: P_1 of each image.
            batch_size: what the sums are divided by, the same at each stage.
        """
        losses, ious = {}, []
        for stage, predictor in enumerate(self.reg_predictors):
            boxes = [p.proposal_boxes for p in samples]
            record_samples(f"localisation, stage {stage + 1}", boxes)
            flat = cat([b.tensor for b in boxes])
            gt_boxes = cat([p.gt_boxes.tensor for p in samples])
            gt_classes = cat([p.gt_classes for p in samples])
            deltas = self._regress(stage, maps, boxes)
            total = predictor.loss(deltas, flat, gt_boxes, gt_classes)
            divisor = len(flat) if self.plan.normalise_by_positives else batch_size
            weight = self.plan.reg_loss_weights[stage]
            losses[f"loss_box_reg_stage{stage}"] = total * (weight / max(divisor, 1))
            ious.append(elementwise_iou(flat, gt_boxes))
            if stage + 1 < len(self.reg_predictors):
                sizes = [t.image_size for t in targets]
                refined = self._refine(stage, deltas, boxes, sizes, gt_classes)
                samples = match_positives(refined, targets, self.reg_matchers[stage + 1])
        _log_positives(ious, len(targets))
        return losses

    @torch.no_grad()
    def _label(
        self, boxes: list[Boxes], targets: list[Instances], matcher: Matcher
    ) -> list[Tensor]:
        """Classes (R_i,) of all boxes, the background included."""
        labels = []
        for image_boxes, target in zip(boxes, targets, strict=True):
            matched, positive = matcher(pairwise_iou(target.gt_boxes, image_boxes))
            classes = torch.full_like(matched, self.num_classes)
            rows = (positive == 1).nonzero().flatten()
            classes[rows] = target.gt_classes[matched[rows]]
            labels.append(classes)
        return labels

    # --- inference ---

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> list[Instances]:
        """Detections: score all proposals, then localise those that can become one."""
        maps = [features[name] for name in self.box_in_features]
        sizes = [p.image_size for p in proposals]
        probs, trail, pooled = self._score_proposals(maps, proposals)
        num_rois = [len(p) for p in proposals]
        image_probs = list(probs.split(num_rois))
        if self.lazy_localisation:
            rows = surviving_rows(image_probs, self.test_score_thresh)
        else:
            rows = [torch.arange(n, device=probs.device) for n in num_rois]
        image_probs = take_rows(image_probs, rows)

        stage = len(trail) - 1  # the first regressor that has not run
        if self.plan.test.reg < stage:
            found = [b.tensor for b in take_rows(trail[self.plan.test.reg + 1], rows)]
        else:
            # Regressors that look further around pool for themselves.
            pooled = pooled[rows_of_batch(rows, num_rois)] if self.reg_roi_scale == 1 else None
            classes = cat(image_probs)[:, :-1].argmax(dim=1)
            found = self._localise(stage, maps, take_rows(trail[-1], rows), pooled, classes, sizes)
        return self._select(found, image_probs, sizes)

    def _score_proposals(
        self, maps: list[Tensor], proposals: list[Instances]
    ) -> tuple[Tensor, list[list[Boxes]], Tensor]:
        """
        Class probabilities (R, K+1), averaged over the classifiers that the config asks for.

        A later classifier scores boxes that earlier regressors refined, of all RoIs.

        Returns:
            The probabilities; the boxes that each stage began with, per image, up to the last
            classifier's; and the pooled features (R, C, H, W) of the last.
        """
        stages = self.plan.test.cls
        trail, probs = [[p.proposal_boxes for p in proposals]], []
        pooled = self._pool(maps, trail[0])
        for stage in range(stages[-1] + 1):
            if stage in stages:
                probs.append(self._score(stage, pooled).softmax(dim=1))
            if stage < stages[-1]:
                deltas = self._regress(stage, maps, trail[-1], pooled)
                sizes = [p.image_size for p in proposals]
                trail.append(self._refine(stage, deltas, trail[-1], sizes))
                pooled = self._pool(maps, trail[-1])
        return torch.stack(probs).mean(dim=0), trail, pooled

    def _localise(
        self,
        first: int,
        maps: list[Tensor],
        boxes: list[Boxes],
        pooled: Tensor | None,
        classes: Tensor,
        sizes: list[tuple[int, int]],
    ) -> list[Tensor]:
        """
        Run the regressors from the first one given to the last one needed.

        Args:
            first: a stage.
            boxes: what this stage begins with.
            pooled: the features of these boxes, if there are any yet.
            classes: (R,), the most probable one of each RoI; it goes on with the box of this class.

        Returns:
            Per image the boxes of the last regressor, (R_i, 4K) or (R_i, 4).
        """
        last = self.plan.test.reg
        for stage in range(first, last):
            deltas = self._regress(stage, maps, boxes, pooled)
            boxes = self._refine(stage, deltas, boxes, sizes, classes)
            pooled = None  # of other boxes
        deltas = self._regress(last, maps, boxes, pooled)
        decoded = self.reg_predictors[last].decode(deltas, cat([b.tensor for b in boxes]))
        return list(decoded.split([len(b) for b in boxes]))

    def _select(
        self, boxes: list[Tensor], probs: list[Tensor], sizes: list[tuple[int, int]]
    ) -> list[Instances]:
        """Threshold, NMS or Soft-NMS in each class, and the best of all."""
        thresh, topk = self.test_score_thresh, self.test_topk_per_image
        if self.soft_nms is not None:
            return soft_nms_inference(boxes, probs, sizes, thresh, topk, **self.soft_nms)[0]
        return fast_rcnn_inference(boxes, probs, sizes, thresh, self.test_nms_thresh, topk)[0]


def _log_proposals(for_cls: list[Instances], for_reg: list[Instances]) -> None:
    storage = get_event_storage()
    for name, proposals in (("cls", for_cls), ("reg", for_reg)):
        mean = sum(map(len, proposals)) / len(proposals)
        storage.put_scalar(f"decoupled/num_proposals_{name}", mean)


@torch.no_grad()
def _log_positives(ious: list[Tensor], num_images: int) -> None:
    """How many positives each stage has in an image, and how close they are to their objects."""
    storage = get_event_storage()
    # One transfer from the device for all stages.
    totals = torch.stack([iou.sum() for iou in ious]).tolist()
    for stage, (iou, total) in enumerate(zip(ious, totals, strict=True)):
        storage.put_scalar(f"decoupled/num_reg_pos_stage{stage}", len(iou) / num_images)
        if len(iou):
            storage.put_scalar(f"decoupled/mean_iou_in_stage{stage}", total / len(iou))
