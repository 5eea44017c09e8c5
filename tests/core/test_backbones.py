"""Deformable ResNets and Res2Net."""

import pytest
import torch

from clsloc.backbones import (
    BottomUpMaps,
    Res2Block,
    build_deform_resnet_backbone,
    build_res2net_backbone,
)
from clsloc.errors import UserError
from clsloc.layers import DeformConv2d
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, build_resnet_backbone


def small_cfg(**keys):
    cfg = get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res5"]
    cfg.MODEL.RESNETS.NUM_GROUPS = 2
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    for key, value in keys.items():
        cfg.MODEL.RESNETS[key] = value
    return cfg


def test_it_starts_as_the_plain_network_with_its_parameters():
    cfg = small_cfg(DEFORM_ON_PER_STAGE=[True, False, True, True])
    shape = ShapeSpec(channels=3)
    deformable = build_deform_resnet_backbone(cfg, shape).eval()
    plain = build_resnet_backbone(small_cfg(), shape).eval()
    missing, unexpected = plain.load_state_dict(deformable.state_dict(), strict=False)
    assert not missing and all(".conv2.offset." in name for name in unexpected)
    for block in [*deformable.res2, *deformable.res4]:
        assert isinstance(block.conv2, DeformConv2d)
    assert not any(isinstance(block.conv2, DeformConv2d) for block in deformable.res3)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = deformable(x), plain(x)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)
    # FREEZE_AT 2 holds for the offsets too.
    assert not any(p.requires_grad for p in deformable.res2.parameters())
    deformable(x)["res5"].sum().backward()
    assert deformable.res4[0].conv2.offset.weight.grad.any()
    assert cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE == [True, False, True, True]


def test_without_deformable_stages_it_is_detectron2s():
    backbone = build_deform_resnet_backbone(small_cfg(), ShapeSpec(channels=3))
    assert not any(isinstance(module, DeformConv2d) for module in backbone.modules())


def test_a_pyramid_on_maps_is_that_on_their_network():
    network = build_resnet_backbone(small_cfg(), ShapeSpec(channels=3)).eval()
    whole = FPN(network, ["res3"], 8)
    on_maps = FPN(BottomUpMaps(network.output_shape()), ["res3"], 8)
    on_maps.load_state_dict(
        {k: v for k, v in whole.state_dict().items() if not k.startswith("bottom_up.")}
    )
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(on_maps(network(x))["p3"], whole(x)["p3"])


def res2net(**keys):
    cfg = get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.BACKBONE.FREEZE_AT = 0  # a frozen norm has no parameters
    for key, value in keys.items():
        cfg.MODEL.RESNETS[key] = value
    with torch.device("meta"):
        return build_res2net_backbone(cfg, ShapeSpec(channels=3))


@pytest.mark.parametrize(
    "stages, norm, size",
    [
        ([False] * 4, "FrozenBN", 43_057_732),
        ([False] * 4, "BN", 43_057_732 + 119_188),
        ([False, True, True, True], "FrozenBN", 43_057_732 + 1_568_484),
    ],
)
def test_size_of_res2net_101(stages, norm, size):
    backbone = res2net(DEPTH=101, DEFORM_ON_PER_STAGE=stages, NORM=norm)
    assert sum(p.numel() for p in backbone.parameters()) == size
    shapes = backbone.output_shape()
    assert {name: (s.channels, s.stride) for name, s in shapes.items()} == {
        "res3": (512, 8),
        "res4": (1024, 16),
        "res5": (2048, 32),
    }
    deformable = [m for m in backbone.modules() if isinstance(m, DeformConv2d)]
    assert len(deformable) == (3 * (4 + 23 + 3) if any(stages) else 0)


def test_there_is_no_res2net_18():
    with pytest.raises(UserError, match="DEPTH 18: choose one of 50, 101"):
        res2net(DEPTH=18)


@pytest.mark.parametrize("first", [True, False])
def test_groups_of_a_block_are_a_cascade_unless_it_is_the_first(first):
    """A change of the first group reaches the second only through the cascade."""
    block = Res2Block(8, 8, width=2, first=first, norm="").double()
    x = torch.randn(1, 8, 5, 5).double()
    seen = []
    block.conv3.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    block(x)
    with torch.no_grad():
        block.convs[0].weight.mul_(2)
    block(x)
    changed = [not torch.equal(a, b) for a, b in zip(*(s.split(2, dim=1) for s in seen))]
    assert changed == [True, not first, not first, False]


@pytest.mark.parametrize("size", [(5, 7), (4, 4)])
def test_a_block_with_stride_halves_the_map(size):
    block = Res2Block(8, 16, width=2, stride=2, first=True)
    assert block(torch.randn(2, 8, *size)).shape == (2, 16, (size[0] + 1) // 2, (size[1] + 1) // 2)
