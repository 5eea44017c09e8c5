"""Blocks and towers that more than one paper uses."""

from clsloc.layers.conv_norm import ConvNorm
from clsloc.layers.conv_tower import Bottleneck, ConvTower, UpBlock
from clsloc.layers.nonlocal_block import NonLocalBlock
from clsloc.layers.vgg import VGG16_BLOCKS, VGGBlock, make_vgg16_blocks

__all__ = [
    "VGG16_BLOCKS",
    "Bottleneck",
    "ConvNorm",
    "ConvTower",
    "NonLocalBlock",
    "UpBlock",
    "VGGBlock",
    "make_vgg16_blocks",
]
