"""Weights of other programs: names, order and meaning, against what those programs compute."""

from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from pytest import fixture, mark, raises
from torch import nn
from torchvision.ops import deform_conv2d

from clsloc.checkpoint import Checkpointer
from clsloc.checkpoint.convert import fit_model, lay_out, state_of
from clsloc.checkpoint.convert_backbones import convert_backbone
from clsloc.checkpoint.convert_detectors import convert_detector
from clsloc.engine import setup_cfg
from clsloc.errors import UserError
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model

PROJECTS = Path(__file__).resolve().parents[2] / "projects"
R18 = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.WEIGHTS", ""]
CPU = ["MODEL.DEVICE", "cpu"]
DOUBLE_HEAD = PROJECTS / "double_head/configs/double_head_ext_R_50_FPN_1x.yaml"


class State(dict):
    """A state dict that is written layer by layer, with random values."""

    def conv(self, name, out_channels, in_channels, kernel=1, bias=False):
        self[f"{name}.weight"] = torch.randn(out_channels, in_channels, kernel, kernel) * 0.05
        if bias:
            self[f"{name}.bias"] = torch.randn(out_channels) * 0.05

    def linear(self, name, out_features, in_features):
        self[f"{name}.weight"] = torch.randn(out_features, in_features) * 0.05
        self[f"{name}.bias"] = torch.randn(out_features) * 0.05

    def norm(self, name, channels, running=True):
        self[f"{name}.weight"] = torch.rand(channels) + 0.5
        self[f"{name}.bias"] = torch.randn(channels) * 0.1
        if running:
            self[f"{name}.running_mean"] = torch.randn(channels) * 0.1
            self[f"{name}.running_var"] = torch.rand(channels) + 0.5
            self[f"{name}.num_batches_tracked"] = torch.tensor(5)

    # What the layers compute.
    def run_conv(self, name, x, **kwargs):
        return F.conv2d(x, self[f"{name}.weight"], self.get(f"{name}.bias"), **kwargs)

    def run_linear(self, name, x):
        return F.linear(x, self[f"{name}.weight"], self[f"{name}.bias"])

    def run_norm(self, name, x):
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(self[f"{name}.{key}"] for key in keys))


@fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def close(found, wanted):
    error = (found - wanted).abs().max() / wanted.abs().max()
    assert found.shape == wanted.shape and error < 1e-5 and wanted.std() > 1e-3, float(error)


def randomised(model):
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.0)
            nn.init.normal_(layer.bias, std=0.1)
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return model.eval()


def our_backbone(conversion, name="build_resnet_backbone", norm="FrozenBN"):
    """The backbone that the conversion asks for, filled by it from end to end."""
    settings = {
        key: value
        for key, value in {**conversion.architecture, **conversion.settings}.items()
        if key.startswith("MODEL.RESNETS.")
    }
    settings |= {
        "MODEL.BACKBONE.NAME": name,
        "MODEL.RESNETS.NORM": norm,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    }
    cfg = setup_cfg(overrides=CPU + [x for pair in settings.items() for x in pair])
    backbone = build_backbone(cfg, ShapeSpec(channels=3)).eval()
    fit = fit_model(conversion, backbone.state_dict())
    assert fit.unfilled == []
    backbone.load_state_dict(fit.tensors)
    return backbone, fit


@mark.parametrize("norm", ["FrozenBN", "BN"])
@mark.parametrize(
    ("name", "source"),
    [
        ("resnet18", "ResNet-18"),
        ("resnet50", "ResNet-50"),
        ("resnext50_32x4d", "ResNeXt-50 32x4d"),
    ],
)
@torch.no_grad()
def test_a_converted_resnet_computes_what_torchvision_does(name, source, norm):
    theirs = randomised(getattr(torchvision.models, name)(weights=None))
    conversion = convert_backbone(theirs.state_dict())
    assert conversion.source == source
    backbone, fit = our_backbone(conversion, norm=norm)
    images = torch.randn(1, 3, 64, 96)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
    found = backbone(images)
    for i in range(1, 5):
        x = getattr(theirs, f"layer{i}")(x)
        close(found[f"res{i + 1}"], x)
    used = {*fit.origins.values()}
    assert used | {*fit.left_out} == {*theirs.state_dict()} and not used & {*fit.left_out}
    counters = {n for n in theirs.state_dict() if n.endswith("num_batches_tracked")}
    last = {"fc.weight", "fc.bias"}
    assert {*fit.left_out} == (last | counters if norm == "FrozenBN" else last)


