"""G-RCN: a map for each task, the whole image as context of the scores, and ResNet-det."""

from grcn.config import add_grcn_config
from grcn.context import GlobalContext
from grcn.fpn import GRCNFPN
from grcn.heads import VGGFCHead
from grcn.output_layers import GRCNOutputLayers
from grcn.resnet import GRCNResNet
from grcn.roi_heads import GRCNROIHeads
from grcn.vgg import GRCNVGG16

__all__ = [
    "GRCNFPN",
    "GRCNVGG16",
    "GRCNOutputLayers",
    "GRCNROIHeads",
    "GRCNResNet",
    "GlobalContext",
    "VGGFCHead",
    "add_grcn_config",
]
