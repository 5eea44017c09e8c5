"""Maps of two tasks: sizes, strides, what is shared and what is not."""

import pytest
import torch
import torch.nn.functional as F

from clsloc.checkpoint import Checkpointer
from clsloc.errors import UserError
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock


@pytest.fixture
def backbone(build_tiny):
    """A narrow backbone alone."""
    return lambda *args, **kwargs: build_tiny(*args, **kwargs).backbone


def sizes_and_strides(model, height, width):
    with torch.no_grad():
        maps = model.eval()(torch.zeros(1, 3, height, width))
    return {name: (*m.shape[-2:], model.output_shape()[name].stride) for name, m in maps.items()}


VGG_STRIDE_16 = ((37, 62, 16), (37, 56, 16))
RES_STRIDE_16 = ((38, 63, 16), (38, 57, 16))
VGG_STRIDE_8 = ((75, 125, 8), (75, 112, 8))
RES_STRIDE_8 = ((75, 125, 8), (76, 113, 8))


@pytest.mark.parametrize(
    "name, cls, loc",
    [
        ("vgg16_baseline", VGG_STRIDE_16, None),
        ("vgg16_detect_f", VGG_STRIDE_16, VGG_STRIDE_16),
        ("vgg16_nopool_loc", VGG_STRIDE_16, VGG_STRIDE_8),
        ("vgg16_nopool_cls", VGG_STRIDE_8, VGG_STRIDE_16),
        ("vgg16_conv_loc", VGG_STRIDE_16, VGG_STRIDE_16),
        ("vgg16_pool_s1_loc", VGG_STRIDE_16, VGG_STRIDE_8),
        ("R_50_baseline", RES_STRIDE_16, None),
        ("R_50_split", RES_STRIDE_16, RES_STRIDE_16),
        ("R_50_grcn", RES_STRIDE_16, RES_STRIDE_8),
        ("R_50_det", RES_STRIDE_16, None),
    ],
)
def test_maps_have_the_size_and_the_stride_they_say(name, cls, loc, backbone):
    model = backbone(f"coco/{name}")
    for i, size in enumerate(((600, 1000), (601, 901))):
        expected = {"cls": cls[i]} | ({"loc": loc[i]} if loc else {})
        assert sizes_and_strides(model, *size) == expected


def test_pool_of_stride_1_by_hand():
    from grcn.vgg import pool_stride_1

    x = torch.arange(9.0).view(1, 1, 3, 3)
    expected = torch.tensor([[4.0, 5, 5], [7, 8, 8], [7, 8, 8]])
    assert torch.equal(pool_stride_1(x)[0, 0], expected)


@pytest.mark.parametrize("in_1x1", [True, False])
def test_a_stride_of_2_is_every_other_cell_only_with_the_stride_in_the_1x1(in_1x1):
    def block(stride):
        torch.manual_seed(0)
        return BottleneckBlock(
            8, 16, bottleneck_channels=8, stride=stride, norm="", stride_in_1x1=in_1x1
        )

    x = torch.randn(2, 8, 9, 12)
    difference = (block(2)(x) - block(1)(x[:, :, ::2, ::2])).abs().max().item()
    assert (difference < 1e-4) == in_1x1


