"""The plumbing of one-stage models.

Shape shorthand:
    N: images      L: feature levels      H_l, W_l: size of level l      C: anchors per location
    A_l: anchors of level l in one image, H_l * W_l * C      K: classes
"""

import numpy as np
import torch
from torch import nn

from detectron2.modeling.backbone import Backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage

from . import _io

_MAX_DRAWN_RESULTS = 20


def permute_to_N_HWA_K(tensor: torch.Tensor, K: int) -> torch.Tensor:
    """Turn a map (N, C * K, H, W) of K numbers per anchor into rows (N, H * W * C, K)."""
    if tensor.dim() != 4:
        raise ValueError(f"Expected a map (N, C * K, H, W), not the shape {tuple(tensor.shape)}.")
    return tensor.unflatten(1, (-1, K)).permute(0, 3, 4, 1, 2).flatten(1, 3)


class DenseDetector(nn.Module):
    """A fully convolutional head on every feature level.

    A subclass implements :meth:`forward_training` and :meth:`forward_inference`. If it uses the
    decoding below it also has a ``box2box_transform``.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: list[str] | None = None,
        *,
        pixel_mean: list[float],
        pixel_std: list[float],
    ) -> None:
        """
        Args:
            backbone: maps images to named feature maps.
            head: maps a list of feature maps to a tuple of lists of predictions, one per level.
            head_in_features: names of the maps for the head; by default all, from fine to coarse.
            pixel_mean, pixel_std: per channel.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head
        if head_in_features is None:
            shapes = backbone.output_shape()
            head_in_features = sorted(shapes, key=lambda name: shapes[name].stride)
        self.head_in_features = head_in_features
        _io.register_pixel_statistics(self, pixel_mean, pixel_std)

    @property
    def device(self) -> torch.device:
        """Where the model computes; inputs are moved there."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """
        Args:
            batched_inputs: per image a dict with "image", a tensor (C, H, W) in the format of the
                config; in training "instances", the ground truth; optionally "height" and "width",
                the size that detections are scaled to.

        Returns:
            In training the losses by name; at inference per image a dict with "instances", which
            have "pred_boxes", "scores" and "pred_classes".
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        features = [features[name] for name in self.head_in_features]
        predictions = self.head(features)
        if self.training:
            gt_instances = _io.instances_on_device(batched_inputs, "instances", self.device)
            if gt_instances is None:
                raise ValueError("Training needs 'instances' (ground truth) in the inputs.")
            return self.forward_training(images, features, predictions, gt_instances)
        results = self.forward_inference(images, features, predictions)
        results = _io.postprocess(results, batched_inputs, images.image_sizes)
        return [{"instances": result} for result in results]

    def forward_training(
        self,
        images: ImageList,
        features: list[torch.Tensor],
        predictions: tuple[list[torch.Tensor], ...],
        gt_instances: list[Instances],
    ) -> dict[str, torch.Tensor]:
        """The losses by name, from L feature maps and what the head made of them."""
        raise NotImplementedError

    def forward_inference(
        self,
        images: ImageList,
        features: list[torch.Tensor],
        predictions: tuple[list[torch.Tensor], ...],
    ) -> list[Instances]:
        """N Instances of detections in the scale of the images."""
        raise NotImplementedError

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise the images and pad them to one batch."""
        return _io.preprocess(self, batched_inputs)

    def _transpose_dense_predictions(
        self, predictions: list[list[torch.Tensor]], dims_per_anchor: list[int]
    ) -> list[list[torch.Tensor]]:
        """:func:`permute_to_N_HWA_K` on all levels of each kind of prediction.

        Args:
            predictions: per kind L maps.
            dims_per_anchor: per kind the numbers of one anchor.
        """
        return [
            [permute_to_N_HWA_K(level, dim) for level in levels]
            for levels, dim in zip(predictions, dims_per_anchor, strict=True)
        ]

    def _ema_update(
        self, name: str, value: float, initial_value: float, momentum: float = 0.9
    ) -> float:
        """Update the exponential moving average in the attribute ``name`` and return it."""
        old = getattr(self, name, initial_value)
        new = old * momentum + value * (1 - momentum)
        setattr(self, name, new)
        return new

    def _decode_per_level_predictions(
        self,
        anchors: Boxes,
        pred_scores: torch.Tensor,
        pred_deltas: torch.Tensor,
        score_thresh: float,
        topk_candidates: int,
        image_size: tuple[int, int],
    ) -> Instances:
        """Boxes of one level and image that score above ``score_thresh``, the best
        ``topk_candidates`` of them. An anchor may give boxes of several classes.

        Args:
            anchors: A_l boxes.
            pred_scores: (A_l, K).
            pred_deltas: (A_l, 4).

        Returns:
            Instances with "pred_boxes", "scores" and "pred_classes", not clipped, best first.
        """
        candidates = (pred_scores > score_thresh).nonzero()
        scores = pred_scores[candidates[:, 0], candidates[:, 1]]
        scores, best = scores.topk(min(topk_candidates, len(scores)))
        anchor_index, classes = candidates[best].unbind(1)
        boxes = self.box2box_transform.apply_deltas(
            pred_deltas[anchor_index], anchors.tensor[anchor_index]
        )
        return Instances(image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)

    def _decode_multi_level_predictions(
        self,
        anchors: list[Boxes],
        pred_scores: list[torch.Tensor],
        pred_deltas: list[torch.Tensor],
        score_thresh: float,
        topk_candidates: int,
        image_size: tuple[int, int],
    ) -> Instances:
        """:meth:`_decode_per_level_predictions` on L levels of one image, joined."""
        return Instances.cat(
            [
                self._decode_per_level_predictions(
                    *level, score_thresh, topk_candidates, image_size
                )
                for level in zip(anchors, pred_scores, pred_deltas, strict=True)
            ]
        )

    def visualize_training(self, batched_inputs: list[dict], results: list[Instances]) -> None:
        """Put a picture of the first image into the event storage: ground truth above the best
        detections. Needs an ``input_format`` attribute."""
        height, width = batched_inputs[0]["image"].shape[1:]
        detections = detector_postprocess(results[0], height, width)
        boxes = detections.pred_boxes.tensor[:_MAX_DRAWN_RESULTS].detach().cpu().numpy()
        pictures = _io.draw_boxes(batched_inputs[0], boxes, self.input_format)
        get_event_storage().put_image(
            f"Top: GT bounding boxes; Bottom: {_MAX_DRAWN_RESULTS} Highest Scoring Results",
            np.concatenate(pictures, axis=0).transpose(2, 0, 1),
        )
