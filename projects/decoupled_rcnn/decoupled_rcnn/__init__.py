"""Decoupled R-CNN: classifier and cascaded regressors on proposals and layers of their own."""

from decoupled_rcnn.cascade_pairs import CascadePairsROIHeads
from decoupled_rcnn.config import add_decoupled_rcnn_config
from decoupled_rcnn.conv_head import DoubleConvRegHead
from decoupled_rcnn.plan import DecoupledPlan
from decoupled_rcnn.predictors import BoxRegressor
from decoupled_rcnn.proposals import Candidates, dual_nms, select_candidates
from decoupled_rcnn.roi_heads import DecoupledROIHeads
from decoupled_rcnn.rpn import DecoupledRPN
from decoupled_rcnn.sampling import match_positives, sample_positives, split_proposals

__all__ = [
    "BoxRegressor",
    "Candidates",
    "CascadePairsROIHeads",
    "DecoupledPlan",
    "DecoupledROIHeads",
    "DecoupledRPN",
    "DoubleConvRegHead",
    "add_decoupled_rcnn_config",
    "dual_nms",
    "match_positives",
    "sample_positives",
    "select_candidates",
    "split_proposals",
]