@mark.parametrize(
    ("name", "source"),
    [
        ("resnet34", "ResNet-34"),
        ("resnet101", "ResNet-101"),
        ("resnext101_64x4d", "ResNeXt-101 64x4d"),
    ],
)
def test_larger_ones_have_a_place_for_each_tensor(name, source):
    with torch.device("meta"):
        conversion = convert_backbone(getattr(torchvision.models, name)(weights=None).state_dict())
        settings = {
            k: v for k, v in conversion.architecture.items() if k.startswith("MODEL.RESNETS.")
        }
        settings["MODEL.RESNETS.OUT_FEATURES"] = ["res5"]
        cfg = setup_cfg(overrides=CPU + [x for pair in settings.items() for x in pair])
        fit = fit_model(conversion, build_backbone(cfg, ShapeSpec(channels=3)).state_dict())
    assert conversion.source == source and fit.unfilled == []


def res2net(blocks, stem):
    """Version 1d of 26 x 4 channels, in the names of timm and its authors, or of MMDetection."""
    state = State()
    names = [f"{stem}.{i}" for i in (0, 1, 3, 4, 6)] + ["bn1" if stem == "conv1" else "stem.7"]
    for number, (in_channels, out_channels) in enumerate([(3, 32), (32, 32), (32, 64)]):
        state.conv(names[2 * number], out_channels, in_channels, 3)
        state.norm(names[2 * number + 1], out_channels)
    channels = 64
    for stage, count in enumerate(blocks):
        width, out_channels = 26 * 2**stage, 256 * 2**stage
        for i in range(count):
            name = f"layer{stage + 1}.{i}"
            state.conv(f"{name}.conv1", 4 * width, channels)
            state.norm(f"{name}.bn1", 4 * width)
            for k in range(3):
                state.conv(f"{name}.convs.{k}", width, width, 3)
                state.norm(f"{name}.bns.{k}", width)
            state.conv(f"{name}.conv3", out_channels, 4 * width)
            state.norm(f"{name}.bn3", out_channels)
            if i == 0:
                state.conv(f"{name}.downsample.1", out_channels, channels)
                state.norm(f"{name}.downsample.2", out_channels)
            channels = out_channels
    return state


def run_res2net(state, stem, x, pool_in_res2):
    """Per stage the output, as the authors of Res2Net define it."""
    last = "bn1" if stem == "conv1" else "stem.7"
    x = F.relu(state.run_norm(f"{stem}.1", state.run_conv(f"{stem}.0", x, stride=2, padding=1)))
    x = F.relu(state.run_norm(f"{stem}.4", state.run_conv(f"{stem}.3", x, padding=1)))
    x = F.relu(state.run_norm(last, state.run_conv(f"{stem}.6", x, padding=1)))
    x = F.max_pool2d(x, 3, 2, 1)
    outputs = []
    for stage in range(1, 5):
        i = 0
        while f"layer{stage}.{i}.conv1.weight" in state:
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            y = F.relu(state.run_norm(f"{name}.bn1", state.run_conv(f"{name}.conv1", x)))
            *groups, rest = y.chunk(4, dim=1)
            done = []
            for k, group in enumerate(groups):
                group = group + done[-1] if done and i > 0 else group
                z = state.run_conv(f"{name}.convs.{k}", group, stride=stride, padding=1)
                done.append(F.relu(state.run_norm(f"{name}.bns.{k}", z)))
            if i == 0 and (stride > 1 or pool_in_res2):
                rest = F.avg_pool2d(rest, 3, stride, 1)
            y = state.run_conv(f"{name}.conv3", torch.cat([*done, rest], dim=1))
            y = state.run_norm(f"{name}.bn3", y)
            if i == 0:
                x = F.avg_pool2d(x, stride, stride, ceil_mode=True, count_include_pad=False)
                x = state.run_conv(f"{name}.downsample.1", x)
                x = state.run_norm(f"{name}.downsample.2", x)
            x = F.relu(x + y)
            i += 1
        outputs.append(x)
    return outputs


