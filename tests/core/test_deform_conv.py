"""Both implementations of deformable convolution, against each other and the plain one."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import deform_conv2d

from clsloc.errors import UserError
from clsloc.layers import DeformConv2d
from clsloc.layers.deform_conv import deform_conv_by_sampling
from detectron2.layers import Conv2d, get_norm


@pytest.mark.parametrize("implementation", ["auto", "torchvision", "sampling"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 6)])
def test_at_the_start_it_is_the_plain_convolution(implementation, size):
    layer = DeformConv2d(4, 6, 3, padding=1, implementation=implementation)
    x = torch.randn(2, 4, *size)
    assert not layer.offset.weight.any() and not layer.offset.bias.any()
    expected = F.conv2d(x, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["torchvision", "sampling"])
def test_even_channels_shift_rows(implementation):
    layer = DeformConv2d(4, 6, 3, padding=1, implementation=implementation)
    with torch.no_grad():
        layer.offset.bias[0::2] = 1.0
    x = torch.randn(1, 4, 6, 5)
    plain = F.conv2d(x, layer.weight, layer.bias, padding=1)
    # The last two rows see what lies below the map.
    torch.testing.assert_close(layer(x)[:, :, :-2], plain[:, :, 1:-1], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        layer.offset.bias[:] = 0.0
        layer.offset.bias[1::2] = 1.0
    torch.testing.assert_close(layer(x)[..., :-2], plain[..., 1:-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "groups, deform_groups, stride, dilation, modulated",
    [(1, 1, 1, 1, False), (2, 1, 2, 1, False), (1, 2, 1, 2, True), (4, 4, 2, 1, True)],
)
def test_both_implementations_agree_with_gradients(
    groups, deform_groups, stride, dilation, modulated
):
    inputs = {
        "x": torch.randn(2, 8, 9, 11),
        "weight": torch.randn(12, 8 // groups, 3, 3),
        "bias": torch.randn(12),
    }
    shape = {"stride": (stride,) * 2, "padding": (dilation,) * 2, "dilation": (dilation,) * 2}
    out = F.conv2d(inputs["x"], inputs["weight"], groups=groups, **shape).shape[-2:]
    inputs["offset"] = torch.randn(2, 18 * deform_groups, *out) * 3
    if modulated:
        inputs["mask"] = torch.rand(2, 9 * deform_groups, *out)
    results = []
    for function, extra in ((deform_conv2d, {}), (deform_conv_by_sampling, {"groups": groups})):
        own = {name: value.clone().requires_grad_() for name, value in inputs.items()}
        leaves = list(own.values())
        result = function(own.pop("x"), **own, **shape, **extra)
        (result * torch.linspace(-1, 1, result.numel()).view_as(result)).sum().backward()
        results.append([result, *(leaf.grad for leaf in leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_offsets_from_the_start():
    layer = DeformConv2d(4, 6, 3, padding=1, bias=False, modulated=True)
    layer(torch.randn(1, 4, 6, 5)).square().sum().backward()
    assert layer.offset.weight.grad.abs().min() > 0
    assert layer.offset.bias.grad.abs().min() > 0


def test_it_replaces_a_plain_layer_with_its_weights_and_norm():
    norm = get_norm("FrozenBN", 8)
    plain = Conv2d(8, 8, 3, stride=2, padding=1, groups=2, bias=False, norm=norm)
    plain.norm.weight.uniform_(0.5, 2)
    plain.activation = F.relu
    layer = DeformConv2d.replacing(plain)
    x = torch.randn(2, 8, 7, 7)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-5, atol=1e-5)
    assert set(plain.state_dict()) < set(layer.state_dict())
    assert layer.weight is plain.weight


def test_half_precision_stays_finite_on_large_maps():
    layer = DeformConv2d(2, 2, 3, padding=1).to(torch.bfloat16)
    x = torch.randn(1, 2, 4, 600, dtype=torch.bfloat16)
    expected = F.conv2d(x, layer.weight, layer.bias, padding=1)
    assert layer(x).dtype == torch.bfloat16
    torch.testing.assert_close(layer(x), expected, rtol=0.05, atol=0.05)


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match="one of auto, torchvision, sampling, got 'cuda'"):
        DeformConv2d(4, 4, 3, implementation="cuda")
    with pytest.raises(UserError, match="4 channels do not divide into 3"):
        DeformConv2d(4, 4, 3, deform_groups=3)
