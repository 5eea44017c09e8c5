"""
Lazy localisation: at inference, only RoIs that can become a detection are localised.

A RoI is a detection only if the score of some foreground class passes the test threshold. Where
classification does not need the localisation path (its RoIAlign, tower, regressors, IoU head), it
runs first, and the localisation path sees only the RoIs that survive: often one or two hundred of
1,000. Rows are independent in evaluation mode, so the detections stay the same. Switch:
`cfg.CLSLOC.LAZY_LOCALISATION`.

Use, with R_i proposals in image i and K foreground classes:

    rows = surviving_rows(probs, score_thresh)
    probs, proposals = take_rows(probs, rows), take_rows(proposals, rows)
    boxes = ...                                            # localise only these proposals
    instances, kept = fast_rcnn_inference(boxes, probs, ...)
    kept = take_rows(rows, kept)                           # rows of the original proposals

In training the same holds for a path that only regresses boxes: background has no box loss. But
there rows are independent only without batch statistics, see `rows_are_independent`.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from detectron2.structures import Instances

__all__ = [
    "foreground_rows",
    "rows_are_independent",
    "rows_of_batch",
    "spread_rows",
    "surviving_rows",
    "take_rows",
]

T = TypeVar("T")


@torch.no_grad()
def surviving_rows(probs: Sequence[Tensor], score_thresh: float) -> list[Tensor]:
    """
    Rows that have at least one foreground score above the test threshold.

    Args:
        probs: per image, (R_i, K+1) scores with the background in the last column.
        score_thresh: the threshold that post-processing applies; a score must be larger.

    Returns:
        Per image, an ascending int64 tensor of row indices; empty if nothing survives. A row with
        a NaN score survives on its other classes alone.
    """
    return [(p[:, :-1] > score_thresh).any(dim=1).nonzero().flatten() for p in probs]


def foreground_rows(proposals: Sequence[Instances], num_classes: int) -> list[Tensor]:
    """
    Rows of sampled proposals that are matched to an object, and so have a box loss.

    Args:
        proposals: per image, with `gt_classes`; `num_classes` stands for the background.

    Returns:
        Per image, an ascending int64 tensor of row indices.
    """
    return [
        ((p.gt_classes >= 0) & (p.gt_classes < num_classes)).nonzero().flatten() for p in proposals
    ]


def rows_are_independent(module: nn.Module) -> bool:
    """
    Whether the output of a row depends on this row alone: not with batch norms in training, whose
    statistics mix all rows.
    """
    return not any(
        m.training and isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()
    )


def take_rows(items: Sequence[T], rows: Sequence[Tensor]) -> list[T]:
    """Index each image's tensor, `Boxes` or `Instances` with that image's rows."""
    return [item[r] for item, r in zip(items, rows, strict=True)]


def rows_of_batch(rows: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """
    Turn rows per image into rows of the concatenated batch, for tensors such as pooled features.

    Args:
        rows: per image, indices below R_i.
        sizes: R_i, the number of rows of each image before the selection.
    """
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return torch.cat([r + start for r, start in zip(rows, starts, strict=True)])


def spread_rows(values: Tensor, rows: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """
    Put what was computed for some rows back in its place in the batch; all other rows are zeros.

    Args:
        values: (S, ...) for the S rows in all, in their order; S may be 0.
        rows, sizes: see `rows_of_batch`.

    Returns:
        (R, ...) with R the sum of `sizes`; gradients flow to `values`.
    """
    zeros = values.new_zeros(sum(sizes), *values.shape[1:])
    return zeros.index_put((rows_of_batch(rows, sizes),), values)