@mark.parametrize("stem", ["conv1", "stem"])
@torch.no_grad()
def test_a_converted_res2net_computes_what_its_authors_say(stem):
    state = res2net((3, 4, 6, 3), stem)
    conversion = convert_backbone(state)
    assert conversion.source == "Res2Net-50"
    backbone, _ = our_backbone(conversion, "build_res2net_backbone")
    images = torch.randn(1, 3, 64, 96)
    found = backbone(images)
    for x, wanted in zip(found.values(), run_res2net(state, stem, images, False), strict=True):
        close(x, wanted)
    # The one difference, which the conversion tells.
    other = run_res2net(state, stem, images, True)[0]
    assert (found["res2"] - other).abs().max() > 0.01 and "timm" in conversion.notes[0]


def test_variants_without_a_place_are_refused():
    plain = torchvision.models.resnet18(weights=None).state_dict()
    with raises(UserError, match=r"layer1\.0\.se\.fc1\.weight"):
        convert_backbone(plain | {"layer1.0.se.fc1.weight": torch.zeros(1)})
    with raises(UserError, match="a stem of three convolutions"):
        convert_backbone(plain | {"conv1.0.weight": torch.zeros(32, 3, 3, 3)})
    with raises(UserError, match="2, 2, 2, 1 basic blocks"):
        convert_backbone({n: t for n, t in plain.items() if not n.startswith("layer4.1.")})
    state = {n: t for n, t in res2net((3, 4, 6, 3), "conv1").items() if "conv1." not in n}
    with raises(UserError, match="version 1d"):
        convert_backbone(state)
    assert convert_backbone({"a": torch.zeros(1)}) is None
    assert convert_detector({"a": torch.zeros(1)}) is None


def test_layouts_of_a_backbone_without_a_model():
    conversion = convert_backbone(torchvision.models.resnet18(weights=None).state_dict())
    assert "backbone.bottom_up.res5.1.conv2.norm.running_var" in lay_out(conversion, "fpn").tensors
    tensors = lay_out(conversion, "c4").tensors
    assert {"backbone.stem.conv1.weight", "roi_heads.res5.0.conv1.weight"} < {*tensors}
    assert "res3.0.shortcut.norm.bias" in lay_out(conversion, "bare").tensors


@torch.no_grad()
def test_vgg16_has_its_place_in_grcn():
    with torch.device("meta"):
        conversion = convert_backbone(torchvision.models.vgg16(weights=None).state_dict())
    cfg = setup_cfg(
        config_file=str(PROJECTS / "grcn/configs/voc/vgg16_grcn.yaml"),
        overrides=["MODEL.DEVICE", "meta", "MODEL.WEIGHTS", ""],
    )
    with torch.device("meta"):
        fit = fit_model(conversion, build_model(cfg).state_dict())
    assert len(fit.tensors) == 30
    assert {*fit.left_out} == {"classifier.6.weight", "classifier.6.bias"}
    assert fit.origins["roi_heads.box_head.head.fc6.weight"] == "classifier.0.weight"


def resnet18(prefix):
    state = randomised(torchvision.models.resnet18(weights=None)).state_dict()
    return State({prefix + n: t for n, t in state.items() if not n.startswith("fc.")})


def detector(config_file, *overrides):
    cfg = setup_cfg(config_file=str(config_file), overrides=[*CPU, *R18, *overrides])
    return build_model(cfg).eval()


def mmdet_pyramid(state, first, extra=0):
    channels = (64, 128, 256, 512)[first:]
    for i, width in enumerate(channels):
        state.conv(f"neck.lateral_convs.{i}.conv", 256, width, bias=True)
    for i in range(len(channels) + extra):
        state.conv(f"neck.fpn_convs.{i}.conv", 256, 256, 3, bias=True)


def check_pyramid(model, state, prefix, first, extra=0):
    """Our pyramid on the stages of torchvision's network against sums of the file's layers."""
    theirs = torchvision.models.resnet18(weights=None).eval()
    theirs.load_state_dict(
        {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}, strict=False
    )
    images = torch.randn(1, 3, 128, 128)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
    stages = []
    for i in range(1, 5):
        x = getattr(theirs, f"layer{i}")(x)
        stages.append(x)
    x, wanted = 0, []
    for i in reversed(range(4 - first)):
        x = state.run_conv(f"neck.lateral_convs.{i}.conv", stages[first + i]) + x
        wanted.insert(0, state.run_conv(f"neck.fpn_convs.{i}.conv", x, padding=1))
        x = F.interpolate(x, scale_factor=2)
    for i in range(extra):
        name = f"neck.fpn_convs.{4 - first + i}.conv"
        wanted.append(state.run_conv(name, wanted[-1], stride=2, padding=1))
    found = list(model.backbone(images).values())
    for one, other in zip(found, wanted, strict=bool(extra)):
        close(one, other)


