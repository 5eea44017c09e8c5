"""ResNet, FPN and the names of the packages, on either Detectron2."""

import importlib

import pytest
import torch
from torch import nn

from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, ResNet, build_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, make_stage

RES = ["res2", "res3", "res4", "res5"]


def _cfg(name: str = "build_resnet_backbone", **resnets) -> CfgNode:
    """A config with all four stages out; ``resnets`` are keys of MODEL.RESNETS."""
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = RES
    for key, value in resnets.items():
        cfg.MODEL.RESNETS[key] = value
    return cfg


def _tiny_resnet(**kwargs) -> ResNet:
    """Two stages of one basic block each, 4 and 8 channels wide."""
    stages = [
        ResNet.make_stage(BasicBlock, 1, in_channels=4, out_channels=4),
        ResNet.make_stage(BasicBlock, 1, in_channels=4, out_channels=8, stride_per_block=[2]),
    ]
    return ResNet(BasicStem(3, 4), stages, **kwargs)


# --- blocks and stages ---------------------------------------------------------------------------


def test_basic_block_adds_its_input():
    block = BasicBlock(2, 2, norm="")
    for conv in (block.conv1, block.conv2):
        nn.init.dirac_(conv.weight)
    x = torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(block(x), (x.relu() + x).relu())
    assert block.shortcut is None


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_bottleneck_block_places_its_stride(stride_in_1x1):
    block = BottleneckBlock(
        8, 16, bottleneck_channels=4, stride=2, num_groups=2, stride_in_1x1=stride_in_1x1
    )
    strides = [conv.stride[0] for conv in (block.conv1, block.conv2, block.conv3, block.shortcut)]
    assert strides == [2, 1, 1, 2] if stride_in_1x1 else [1, 2, 1, 2]
    assert block.conv2.weight.shape == (4, 2, 3, 3)
    assert block(torch.randn(1, 8, 6, 6)).shape == (1, 16, 3, 3)


def test_make_stage_spreads_lists_over_blocks():
    blocks = make_stage(
        BottleneckBlock,
        2,
        in_channels=8,
        out_channels=16,
        bottleneck_channels=4,
        stride_per_block=[2, 1],
        dilation_per_block=[1, 2],
    )
    assert [(b.in_channels, b.out_channels, b.stride) for b in blocks] == [(8, 16, 2), (16, 16, 1)]
    assert [b.conv2.dilation[0] for b in blocks] == [1, 2]
    arguments = {"in_channels": 8, "out_channels": 16, "stride_per_block": [2]}
    with pytest.raises(AssertionError):
        make_stage(BasicBlock, 2, **arguments)
    with pytest.raises(AssertionError):
        make_stage(BasicBlock, 1, **arguments, stride=2)


@pytest.mark.parametrize(
    ("depth", "blocks", "channels"),
    [
        (18, [2, 2, 2, 2], 512),
        (34, [3, 4, 6, 3], 512),
        (50, [3, 4, 6, 3], 2048),
        (101, [3, 4, 23, 3], 2048),
        (152, [3, 8, 36, 3], 2048),
    ],
)
def test_default_stages(depth, blocks, channels):
    with torch.device("meta"):
        stages = ResNet.make_default_stages(depth)
    assert [len(stage) for stage in stages] == blocks
    assert [stage[0].stride for stage in stages] == [1, 2, 2, 2]
    assert stages[-1][-1].out_channels == channels


# --- ResNet --------------------------------------------------------------------------------------


def test_resnet_outputs():
    resnet = _tiny_resnet(out_features=["stem", "res3"])
    out = resnet(torch.randn(1, 3, 32, 48))
    assert {name: tuple(map_.shape) for name, map_ in out.items()} == {
        "stem": (1, 4, 8, 12),
        "res3": (1, 8, 4, 6),
    }
    assert resnet.output_shape() == {
        "stem": ShapeSpec(channels=4, stride=4),
        "res3": ShapeSpec(channels=8, stride=8),
    }
    assert resnet.size_divisibility == 0 and resnet.padding_constraints == {}
    assert list(_tiny_resnet()(torch.randn(1, 3, 32, 32))) == ["res3"]


def test_resnet_drops_stages_that_nobody_asked_for():
    assert [name for name, _ in _tiny_resnet(out_features=["res2"]).named_children()] == [
        "stem",
        "res2",
    ]
    with pytest.raises(AssertionError):
        _tiny_resnet(out_features=["res9"])


def test_resnet_classifies():
    resnet = _tiny_resnet(num_classes=5)
    assert resnet(torch.randn(2, 3, 32, 32))["linear"].shape == (2, 5)
    wide = _tiny_resnet(num_classes=1000)
    assert wide.linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
    with pytest.raises(AssertionError):
        resnet(torch.randn(3, 32, 32))


