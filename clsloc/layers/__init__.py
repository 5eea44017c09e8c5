"""Blocks and towers that more than one paper uses."""

from clsloc.layers.conv_norm import ConvNorm
from clsloc.layers.conv_tower import Bottleneck, ConvTower, UpBlock
from clsloc.layers.deform_conv import DeformConv2d
from clsloc.layers.nonlocal_block import NonLocalBlock

__all__ = ["Bottleneck", "ConvNorm", "ConvTower", "DeformConv2d", "NonLocalBlock", "UpBlock"]