@fixture
def mmdet_double_head():
    state = resnet18("backbone.")
    mmdet_pyramid(state, 0)
    state.conv("rpn_head.rpn_conv", 256, 256, 3, bias=True)
    state.conv("rpn_head.rpn_cls", 3, 256, bias=True)
    state.conv("rpn_head.rpn_reg", 12, 256, bias=True)
    head = "roi_head.bbox_head"
    for name, shape in {
        "conv1": (256, 256, 3),
        "conv2": (1024, 256),
        "conv_identity": (1024, 256),
    }.items():
        state.conv(f"{head}.res_block.{name}.conv", *shape)
        state.norm(f"{head}.res_block.{name}.bn", shape[0])
    for i in range(4):
        for k, shape in enumerate([(256, 1024), (256, 256, 3), (1024, 256)], start=1):
            state.conv(f"{head}.conv_branch.{i}.conv{k}", *shape)
            state.norm(f"{head}.conv_branch.{i}.bn{k}", shape[0])
    state.linear(f"{head}.fc_branch.0", 1024, 256 * 49)
    state.linear(f"{head}.fc_branch.1", 1024, 1024)
    state.linear(f"{head}.fc_cls", 81, 1024)
    state.linear(f"{head}.fc_reg", 320, 1024)
    return state


def run_towers(model, pooled):
    head, predictor = model.roi_heads.box_head, model.roi_heads.box_predictor
    vectors = {kind: head[kind](pooled) for kind in ("fc", "conv")}
    return {name: predictor(name, vectors[name.split("_")[0]]) for name in predictor.predictors}


def block(state, name, x, convs, norms, shortcut=None):
    """A residual block: 3x3 where the weight has that size."""
    y = x
    for i, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
        padding = state[f"{name}{conv}.weight"].shape[-1] // 2
        y = state.run_norm(f"{name}{norm}", state.run_conv(f"{name}{conv}", y, padding=padding))
        y = y if i == len(convs) - 1 else F.relu(y)
    if shortcut:
        x = state.run_norm(f"{name}{shortcut[1]}", state.run_conv(f"{name}{shortcut[0]}", x))
    return F.relu(y + x)


@torch.no_grad()
def test_double_head_of_mmdetection(mmdet_double_head):
    state = mmdet_double_head
    conversion = convert_detector(state)
    assert conversion.source == "Double-Head of MMDetection on ResNet-18"
    assert conversion.architecture["MODEL.DOUBLE_HEAD.NUM_BLOCKS"] == 5
    model = detector(
        PROJECTS / "double_head/configs/double_head_R_50_FPN_1x.yaml",
        *("MODEL.DOUBLE_HEAD.NONLOCAL.ENABLED", False),
    )
    fit = fit_model(conversion, model.state_dict())
    assert fit.unfilled == []
    model.load_state_dict(fit.tensors)
    check_pyramid(model, state, "backbone.", 0)

    pooled = torch.randn(3, 256, 7, 7)
    head = "roi_head.bbox_head."
    x = block(
        state,
        f"{head}res_block.",
        pooled,
        ("conv1.conv", "conv2.conv"),
        ("conv1.bn", "conv2.bn"),
        ("conv_identity.conv", "conv_identity.bn"),
    )
    for i in range(4):
        names = ("conv1", "conv2", "conv3"), ("bn1", "bn2", "bn3")
        x = block(state, f"{head}conv_branch.{i}.", x, *names)
    boxes = state.run_linear(f"{head}fc_reg", x.mean(dim=(2, 3)))
    x = pooled.flatten(1)
    for i in range(2):
        x = F.relu(state.run_linear(f"{head}fc_branch.{i}", x))
    found = run_towers(model, pooled)
    close(found["conv_reg"], boxes)
    close(found["fc_cls"], state.run_linear(f"{head}fc_cls", x))

    rpn = model.proposal_generator.rpn_head
    feature = torch.randn(1, 256, 5, 6)
    logits, deltas = rpn([feature])
    x = F.relu(state.run_conv("rpn_head.rpn_conv", feature, padding=1))
    close(logits[0], state.run_conv("rpn_head.rpn_cls", x))
    close(deltas[0], state.run_conv("rpn_head.rpn_reg", x))


