"""
How scores and boxes follow the overlap with an object, and what the cells of a head have in common:
the measurements of Double-Head (CVPR 2020), section 3.
"""

from clsloc.analysis.spatial import (
    fc_cell_features,
    fc_weight_correlation,
    spatial_correlation,
    tile,
)
from clsloc.analysis.streams import BinnedStatistics, PearsonCorrelation
from clsloc.analysis.windows import clip_windows, iou_bins, sliding_windows

__all__ = [
    "BinnedStatistics",
    "PearsonCorrelation",
    "clip_windows",
    "fc_cell_features",
    "fc_weight_correlation",
    "iou_bins",
    "sliding_windows",
    "spatial_correlation",
    "tile",
]
