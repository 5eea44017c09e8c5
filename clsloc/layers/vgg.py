"""The convolutions of VGG16, block by block."""

import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor

from detectron2.layers import CNNBlockBase, Conv2d

__all__ = ["VGG16_BLOCKS", "VGGBlock", "make_vgg16_blocks"]

# (channels, convolutions) of blocks conv1 to conv5.
VGG16_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGGBlock(CNNBlockBase):
    """
    3x3 convolutions with bias, each followed by ReLU; the pooling between blocks is not part of it.

    The convolutions are called conv1, conv2, ...; the input is left as it is.
    """

    def __init__(self, in_channels: int, out_channels: int, num_convs: int):
        super().__init__(in_channels, out_channels, stride=1)
        self.convs = [f"conv{i + 1}" for i in range(num_convs)]
        for name in self.convs:
            conv = Conv2d(in_channels, out_channels, 3, padding=1, activation=F.relu_)
            weight_init.c2_msra_fill(conv)
            self.add_module(name, conv)
            in_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H, W)."""
        for name in self.convs:
            x = getattr(self, name)(x)
        return x


def make_vgg16_blocks(in_channels: int = 3) -> list[VGGBlock]:
    """The five blocks of VGG16 (arXiv:1409.1556, configuration D)."""
    blocks = []
    for channels, num_convs in VGG16_BLOCKS:
        blocks.append(VGGBlock(in_channels, channels, num_convs))
        in_channels = channels
    return blocks
