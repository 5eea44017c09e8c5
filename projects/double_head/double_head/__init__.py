"""Double-Head and Double-Head-Ext: an fc tower to classify, a conv tower to localise."""

from double_head.config import add_double_head_config
from double_head.conv_head import DoubleHeadConvHead
from double_head.output_layers import DoubleHeadOutputLayers
from double_head.plan import MODES, HeadPlan, effective_weights
from double_head.roi_heads import DoubleHeadROIHeads, RawOutputs

__all__ = [
    "MODES",
    "DoubleHeadOutputLayers",
    "DoubleHeadROIHeads",
    "DoubleHeadConvHead",
    "HeadPlan",
    "RawOutputs",
    "add_double_head_config",
    "effective_weights",
]
