"""VGG16 block by block, and from torchvision."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import vgg16

from clsloc.checkpoint.vgg16 import convert_vgg16
from clsloc.errors import UserError
from clsloc.layers import VGGBlock, make_vgg16_blocks


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_sizes():
    with torch.device("meta"):
        blocks = make_vgg16_blocks()
    assert [count(block) for block in blocks][-1] == 7_079_424
    assert sum(map(count, blocks)) == 14_714_688
    assert [block.out_channels for block in blocks] == [64, 128, 256, 512, 512]


def test_a_block_is_convolutions_with_relu_and_keeps_size_and_input():
    block = VGGBlock(2, 3, 2)
    x = torch.randn(1, 2, 5, 7)
    before = x.clone()
    hidden = F.relu(F.conv2d(x, block.conv1.weight, block.conv1.bias, padding=1))
    expected = F.relu(F.conv2d(hidden, block.conv2.weight, block.conv2.bias, padding=1))
    assert torch.allclose(block(x), expected, atol=1e-6) and expected.std() > 0.05
    assert torch.equal(x, before)


def test_conversion_has_every_tensor_of_torchvision_but_the_last_layer():
    with torch.device("meta"):
        state = vgg16().state_dict()
    converted = convert_vgg16(state)
    assert len(converted) == 2 * (13 + 2)
    assert converted["conv1.conv1.weight"].shape == (64, 3, 3, 3)
    assert converted["conv3.conv1.weight"].shape == (256, 128, 3, 3)
    assert converted["head.fc6.weight"].shape == (4096, 25088)
    assert converted["head.fc7.weight"].shape == (4096, 4096)
    with torch.device("meta"):
        names = nn.ModuleDict({f"conv{i + 1}": b for i, b in enumerate(make_vgg16_blocks())})
    shapes = {name: tensor.shape for name, tensor in names.state_dict().items()}
    assert {n: t.shape for n, t in converted.items() if not n.startswith("head")} == shapes


def test_converted_convolutions_compute_the_same():
    torch.manual_seed(0)
    features = vgg16().features
    state = features.state_dict(prefix="features.")
    state |= {f"classifier.{i}.{k}": torch.zeros(1) for i in (0, 3) for k in ("weight", "bias")}
    converted = convert_vgg16(state)
    blocks = nn.ModuleDict({f"conv{i + 1}": b for i, b in enumerate(make_vgg16_blocks())})
    blocks.load_state_dict({n: t for n, t in converted.items() if not n.startswith("head")})
    x = torch.randn(1, 3, 32, 48)
    expected = features[:-1](x)  # without pool5
    for number in range(1, 6):
        x = blocks[f"conv{number}"](x if number == 1 else F.max_pool2d(x, 2))
    assert torch.allclose(x, expected, rtol=1e-4, atol=1e-6) and expected.abs().max() > 1e-4


def test_another_network_is_refused():
    with pytest.raises(UserError, match="in the file: it needs the state dict of torch"):
        convert_vgg16({"conv1.weight": torch.zeros(1)})
    with torch.device("meta"):
        state = vgg16().state_dict()
    state["features.0.weight"] = torch.zeros(3, 3, 3, 3)
    with pytest.raises(UserError, match="conv1 has 3 channels in place of 64"):
        convert_vgg16(state)