@pytest.mark.parametrize(
    ("freeze_at", "frozen"), [(0, []), (1, ["stem"]), (2, ["stem", "res2"]), (5, ["stem", *RES])]
)
def test_resnet_freezes(freeze_at, frozen):
    resnet = _tiny_resnet()
    assert resnet.freeze(freeze_at) is resnet
    for name, module in resnet.named_children():
        is_frozen = name in frozen
        assert all(p.requires_grad != is_frozen for p in module.parameters())
        norms = [m for m in module.modules() if isinstance(m, FrozenBatchNorm2d)]
        assert bool(norms) == is_frozen


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        # torchvision's counts without the classifier and, with FrozenBN, without norms.
        ({"DEPTH": 18, "RES2_OUT_CHANNELS": 64, "NORM": "BN"}, 11_176_512),
        ({"DEPTH": 50}, 23_454_912),
        ({"NUM_GROUPS": 32, "WIDTH_PER_GROUP": 4, "NORM": "BN"}, 22_979_904),
    ],
)
def test_resnet_has_as_many_parameters_as_published(arguments, parameters):
    cfg = _cfg(**arguments)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    with torch.device("meta"):
        assert sum(p.numel() for p in build_backbone(cfg).parameters()) == parameters


def test_resnet_dilation_replaces_the_last_stride():
    with torch.device("meta"):
        resnet = build_backbone(_cfg(RES5_DILATION=2))
    assert resnet.output_shape()["res5"] == ShapeSpec(channels=2048, stride=16)
    assert {block.conv2.dilation for block in resnet.res5} == {(2, 2)}
    assert {block.conv2.stride for block in resnet.res5} == {(1, 1)}


@pytest.mark.parametrize(
    "wrong", [{"RES2_OUT_CHANNELS": 256}, {"RES5_DILATION": 2}, {"NUM_GROUPS": 2}]
)
def test_small_resnets_refuse_what_they_lack(wrong):
    cfg = _cfg(**{"DEPTH": 18, "RES2_OUT_CHANNELS": 64, **wrong})
    with pytest.raises(AssertionError, match=next(iter(wrong))):
        build_backbone(cfg)


def test_random_numbers_do_not_depend_on_the_outputs():
    small = {"DEPTH": 18, "RES2_OUT_CHANNELS": 64}
    after = []
    for outputs in (RES, ["res3"]):
        torch.manual_seed(0)
        build_backbone(_cfg(**small, OUT_FEATURES=outputs))
        after.append(torch.rand(1))
    assert torch.equal(*after)


# --- FPN -----------------------------------------------------------------------------------------


def _tiny_fpn(**kwargs) -> FPN:
    return FPN(_tiny_resnet(out_features=["res2", "res3"]), ["res2", "res3"], 4, **kwargs)


def test_fpn_outputs():
    fpn = _tiny_fpn(top_block=LastLevelP6P7(8, 4, in_feature="res3"))
    out = fpn(torch.randn(1, 3, 32, 48))
    assert {name: tuple(map_.shape[-2:]) for name, map_ in out.items()} == {
        "p2": (8, 12),
        "p3": (4, 6),
        "p4": (2, 3),
        "p5": (1, 2),
    }
    assert fpn.output_shape() == {f"p{k}": ShapeSpec(channels=4, stride=2**k) for k in (2, 3, 4, 5)}
    assert fpn.size_divisibility == 8 and fpn.padding_constraints == {"square_size": 0}
    assert list(_tiny_fpn()(torch.randn(1, 3, 32, 32))) == ["p2", "p3"]


@pytest.mark.parametrize(("fuse_type", "factor"), [("sum", 1.0), ("avg", 0.5)])
def test_fpn_merges_from_coarse_to_fine(fuse_type, factor):
    fpn = _tiny_fpn(fuse_type=fuse_type).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        bottom_up, out = fpn.bottom_up(x), fpn(x)
        top = fpn.fpn_lateral3(bottom_up["res3"])
        torch.testing.assert_close(out["p3"], fpn.fpn_output3(top))
        enlarged = top.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        merged = (fpn.fpn_lateral2(bottom_up["res2"]) + enlarged) * factor
        torch.testing.assert_close(out["p2"], fpn.fpn_output2(merged))


def test_top_blocks():
    x = torch.arange(25.0).view(1, 1, 5, 5)
    (pooled,) = LastLevelMaxPool()(x)
    assert torch.equal(pooled, x[:, :, ::2, ::2])
    block = LastLevelP6P7(1, 1)
    p6, p7 = block(x)
    assert p6.shape == (1, 1, 3, 3) and p7.shape == (1, 1, 2, 2)
    torch.testing.assert_close(p7, block.p7(p6.relu()))


