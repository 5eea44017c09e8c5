"""Deformable ResNets of the core."""

import torch

from clsloc.backbones import build_deform_resnet_backbone
from clsloc.layers import DeformConv2d
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_resnet_backbone


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
