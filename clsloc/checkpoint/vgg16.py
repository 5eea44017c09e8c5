"""VGG16 of torchvision in the names of this repository."""

from collections.abc import Mapping

import torch
from torch import Tensor

from clsloc.errors import UserError
from clsloc.layers.vgg import VGG16_BLOCKS

__all__ = ["convert_vgg16", "vgg16_names"]

# torchvision's `classifier`: the layers between are ReLU and dropout, the last is not used.
_FULLY_CONNECTED = {"classifier.0": "head.fc6", "classifier.3": "head.fc7"}


def convert_vgg16(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    Rename a state dict of `torchvision.models.vgg16`: `features.0` becomes `conv1.conv1`, the
    first two layers of the classifier become `head.fc6` and `head.fc7`.

    Both flatten channels first, so that no weight has to be permuted. The last layer, which scores
    ImageNet's classes, is left out.

    Raises:
        UserError: if a tensor is missing, or a convolution has another shape.
    """
    converted = {}
    for old, new in vgg16_names().items():
        if old not in state:
            raise UserError(
                f"There is no {old} in the file: it needs the state dict of torchvision's vgg16, "
                "without batch norm."
            )
        converted[new] = state[old].detach().to(torch.float32)
    for new, channels in zip(_convolutions().values(), _channels(), strict=True):
        if len(converted[f"{new}.weight"]) != channels:
            raise UserError(
                f"{new} has {len(converted[f'{new}.weight'])} channels in place of {channels}: the "
                "file needs the state dict of torchvision's vgg16."
            )
    return converted


def vgg16_names() -> dict[str, str]:
    """The tensors that are taken over: torchvision's name to ours."""
    return {
        f"{old}.{kind}": f"{new}.{kind}"
        for old, new in (_convolutions() | _FULLY_CONNECTED).items()
        for kind in ("weight", "bias")
    }


def _channels() -> list[int]:
    return [channels for channels, num_convs in VGG16_BLOCKS for _ in range(num_convs)]


def _convolutions() -> dict[str, str]:
    """Names of the convolutions: in torchvision, where layers are counted, and here."""
    names, index = {}, 0
    for block, (_, num_convs) in enumerate(VGG16_BLOCKS, start=1):
        for conv in range(1, num_convs + 1):
            names[f"features.{index}"] = f"conv{block}.conv{conv}"
            index += 2  # a ReLU follows
        index += 1  # a pooling layer follows
    return names
