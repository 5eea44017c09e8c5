"""Two-stage models: a backbone, a proposal generator, and heads on the proposals."""

import numpy as np
import torch
from torch import nn

from detectron2.config import CfgNode, configurable
from detectron2.modeling.backbone import Backbone, build_backbone
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage

from . import _io
from .build import META_ARCH_REGISTRY

_MAX_DRAWN_PROPOSALS = 20


@META_ARCH_REGISTRY.register()
class GeneralizedRCNN(nn.Module):
    """Features per image, proposals, then predictions per region."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module | None,
        roi_heads: nn.Module,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        input_format: str | None = None,
        vis_period: int = 0,
    ) -> None:
        """
        Args:
            backbone: maps images to named feature maps.
            proposal_generator: gives proposals and losses; None if proposals come as input.
            roi_heads: gives detections and losses.
            pixel_mean, pixel_std: per channel, in ``input_format``.
            input_format: order of the channels, such as "BGR"; needed to draw.
            vis_period: draw proposals every so many iterations; 0 for never.
        """
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        if vis_period > 0 and input_format is None:
            raise ValueError(f"vis_period is {vis_period}, and drawing needs an input_format.")
        self.input_format = input_format
        self.vis_period = vis_period
        _io.register_pixel_statistics(self, pixel_mean, pixel_std)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, shapes),
            "roi_heads": build_roi_heads(cfg, shapes),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
        }

    @property
    def device(self) -> torch.device:
        """Where the model computes; inputs are moved there."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """
        Args:
            batched_inputs: per image a dict with "image", a tensor (C, H, W) in the format of the
                config; optionally "instances", the ground truth, needed in training; "proposals",
                if the model has no proposal generator; "height" and "width", the size that
                detections are scaled to.

        Returns:
            In training the losses by name; at inference per image a dict with "instances", which
            have "pred_boxes", "scores" and "pred_classes".
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        gt_instances = _io.instances_on_device(batched_inputs, "instances", self.device)
        features = self.backbone(images.tensor)
        proposals, proposal_losses = self._propose(batched_inputs, images, features, gt_instances)
        _, losses = self.roi_heads(images, features, proposals, gt_instances)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        return {**losses, **proposal_losses}

    def _propose(
        self,
        batched_inputs: list[dict],
        images: ImageList,
        features: dict[str, torch.Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """Proposals and losses of the generator, or without one the proposals of the inputs."""
        if self.proposal_generator is not None:
            return self.proposal_generator(images, features, gt_instances)
        proposals = _io.instances_on_device(batched_inputs, "proposals", self.device)
        if proposals is None:
            raise ValueError(
                "The model has no proposal generator, and its inputs have no 'proposals': set "
                "MODEL.LOAD_PROPOSALS or MODEL.PROPOSAL_GENERATOR.NAME."
            )
        return proposals, {}

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict] | list[Instances]:
        """
        Args:
            batched_inputs: as in :meth:`forward`.
            detected_instances: per image Instances with "pred_boxes" and "pred_classes", in the
                scale of the image; then no boxes are detected, and only what depends on them is.
            do_postprocess: whether to scale detections to the "height" and "width" of the inputs.

        Returns:
            As :meth:`forward`, or the Instances themselves without ``do_postprocess``.
        """
        if self.training:
            raise RuntimeError("GeneralizedRCNN.inference needs eval() first.")
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if detected_instances is None:
            proposals, _ = self._propose(batched_inputs, images, features)
            results, _ = self.roi_heads(images, features, proposals, None)
        else:
            detected_instances = [x.to(self.device) for x in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(features, detected_instances)
        if do_postprocess:
            return self._postprocess(results, batched_inputs, images.image_sizes)
        return results

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise the images and pad them to one batch."""
        return _io.preprocess(self, batched_inputs)

    @staticmethod
    def _postprocess(
        instances: list[Instances], batched_inputs: list[dict], image_sizes: list[tuple[int, int]]
    ) -> list[dict]:
        results = _io.postprocess(instances, batched_inputs, image_sizes)
        return [{"instances": result} for result in results]

    def visualize_training(self, batched_inputs: list[dict], proposals: list[Instances]) -> None:
        """Put a picture of the first image into the event storage: ground truth beside the best
        proposals."""
        boxes = proposals[0].proposal_boxes.tensor[:_MAX_DRAWN_PROPOSALS].cpu().numpy()
        pictures = _io.draw_boxes(batched_inputs[0], boxes, self.input_format)
        get_event_storage().put_image(
            "Left: GT bounding boxes;  Right: Predicted proposals",
            np.concatenate(pictures, axis=1).transpose(2, 0, 1),
        )


@META_ARCH_REGISTRY.register()
class ProposalNetwork(nn.Module):
    """A backbone and a proposal generator alone."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
    ) -> None:
        """The arguments are those of :class:`GeneralizedRCNN`."""
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        _io.register_pixel_statistics(self, pixel_mean, pixel_std)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        """Where the model computes; inputs are moved there."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """
        Args:
            batched_inputs: as in :meth:`GeneralizedRCNN.forward`.

        Returns:
            In training the losses by name; at inference per image a dict with "proposals", which
            have "proposal_boxes" and "objectness_logits".
        """
        images = _io.preprocess(self, batched_inputs)
        features = self.backbone(images.tensor)
        gt_instances = _io.instances_on_device(batched_inputs, "instances", self.device)
        proposals, losses = self.proposal_generator(images, features, gt_instances)
        if self.training:
            return losses
        results = _io.postprocess(proposals, batched_inputs, images.image_sizes)
        return [{"proposals": result} for result in results]