@fixture
def authors_double_head():
    state = State()
    for name, tensor in resnet18("backbone.body.").items():
        if name.endswith("num_batches_tracked"):
            continue
        stem = name.startswith(("backbone.body.conv1", "backbone.body.bn1"))
        state[name.replace("body.", "body.stem.") if stem else name] = tensor
    for i, channels in enumerate((64, 128, 256, 512), start=1):
        state.conv(f"backbone.fpn.fpn_inner{i}", 256, channels, bias=True)
        state.conv(f"backbone.fpn.fpn_layer{i}", 256, 256, 3, bias=True)
    state["rpn.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
    state.conv("rpn.head.conv", 256, 256, 3, bias=True)
    state.conv("rpn.head.cls_logits", 3, 256, bias=True)
    state.conv("rpn.head.bbox_pred", 12, 256, bias=True)
    extractor = "roi_heads.box.feature_extractor"
    for name, shape, norm in (
        ("top.0", (1024, 256), "top.1"),
        ("bottom.0", (256, 256, 3), "bottom.1"),
        ("bottom.3", (1024, 256), "bottom.4"),
    ):
        state.conv(f"{extractor}.nonlocal_conv.{name}", *shape)
        state.norm(f"{extractor}.nonlocal_conv.{norm}", shape[0])
    for i in range(2):
        name = f"{extractor}.shared_nonlocal.{i}"
        for part in ("theta", "phi", "g"):
            state.conv(f"{name}.{part}", 512, 1024, bias=True)
        state.conv(f"{name}.W.0", 1024, 512, bias=True)
        state.norm(f"{name}.W.bn", 1024)
        for k, shape in ((0, (256, 1024)), (3, (256, 256, 3)), (6, (1024, 256))):
            state.conv(f"{name}.ffconv.bottleneck.{k}", *shape)
            state.norm(f"{name}.ffconv.bottleneck.{k + 1}", shape[0])
    state.linear(f"{extractor}.fc6", 1024, 256 * 49)
    state.linear(f"{extractor}.fc7", 1024, 1024)
    for name in ("cls_score", "cls_score_fc"):
        state.linear(f"roi_heads.box.predictor.{name}", 81, 1024)
    for name in ("bbox_pred", "bbox_pred_fc"):
        state.linear(f"roi_heads.box.predictor.{name}", 324, 1024)
    return state


@torch.no_grad()
def test_double_head_ext_of_its_authors(authors_double_head):
    state = authors_double_head
    conversion = convert_detector(
        state_of({"model": {f"module.{n}": t for n, t in state.items()}}, "")
    )
    assert conversion.source == "Double-Head of its authors on ResNet-18"
    model = detector(DOUBLE_HEAD)
    fit = fit_model(conversion, model.state_dict())
    assert fit.unfilled == [] and {*fit.left_out} == {"rpn.anchor_generator.cell_anchors.0"}
    model.load_state_dict(fit.tensors)

    x = pooled = torch.randn(3, 256, 7, 7)
    extractor = "roi_heads.box.feature_extractor."
    name = f"{extractor}nonlocal_conv."
    top = ("top.0", "top.1")
    x = block(state, name, x, ("bottom.0", "bottom.3"), ("bottom.1", "bottom.4"), top)
    for i in range(2):
        name = f"{extractor}shared_nonlocal.{i}."
        theta, phi, g = (
            state.run_conv(f"{name}{part}", x).flatten(2).chunk(4, dim=1)
            for part in ("theta", "phi", "g")
        )
        y = [v @ (q.mT @ k / 49).mT for q, k, v in zip(theta, phi, g, strict=True)]
        y = state.run_conv(f"{name}W.0", torch.cat(y, dim=1).unflatten(2, (7, 7)))
        x = F.relu(state.run_norm(f"{name}W.bn", y) + x)
        inner = f"{name}ffconv.bottleneck."
        x = block(state, inner, x, ("0", "3", "6"), ("1", "4", "7"))
    conv, fc = x.mean(dim=(2, 3)), pooled.flatten(1)
    for layer in ("fc6", "fc7"):
        fc = F.relu(state.run_linear(f"{extractor}{layer}", fc))
    found = run_towers(model, pooled)
    predictor = "roi_heads.box.predictor."
    for kind, features, end in (("conv", conv, ""), ("fc", fc, "_fc")):
        scores = state.run_linear(f"{predictor}cls_score{end}", features)
        close(found[f"{kind}_cls"][:, :80], scores[:, 1:])  # theirs has the background first
        close(found[f"{kind}_cls"][:, 80], scores[:, 0])
        boxes = state.run_linear(f"{predictor}bbox_pred{end}", features)
        close(found[f"{kind}_reg"], boxes[:, 4:])

    # Their frozen norm divides by the bare deviation.
    images = torch.randn(1, 3, 32, 32)
    x = F.conv2d(images, state["backbone.body.stem.conv1.weight"], stride=2, padding=3)
    norm = {k: state[f"backbone.body.stem.bn1.{k}"][:, None, None] for k in
            ("weight", "bias", "running_mean", "running_var")}  # fmt: skip
    x = (x - norm["running_mean"]) / norm["running_var"].sqrt() * norm["weight"] + norm["bias"]
    close(model.backbone.bottom_up.stem.conv1(images), x)
    assert conversion.settings["INPUT.FORMAT"] == "BGR"


def test_vanilla_double_head_leaves_two_predictors_of_the_authors_out(authors_double_head):
    model = detector(PROJECTS / "double_head/configs/double_head_R_50_FPN_1x.yaml")
    fit = fit_model(convert_detector(authors_double_head), model.state_dict())
    assert {n for n in fit.left_out if "predictor" in n} == {
        f"roi_heads.box.predictor.{name}.{kind}"
        for name in ("cls_score", "bbox_pred_fc")
        for kind in ("weight", "bias")
    }


def mmdet_ddod(dcn=True, quality="iou"):
    state = resnet18("backbone.")
    mmdet_pyramid(state, 1, extra=2)
    for tower in ("cls_convs", "reg_convs"):
        for i in range(4):
            state.conv(f"bbox_head.{tower}.{i}.conv", 256, 256, 3)
            state.norm(f"bbox_head.{tower}.{i}.gn", 256, running=False)
        if dcn:
            state.conv(f"bbox_head.{tower}.0.conv.conv_offset", 18, 256, 3, bias=True)
    for name, channels in (("cls", 80), ("reg", 4), (quality, 1)):
        state.conv(f"bbox_head.atss_{name}", channels, 256, 3, bias=True)
    for i in range(5):
        state[f"bbox_head.scales.{i}.scale"] = torch.tensor(1.0 + i)
    return state


def run_tower(state, tower, x):
    for i in range(4):
        name = f"bbox_head.{tower}.{i}"
        weight = state[f"{name}.conv.weight"]
        if f"{name}.conv.conv_offset.weight" in state:
            offset = state.run_conv(f"{name}.conv.conv_offset", x, padding=1)
            x = deform_conv2d(x, offset, weight, padding=1)
        else:
            x = F.conv2d(x, weight, padding=1)
        x = F.relu(F.group_norm(x, 32, state[f"{name}.gn.weight"], state[f"{name}.gn.bias"]))
    return x


@mark.parametrize("method", ["ddod", "atss", "fcos"])
@torch.no_grad()
def test_dense_detectors_of_mmdetection(method, tmp_path):
    config, state, source = {
        "ddod": ("ddod_atss_R_50_FPN_1x", mmdet_ddod(), "DDOD"),
        "atss": ("atss_centerness_R_50_FPN_1x", mmdet_ddod(False, "centerness"), "ATSS"),
        "fcos": ("ddod_fcos_R_50_FPN_1x", mmdet_ddod(), "DDOD"),
    }[method]
    conversion = convert_detector(state, tblr=method == "fcos")
    assert conversion.source == f"{source} of MMDetection on ResNet-18"
    model = detector(PROJECTS / f"ddod/configs/{config}.yaml")
    fit = fit_model(conversion, model.state_dict())
    assert {*fit.unfilled} <= {f"losses.reweighter.acc_{task}" for task in ("cls", "reg")}
    torch.save({"model": fit.tensors}, tmp_path / "converted.pth")
    Checkpointer(model, complete=True).load(str(tmp_path / "converted.pth"))
    check_pyramid(model, state, "backbone.", 1, extra=2)

    features = [torch.randn(1, 256, 9 - i, 8) for i in range(5)]
    logits, deltas, quality = model.head(features)
    for i, x in enumerate(features):
        cls, reg = (run_tower(state, tower, x) for tower in ("cls_convs", "reg_convs"))
        close(logits[i], state.run_conv("bbox_head.atss_cls", cls, padding=1))
        wanted = state.run_conv("bbox_head.atss_reg", reg, padding=1) * (1.0 + i)
        if method == "fcos":  # theirs are top, bottom, left, right
            wanted = torch.stack([wanted[:, k] for k in (2, 0, 3, 1)], dim=1)
        close(deltas[i], wanted)
        name = "centerness" if method == "atss" else "iou"
        close(quality[i], state.run_conv(f"bbox_head.atss_{name}", reg, padding=1))


def test_anchors_of_retinanet_change_their_order():
    state = resnet18("backbone.")
    mmdet_pyramid(state, 1, extra=2)
    state.conv("neck.fpn_convs.3.conv", 256, 512, 3, bias=True)
    for tower in ("cls_convs", "reg_convs"):
        for i in range(4):
            state.conv(f"bbox_head.{tower}.{i}.conv", 256, 256, 3, bias=True)
    state.conv("bbox_head.retina_cls", 9 * 80, 256, 3, bias=True)
    state.conv("bbox_head.retina_reg", 9 * 4, 256, 3, bias=True)
    # Row by row: ratio, size, what.
    state["bbox_head.retina_cls.bias"] = torch.arange(720.0)
    state["bbox_head.retina_reg.bias"] = torch.arange(36.0)
    conversion = convert_detector(state)
    model = detector(PROJECTS / "ddod/configs/retinanet_R_50_FPN_1x.yaml")
    fit = fit_model(conversion, model.state_dict())
    for ratio in range(3):
        for size in range(3):
            ours, theirs = size * 3 + ratio, ratio * 3 + size
            for name, rows in (("cls_score", 80), ("bbox_pred", 4)):
                found = fit.tensors[f"head.{name}.bias"][ours * rows : (ours + 1) * rows]
                assert found.tolist() == list(range(theirs * rows, (theirs + 1) * rows))
    old, new = state["bbox_head.retina_reg.weight"], fit.tensors["head.bbox_pred.weight"]
    assert torch.equal(new[4:8], old[12:16])
    # That is the order in which the anchors come.
    first = next(iter(model.anchor_generator.cell_anchors))
    sides = first[:, 2:] - first[:, :2]
    assert (sides[1, 1] / sides[1, 0] - 1).abs() < 1e-6 and sides[3].prod() > sides[0].prod()


def test_a_detector_is_filled_from_end_to_end(mmdet_double_head):
    model = detector(PROJECTS / "double_head/configs/double_head_ext_R_50_FPN_1x.yaml")
    with raises(UserError, match=r"nothing for roi_heads\.box_head\.conv\.blocks\.nonlocal1"):
        fit_model(convert_detector(mmdet_double_head), model.state_dict())
    with raises(UserError, match="background"):
        old = {n.replace("roi_head.", ""): t for n, t in mmdet_double_head.items()}
        convert_detector(old)
    with raises(UserError, match=r"ema_head\.weight of it have no place"):
        convert_detector(mmdet_double_head | {"ema_head.weight": torch.zeros(1)})
    with raises(UserError, match="other than Double-Head"):
        convert_detector({"bbox_head.gfl_cls.weight": torch.zeros(1)})
    with raises(UserError, match=r"shape \[81, 1024\]"):
        small = detector(
            PROJECTS / "double_head/configs/double_head_R_50_FPN_1x.yaml",
            *("MODEL.DOUBLE_HEAD.NONLOCAL.ENABLED", False, "MODEL.ROI_HEADS.NUM_CLASSES", 20),
        )
        fit_model(convert_detector(mmdet_double_head), small.state_dict())
