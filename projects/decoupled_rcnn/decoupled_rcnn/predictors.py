"""
The last layers: class logits, and box deltas with their loss.

Shape shorthand: R RoIs, K foreground classes; B is K, or 1 where all classes share a box.
"""

import torch
from fvcore.nn import smooth_l1_loss
from torch import Tensor, nn

from clsloc.boxes import of_class
from detectron2.modeling.box_regression import Box2BoxTransform

__all__ = ["BoxRegressor", "class_scorer"]


def class_scorer(in_features: int, num_classes: int) -> nn.Linear:
    """(R, in_features) to K + 1 class logits, the background last."""
    layer = nn.Linear(in_features, num_classes + 1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


class BoxRegressor(nn.Module):
    """(R, in_features) to deltas (R, 4B), and what they mean."""

    def __init__(
        self,
        in_features: int,
        *,
        num_classes: int,
        class_agnostic: bool,
        transform: Box2BoxTransform,
        smooth_l1_beta: float = 0.0,
    ):
        """
        Args:
            in_features: of the head before it.
            num_classes: K.
            class_agnostic: all classes share one box.
            transform: encodes and decodes boxes.
            smooth_l1_beta: where the loss turns from L2 into L1; 0 is the paper's L1.
        """
        super().__init__()
        self.transform = transform
        self.smooth_l1_beta = smooth_l1_beta
        self.bbox_pred = nn.Linear(in_features, 4 if class_agnostic else 4 * num_classes)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.bbox_pred(x)

    def decode(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (R, 4B), not clipped, from deltas (R, 4B) and the boxes (R, 4) they refer to."""
        return self.transform.apply_deltas(deltas, boxes)

    @torch.no_grad()
    def refine(self, deltas: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
        """One box (R, 4) for each RoI, that of its class (R,); detached and not clipped."""
        return self.decode(of_class(deltas, classes), boxes)

    def loss(self, deltas: Tensor, boxes: Tensor, gt_boxes: Tensor, gt_classes: Tensor) -> Tensor:
        """
        Sum over RoIs and coordinates of the L1 loss (Eq. 4) of the deltas of the RoI's class.

        Args:
            deltas: (R, 4B); R may be 0.
            boxes: (R, 4) with a width and height above 0.
            gt_boxes: (R, 4) of the objects.
            gt_classes: (R,) of the objects: no background.
        """
        targets = self.transform.get_deltas(boxes, gt_boxes)
        # In half precision the sum of weighted targets could overflow.
        chosen = of_class(deltas, gt_classes).float()
        return smooth_l1_loss(chosen, targets, self.smooth_l1_beta, reduction="sum")
