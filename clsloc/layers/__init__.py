"""Blocks and towers that more than one paper uses."""

from clsloc.layers.conv_norm import ConvNorm
from clsloc.layers.conv_tower import Bottleneck, ConvTower, UpBlock
from clsloc.layers.deform_conv import DeformConv2d
from clsloc.layers.nonlocal_block import NonLocalBlock
from clsloc.layers.threaded_roi_align import ThreadedROIAlign
from clsloc.layers.vgg import VGG16_BLOCKS, VGGBlock, make_vgg16_blocks

__all__ = [
    "VGG16_BLOCKS",
    "Bottleneck",
    "ConvNorm",
    "ConvTower",
    "DeformConv2d",
    "NonLocalBlock",
    "ThreadedROIAlign",
    "UpBlock",
    "VGGBlock",
    "make_vgg16_blocks",
]
