"""
How alike the cells of a head are (Double-Head, CVPR 2020, section 3.4, Figure 4).

Shape shorthand in this module:

    R: number of objects
    C: channels of the pooled features; D: outputs of the first fully connected layer
    P: cells of the pooled features, H * W
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["fc_cell_features", "fc_weight_correlation", "spatial_correlation", "tile"]


def spatial_correlation(maps: Tensor) -> Tensor:
    """
    Cosine similarity of the features of each two cells.

    Args:
        maps: (R, C, H, W); R may be 0.

    Returns:
        (R, P, P), symmetric with ones on the diagonal; cells in rows first. A cell of zeros is
        similar to none, itself included.
    """
    cells = F.normalize(maps.float().flatten(2), dim=1)
    return cells.mT @ cells


def fc_cell_features(weight: Tensor, pooled: Tensor) -> Tensor:
    """
    What each cell contributes to the first fully connected layer of a head.

    Args:
        weight: (D, C * P), of the layer that reads `pooled` flattened.
        pooled: (R, C, H, W); R may be 0.

    Returns:
        (R, D, H, W). The sum over the cells and the layer's bias make its output before ReLU.
    """
    height, width = pooled.shape[2:]
    per_cell = weight.view(len(weight), -1, height, width)
    return torch.einsum("dchw,rchw->rdhw", per_cell, pooled)


def fc_weight_correlation(weight: Tensor, height: int, width: int) -> Tensor:
    """
    Cosine similarity of the weights that the first fully connected layer has for each two cells.

    Args:
        weight: (D, C * P), with P = height * width.

    Returns:
        (P, P).
    """
    per_cell = weight.view(len(weight), -1, height, width)
    return spatial_correlation(per_cell.flatten(0, 1)[None])[0]


def tile(correlation: Tensor, height: int, width: int) -> Tensor:
    """
    A correlation matrix as a picture: tile (y, x) is how alike all cells are to cell (y, x).

    Args:
        correlation: (P, P).

    Returns:
        (height * height, width * width).
    """
    tiles = correlation.view(height, width, height, width)
    return tiles.permute(0, 2, 1, 3).reshape(height * height, width * width)
