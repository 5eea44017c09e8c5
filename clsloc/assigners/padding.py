"""Which anchors of a batch lie on an image and not on what pads it to the size of the batch."""

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor

__all__ = ["valid_anchors"]


def valid_anchors(
    image_size: tuple[int, int],
    grid_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    num_anchors: int,
    *,
    divisor: int = 32,
    device: torch.device | None = None,
) -> tuple[Tensor | None, list[int]]:
    """
    Anchors on an image that would be padded alone, to a multiple of `divisor`.

    Their number is known without looking at the device.

    Args:
        image_size: (height, width) before padding.
        grid_sizes: (height, width) of each level of the batch.
        strides: of each level.
        num_anchors: anchors of one location.

    Returns:
        Ascending int64 indices into all anchors, in the order (level, row, column, anchor), and
        how many of them each level has. None in place of the indices where all are valid.
    """
    height, width = (divisor * ceil(side / divisor) for side in image_size)
    kept = [
        (min(rows, ceil(height / stride)), min(columns, ceil(width / stride)))
        for (rows, columns), stride in zip(grid_sizes, strides, strict=True)
    ]
    sizes = [rows * columns * num_anchors for rows, columns in kept]
    if kept == [tuple(size) for size in grid_sizes]:
        return None, sizes
    start, indices = 0, []
    for (rows, columns), (all_rows, all_columns) in zip(kept, grid_sizes, strict=True):
        total = all_rows * all_columns * num_anchors
        index = torch.arange(start, start + total, device=device)
        index = index.view(all_rows, all_columns, num_anchors)[:rows, :columns]
        indices.append(index.flatten())
        start += total
    return torch.cat(indices), sizes