def test_fpn_refuses():
    resnet = _tiny_resnet(out_features=["res2", "res3"])
    with pytest.raises(AssertionError):
        FPN(resnet, [], 4)
    with pytest.raises(AssertionError):
        FPN(resnet, ["res3", "res2"], 4)
    with pytest.raises(AssertionError):
        FPN(resnet, ["res2", "res3"], 4, fuse_type="max")


# Sums of absolute weights of ResNet-18 with FPN (width 8) built at seed 3, from Detectron2 (main,
# June 2026), and the first random number after it.
GOLDEN_WEIGHTS = {
    "bottom_up.stem.conv1.weight": 190.31265,
    "bottom_up.res2.0.conv1.weight": 1734.86223,
    "bottom_up.res3.0.shortcut.weight": 804.20659,
    "bottom_up.res5.1.conv2.weight": 39192.52812,
    "fpn_lateral2.weight": 56.55734,
    "fpn_output2.weight": 59.22051,
    "fpn_lateral5.weight": 157.47155,
    "fpn_output5.weight": 60.86136,
}
GOLDEN_NEXT_RANDOM_NUMBER = 0.9233601


def test_equal_seeds_give_equal_weights():
    cfg = _cfg("build_resnet_fpn_backbone", DEPTH=18, RES2_OUT_CHANNELS=64)
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    torch.manual_seed(3)
    state = build_backbone(cfg).state_dict()
    sums = {name: value.double().abs().sum().item() for name, value in state.items()}
    assert {name: sums[name] for name in GOLDEN_WEIGHTS} == pytest.approx(GOLDEN_WEIGHTS, rel=1e-5)
    assert torch.rand(1).item() == pytest.approx(GOLDEN_NEXT_RANDOM_NUMBER)


# --- registry and names --------------------------------------------------------------------------


class _OneMap(Backbone):
    def forward(self, x):
        return {"map": x}

    def output_shape(self):
        return {"map": ShapeSpec(channels=3, stride=1)}


def test_backbones_can_be_registered(monkeypatch):
    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, "OneMap", lambda cfg, shape: _OneMap())
    assert isinstance(build_backbone(_cfg("OneMap")), _OneMap)
    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, "Wrong", lambda cfg, shape: nn.ReLU())
    with pytest.raises(AssertionError):
        build_backbone(_cfg("Wrong"))
    with pytest.raises(KeyError, match="NoSuchBackbone"):
        build_backbone(_cfg("NoSuchBackbone"))
    with pytest.raises(TypeError):
        Backbone()


NAMES = {
    "structures": """
        BitMasks Keypoints PolygonMasks ROIMasks RotatedBoxes pairwise_iou_rotated
        heatmaps_to_keypoints polygons_to_bitmask
    """,
    "layers": """
        ASPP BatchNorm2d ConvTranspose2d DeformConv ModulatedDeformConv ROIAlignRotated
        batched_nms_rotated empty_input_loss_func_wrapper interpolate move_device_like nms
        nms_rotated paste_masks_in_image roi_align roi_align_rotated
    """,
    "modeling": """
        ANCHOR_GENERATOR_REGISTRY BaseKeypointRCNNHead BaseMaskRCNNHead DatasetMapperTTA
        FCOS FastRCNNOutputLayers GeneralizedRCNN GeneralizedRCNNWithTTA META_ARCH_REGISTRY
        MMDetBackbone MMDetDetector MViT PROPOSAL_GENERATOR_REGISTRY PanopticFPN
        ProposalNetwork ROIHeads ROI_BOX_HEAD_REGISTRY ROI_HEADS_REGISTRY
        ROI_KEYPOINT_HEAD_REGISTRY ROI_MASK_HEAD_REGISTRY RPN_HEAD_REGISTRY ResNetBlockBase
        RetinaNet SEM_SEG_HEADS_REGISTRY SemanticSegmentor ShapeSpec SimpleFeaturePyramid
        StandardROIHeads SwinTransformer ViT build_box_head build_keypoint_head
        build_mask_head build_model build_proposal_generator build_resnet_backbone
        build_roi_heads build_rpn_head build_sem_seg_head get_vit_lr_decay_rate make_stage
    """,
    "modeling.backbone": """
        BasicStem BottleneckBlock MViT RegNet SimpleFeaturePyramid SwinTransformer ViT
        get_vit_lr_decay_rate
    """,
    "modeling.backbone.resnet": "DeformBottleneckBlock",
    "modeling.box_regression": "Box2BoxTransformRotated",
    "modeling.anchor_generator": "RotatedAnchorGenerator",
    "modeling.postprocessing": "sem_seg_postprocess",
}


@pytest.mark.parametrize("package", NAMES)
def test_every_public_name_can_be_imported(package):
    module = importlib.import_module(f"detectron2.{package}")
    missing = [name for name in NAMES[package].split() if not hasattr(module, name)]
    assert not missing