@pytest.mark.parametrize("name", ["R_50_grcn", "R_50_split", "R_50_nostride_loc"])
def test_the_classification_map_is_that_of_the_plain_resnet(name, backbone):
    plain, split = backbone("coco/R_50_baseline"), backbone(f"coco/{name}")
    split.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 65, 90)
    expected = plain.eval()(x)["cls"]
    maps = split.eval()(x)
    assert torch.allclose(maps["cls"], expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    if name == "R_50_split":
        assert torch.equal(maps["cls"], maps["loc"])
    else:
        # The finer map is not the coarser one with cells between.
        loc = maps["loc"][:, :, ::2, ::2]
        assert (loc - expected).norm() > 0.1 * expected.norm()


@pytest.mark.parametrize("norm", ["FrozenBN", "GN", ""])
def test_basic_blocks_run_at_two_strides_with_the_same_weights(norm, backbone):
    """The maps are those of two plain ResNet-18, of stride 2 and of stride 1 in res4."""
    width = {"MODEL.RESNETS.STEM_OUT_CHANNELS": 32, "MODEL.RESNETS.RES2_OUT_CHANNELS": 32}
    small = {"MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.NORM": norm} | width
    plain = backbone("coco/R_50_baseline", small)
    split = backbone("coco/R_50_grcn", small, RES4_SPLIT=1)
    split.load_state_dict(plain.state_dict())
    assert split.output_shape()["cls"].stride == 16 and split.output_shape()["loc"].stride == 8
    image = torch.randn(2, 3, 70, 90)
    maps = split(image)
    close = {"rtol": 1e-4, "atol": 1e-5}
    assert torch.allclose(maps["cls"], plain(image)["cls"], **close)
    for conv in (plain.res4[0].conv1, plain.res4[0].shortcut):
        conv.stride = (1, 1)
    finer = plain.res3(plain.res2(plain.stem(image)))
    for block in plain.res4:
        finer = BasicBlock.forward(block, finer)
    assert torch.allclose(maps["loc"], finer, **close)


def test_vgg_maps_by_hand(backbone):
    model = backbone("coco/vgg16_grcn")
    with torch.no_grad():
        model.conv5_loc.conv1.weight.mul_(-1)
    image = torch.randn(1, 3, 64, 96)
    shared = model.conv1(image)
    for block in (model.conv2, model.conv3, model.conv4):
        shared = block(F.max_pool2d(shared, 2))
    maps = model(image)
    assert torch.equal(maps["loc"], model.conv5_loc(shared))
    assert torch.equal(maps["cls"], model.conv5(F.max_pool2d(shared, 2)))
    assert maps["loc"].shape[-2:] == (8, 12)


@pytest.mark.parametrize("block", [1, 2, 3, 4, 5])
def test_vgg_splits_at_any_block(block, backbone):
    model = backbone("coco/vgg16_baseline", SPLIT_BLOCK=block, LOC_DOWN="none")
    copies = {n for n, _ in model.named_children() if n.endswith("_loc")}
    assert copies == {f"conv{i}_loc" for i in range(block, 6)}
    assert sizes_and_strides(model, 64, 96) == {"cls": (4, 6, 16), "loc": (8, 12, 8)}
    plain = backbone("coco/vgg16_baseline", SPLIT_BLOCK=5, LOC_DOWN="none")
    image = torch.randn(1, 3, 64, 96)
    # Copies start equal, and only pool4 is replaced.
    assert torch.allclose(model(image)["loc"], plain.train()(image)["loc"])


def calls(module, run):
    count = []
    handle = module.register_forward_hook(lambda *_: count.append(1))
    run()
    handle.remove()
    return len(count)


@pytest.mark.parametrize(
    "name, times",
    [("R_50_baseline", (1, 1, 0)), ("R_50_split", (1, 1, 1)), ("R_50_grcn", (2, 1, 1))],
)
def test_nothing_runs_more_often_than_it_has_to(name, times, backbone):
    model = backbone(f"coco/{name}")
    image = torch.randn(1, 3, 64, 96)
    shared, own, copy = times
    assert calls(model.stem, lambda: model(image)) == 1
    assert calls(model.res3, lambda: model(image)) == 1
    for i in range(4):
        assert calls(model.res4[i], lambda: model(image)) == shared
    assert calls(model.res4[5], lambda: model(image)) == own
    if copy:
        assert calls(model.res4_loc[0], lambda: model(image)) == copy


@pytest.mark.parametrize("config", ["coco/R_50_grcn", "coco/vgg16_grcn"])
def test_gradients_of_shared_layers_add_up_and_own_layers_are_isolated(config, backbone):
    model = backbone(config).double()
    image = torch.randn(1, 3, 64, 96).double()

    def gradients(*tasks):
        model.zero_grad()
        maps = model(image)
        sum(maps[task].square().mean() for task in tasks).backward()
        return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

    cls, loc, both = gradients("cls"), gradients("loc"), gradients("cls", "loc")
    shared = [n for n in both if cls[n] is not None and loc[n] is not None]
    own = "res4.4.conv1.weight" if "R_50" in config else "conv5.conv1.weight"
    copy = "res4_loc.0.conv1.weight" if "R_50" in config else "conv5_loc.conv1.weight"
    assert loc[own] is None and cls[copy] is None
    assert cls[own] is not None and loc[copy] is not None
    first = "res4.0.conv1.weight" if "R_50" in config else "conv4.conv1.weight"
    assert first in shared
    for name in shared:
        assert torch.allclose(both[name], cls[name] + loc[name])


@pytest.mark.parametrize("config", ["coco/R_50_grcn", "coco/vgg16_grcn", "coco/vgg16_detect_rf"])
def test_copies_start_as_their_sources_then_go_their_own_way_and_stay_so(
    config, build_tiny, tmp_path
):
    source = build_tiny(config, seed=1).state_dict()
    marks = ("res4_loc.", "conv5_loc.", "_copy.")
    pretrained = {n: t for n, t in source.items() if not any(mark in n for mark in marks)}
    torch.save({"model": pretrained}, tmp_path / "pretrained.pth")

    def copies(model):
        """Pairs (copy, source)."""
        tensors, pairs = model.state_dict(), []
        for name, tensor in tensors.items():
            if "res4_loc." in name:
                index = int(name.split("res4_loc.")[1].split(".")[0])
                original = name.replace(f"res4_loc.{index}", f"res4.{4 + index}")
            else:
                original = name.replace("conv5_loc", "conv5").replace("_copy", "")
            if original != name:
                pairs.append((tensor, tensors[original]))
        return pairs

    model = build_tiny(config, seed=2)
    Checkpointer(model, complete=True).load(str(tmp_path / "pretrained.pth"))
    assert len(copies(model)) >= 2
    assert all(torch.equal(copy, original) for copy, original in copies(model))
    with torch.no_grad():
        for copy, _ in copies(model):
            copy += 1
    torch.save({"model": model.state_dict()}, tmp_path / "resumed.pth")
    other = build_tiny(config, seed=3)
    Checkpointer(other, complete=True).load(str(tmp_path / "resumed.pth"))
    assert not any(torch.equal(copy, original) for copy, original in copies(other))
    assert all(
        torch.equal(a, b) for a, b in zip(other.state_dict().values(), model.state_dict().values())
    )


@pytest.mark.parametrize(
    "config, frozen",
    [
        ("coco/vgg16_grcn", {"conv1", "conv2"}),
        ("coco/R_50_grcn", {"stem", "res2"}),
    ],
)
def test_the_first_layers_are_frozen(config, frozen, backbone):
    model = backbone(config, {"MODEL.BACKBONE.FREEZE_AT": 2})
    found = {n.split(".")[0] for n, p in model.named_parameters() if not p.requires_grad}
    assert found == frozen


def test_frozen_blocks_are_frozen_in_both_paths(backbone):
    freeze = {"MODEL.BACKBONE.FREEZE_AT": 2}
    model = backbone("coco/vgg16_baseline", freeze, SPLIT_BLOCK=1)
    found = {n.split(".")[0] for n, p in model.named_parameters() if not p.requires_grad}
    assert found == {"conv1", "conv2", "conv1_loc", "conv2_loc"}


def test_pyramids_share_the_bottom_up_network(backbone):
    model = backbone("coco/R_50_FPN_grcn")
    image = torch.randn(1, 3, 64, 96)
    assert calls(model.bottom_up, lambda: model(image)) == 1
    maps = model(image)
    assert list(maps) == [f"{task}_p{i}" for task in ("cls", "loc") for i in range(2, 7)]
    assert {n: s.stride for n, s in model.output_shape().items()} == {
        n: 2 ** int(n[-1]) for n in maps
    }
    assert not torch.equal(maps["cls_p3"], maps["loc_p3"])


CONTRADICTIONS = [
    ("vgg16_baseline", {"CLS_DOWN": "none"}, "CLS_DOWN 'none' needs a map for each task"),
    ("vgg16_baseline", {"LOC_DOWN": "conv"}, "LOC_DOWN 'conv' needs a map for each task"),
    ("R_50_baseline", {"LOC_DOWN": "none"}, "RES4_SPLIT above 0"),
    ("R_50_split", {"LOC_DOWN": "conv"}, "LOC_DOWN must be one of keep, none, got 'conv'"),
    ("R_50_split", {"LOC_DOWN": "pool_s1"}, "LOC_DOWN must be one of keep, none"),
    ("vgg16_nopool_loc", {"CLS_DOWN": "conv"}, "CLS_DOWN must be one of keep, none"),
    ("vgg16_detect_f", {"HEAD": "double"}, "HEAD 'double'"),
    ("vgg16_context_cls", {"HEAD": "double"}, "HEAD 'double'"),
    ("vgg16_baseline", {"HEAD": "two"}, "HEAD must be one of shared"),
    ("R_50_det", {"RES4_SPLIT": 2}, "RES_DET is a baseline of its own"),
    ("R_50_det", {"CONTEXT__CLS": True}, "RES_DET is a baseline of its own"),
    ("R_50_det", {"HEAD": "separate"}, "RES_DET is a baseline of its own"),
    ("R_50_det", {"RES_DET_HEAD": "fc3"}, "RES_DET_HEAD must be one of fc2"),
    ("R_50_baseline", {"RES_DET_HEAD": "conv2"}, "needs MODEL.GRCN.RES_DET True"),
    ("R_50_baseline", {"RES5_STRIDE": 3}, "RES5_STRIDE must be one of 1, 2, got 3"),
    ("R_50_baseline", {"RES4_SPLIT": 6}, r"RES4_SPLIT must lie in \[0, 5\]"),
    ("R_50_baseline", {"SPLIT_BLOCK": 5}, "SPLIT_BLOCK is for VGG16, and the backbone is ResNet"),
    ("R_50_baseline", {"VGG_DROPOUT": 0.1}, "VGG_DROPOUT is for VGG16"),
    ("vgg16_baseline", {"VGG_DROPOUT": 1.0}, "VGG_DROPOUT must lie in"),
    ("vgg16_baseline", {"SPLIT_BLOCK": 6}, r"SPLIT_BLOCK must lie in \[0, 5\]"),
    ("vgg16_baseline", {"RES4_SPLIT": 2}, "RES4_SPLIT is for ResNet, and the backbone is VGG16"),
    ("vgg16_baseline", {"RES_DET": True}, "RES_DET is for ResNet"),
    ("vgg16_baseline", {"RES5_STRIDE": 2}, "RES5_STRIDE is for ResNet"),
    ("R_50_det", {"RES5_STRIDE": 2}, "RES5_STRIDE 2 is for RoIs that go through conv5"),
    ("vgg16_baseline", {"FPN_SPLIT": True}, "FPN_SPLIT is for FPN"),
    ("R_50_FPN_grcn", {"LOC_DOWN": "none"}, "LOC_DOWN must be one of keep"),
]


@pytest.mark.parametrize("config, keys, message", CONTRADICTIONS)
def test_contradictions_are_refused(config, keys, message, tiny_cfg):
    with pytest.raises(UserError, match=message), torch.device("meta"):
        build_backbone(tiny_cfg(f"coco/{config}", **keys))


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"MODEL.RESNETS.STRIDE_IN_1X1": False}, "STRIDE_IN_1X1 to True"),
        ({"MODEL.RESNETS.NORM": "BN"}, "batch statistics would mix"),
        ({"MODEL.RESNETS.DEPTH": 20}, "DEPTH must be one of 18, 34, 50, 101, 152, got 20"),
        ({"MODEL.RESNETS.RES5_DILATION": 2}, "RES5_DILATION to 1"),
        (
            {
                "MODEL.BACKBONE.NAME": "build_resnet_backbone",
                "MODEL.RPN.IN_FEATURES": ["res4"],
                "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],
            },
            "BACKBONE.NAME to be one of",
        ),
        ({"MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": True}, "TRAIN_ON_PRED_BOXES True .* G-RCN"),
        (
            {"MODEL.GRCN.RES5_STRIDE": 2, "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead"},
            "RES5_STRIDE 2 is for RoIs that go through conv5",
        ),
    ],
)
def test_other_parts_that_do_not_fit_are_refused(overrides, message, build_tiny):
    with pytest.raises(UserError, match=message):
        build_tiny("coco/R_50_grcn", overrides)
