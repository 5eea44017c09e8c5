"""The whole detector: edge cases, state, and equality with Detectron2's RetinaNet."""

import pytest
import torch
from torch import nn

from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

CAT = ([12.0, 10.0, 44.0, 42.0], 0)
DOG = ([50.0, 20.0, 90.0, 60.0], 2)
TINY_OBJECT = ([30.2, 30.2, 31.0, 31.0], 1)
ALL = [
    "atss_iou_R_50_FPN_1x",
    "atss_centerness_R_50_FPN_1x",
    "fcos_star_R_50_FPN_1x",
    "retinanet_R_50_FPN_1x",
    "ddod_atss_R_50_FPN_1x",
    "ddod_fcos_R_50_FPN_1x",
    "ddod_retinanet_R_50_FPN_1x",
]


def step(model, batch):
    with EventStorage(0) as storage:
        losses = model.train()(batch)
    model.zero_grad()
    sum(losses.values()).backward()
    return losses, storage.latest()


@pytest.mark.parametrize("config", ALL)
def test_every_parameter_has_a_finite_gradient(config, build_tiny, make_batch):
    model = build_tiny(config=config)
    for annotations in ([[CAT, DOG], []], [[], []], [[TINY_OBJECT]], [[CAT, CAT, CAT]]):
        losses, _ = step(model, make_batch(*annotations))
        assert all(loss.isfinite() for loss in losses.values())
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("num_classes", [1, 2, 4, 80])
def test_numbers_of_classes(num_classes, build_tiny, make_batch):
    model = build_tiny(NUM_CLASSES=num_classes, **{"TEST.SCORE_THRESH": 0.005})
    batch = make_batch([(CAT[0], num_classes - 1)])
    losses, _ = step(model, batch)
    assert losses["loss_cls"] > 0 and losses["loss_box_reg"] > 0
    with torch.no_grad():
        found = model.eval()(batch)[0]["instances"]
    assert len(found) > 0 and found.pred_classes.max() < num_classes


def test_degenerate_objects_have_finite_losses(build_tiny, make_batch):
    flat = ([20.0, 20.0, 20.0, 60.0], 1)
    losses, _ = step(build_tiny(), make_batch([flat, CAT]))
    assert all(loss.isfinite() for loss in losses.values())


def test_what_is_logged(build_tiny, make_batch):
    _, latest = step(build_tiny(), make_batch([CAT, DOG], []))
    names = {name for name in latest if name.startswith("ddod/")}
    levels = {
        f"ddod/{kind}_{task}/p{i}"
        for kind in ("w", "acc")
        for task in ("cls", "reg")
        for i in range(3, 8)
    }
    scalars = {"norm_cls", "norm_reg", "num_pos_cls", "num_pos_reg", "pos_overlap"}
    assert names == levels | {f"ddod/{name}" for name in scalars}
    for task in ("cls", "reg"):
        per_image = latest[f"ddod/num_pos_{task}"][0]
        counted = sum(latest[f"ddod/acc_{task}/p{i}"][0] for i in range(3, 8))
        assert counted == pytest.approx(2 * per_image)
        assert counted > 0
        # The image without objects counts as one.
        assert latest[f"ddod/norm_{task}"][0] == counted + 1


def test_padding_is_not_trained_on(build_tiny, make_batch):
    """A small image beside a large one has the labels that it has alone."""
    small, large = make_batch([CAT])[0], make_batch([], size=(128, 192))[0]

    def labels_of(batch, mask):
        model = build_tiny(**{"ASSIGN.MODE": "atss", "ASSIGN.MASK_PADDING": mask}).train()
        taken = []
        model.losses.register_forward_hook(lambda _, args, __: taken.append(args[3].labels_cls))
        with EventStorage(0):
            model(batch)
        return taken[0]

    together, alone = labels_of([small, large], True), labels_of([small], True)
    assert (together[0] == -1).sum() == (384 - 96) + (96 - 24) + (24 - 6) + (6 - 2) + (2 - 1)
    assert torch.equal(together[0][together[0] >= 0], alone[0])
    assert (alone < 3).any()
    assert (together[1] >= 0).all()
    assert (labels_of([small, large], False) >= 0).all()


@pytest.mark.parametrize("mode", ["cost", "atss", "iou"])
def test_anchors_in_a_crowd_are_not_trained(mode, build_tiny, make_batch):
    """The crowd is the left third of the image of 64x96. Anchors of P3 are squares of 64 around
    every eighth pixel; what the crowd holds of each is a product of a height and a width."""
    keys = {"ASSIGN.MODE": mode, "ASSIGN.IGNORE_IOF_THR": 0.375}
    model, plain = build_tiny(**keys).train(), build_tiny(**{"ASSIGN.MODE": mode}).train()
    batch = make_batch([CAT, DOG], [CAT])
    batch[0]["crowd_boxes"] = torch.tensor([[0.0, 0, 32, 64]])
    (cls, reg), (all_cls, _) = (_labels_of(m, batch) for m in (model, plain))
    height = torch.tensor([32.0, 40, 48, 56, 64, 56, 48, 40])
    width = (torch.arange(12) * -8.0 + 64).clamp(max=32, min=0)
    expected = height[:, None] * width / 64**2 > 0.375
    assert torch.equal(cls[0, :96].view(8, 12) == -1, expected)
    assert 0 < expected.sum() < 96
    assert torch.equal(cls == -1, reg == -1) or mode == "iou"
    assert torch.equal(cls[1], all_cls[1])
    assert (cls[0] < 3).any()
    # Without the key crowds are background, and without crowds the key changes nothing.
    del batch[0]["crowd_boxes"]
    assert torch.equal(_labels_of(model, batch)[0], all_cls)


def test_anchors_in_a_crowd_are_no_candidates(build_tiny, make_batch):
    """With all of P3 in the crowd, the object is matched to a coarser level."""
    batch, levels = make_batch([CAT]), [96, 24, 6, 2, 1]
    for crowds, first in ((torch.zeros(0, 4), True), (torch.tensor([[0.0, 0, 96, 64]]), False)):
        model = build_tiny(
            {"MODEL.ANCHOR_GENERATOR.SIZES": [[16], [64], [128], [256], [512]]},
            **{"ASSIGN.MODE": "atss", "ASSIGN.IGNORE_IOF_THR": 0.2},
        ).train()
        batch[0]["crowd_boxes"] = crowds
        labels, _ = _labels_of(model, batch)
        of_levels = labels[0].split(levels)
        assert ((of_levels[0] == 0).any(), (of_levels[0] == -1).all()) == (first, not first)
        losses, _ = step(model, batch)
        assert all(loss.isfinite() for loss in losses.values())


def _labels_of(model, batch):
    """Labels for classification and regression, (N, R) each."""
    taken = []
    hook = model.losses.register_forward_hook(lambda _, args, __: taken.append(args[3]))
    with EventStorage(0):
        model(batch)
    hook.remove()
    return taken[0].labels_cls, taken[0].labels_reg


def test_state_survives_a_checkpoint_and_inference_leaves_it(build_tiny, make_batch):
    model, batch = build_tiny(), make_batch([CAT, DOG], [CAT])
    for _ in range(3):
        step(model, batch)
    other = build_tiny(seed=1)
    other.load_state_dict(model.state_dict())
    for name in ("acc_cls", "acc_reg"):
        counts = getattr(model.losses.reweighter, name)
        assert counts.sum() > 0
        assert torch.equal(getattr(other.losses.reweighter, name), counts)
    with torch.no_grad():
        found = [m.eval()(batch)[0]["instances"] for m in (model, other)]
    assert torch.equal(found[0].scores, found[1].scores)
    assert torch.equal(model.losses.reweighter.acc_cls, other.losses.reweighter.acc_cls)
    (losses, latest), (again, _) = step(model, batch), step(other, batch)
    assert {k: v.item() for k, v in losses.items()} == {k: v.item() for k, v in again.items()}
    weights = [latest[f"ddod/w_cls/p{i}"][0] for i in range(3, 8)]
    assert (min(weights), max(weights)) == (1, 2)


def test_single_images_are_detected_as_in_a_batch(build_tiny, make_batch):
    model = build_tiny(**{"TEST.SCORE_THRESH": 0.005}).eval()
    batch = make_batch([CAT], [DOG])
    with torch.no_grad():
        together = model(batch)
        alone = [model([item])[0] for item in batch]
    for one, other in zip(together, alone, strict=True):
        assert len(one["instances"]) > 10
        torch.testing.assert_close(
            one["instances"].pred_boxes.tensor, other["instances"].pred_boxes.tensor
        )


@pytest.mark.parametrize("annotations", [[[CAT, DOG], [CAT]], [[CAT, TINY_OBJECT]]])
def test_retinanet_is_that_of_detectron2(annotations, build_tiny, make_batch, make_cfg):
    """With the normaliser of Detectron2, and the names of its parameters."""
    # Without suppression: boxes are clipped before NMS here, and after it there.
    keys = {"LOSS.NORMALIZER": "ema", "TEST.SCORE_THRESH": 0.01, "TEST.NMS_THRESH": 1.0}
    model = build_tiny(config="retinanet_R_50_FPN_1x", **keys).train()
    nn.init.normal_(model.head.cls_score.weight, std=0.3)
    cfg = make_cfg("retinanet_R_50_FPN_1x")
    stock = RetinaNet(
        backbone=model.backbone,
        head=RetinaNetHead(
            input_shape=list(model.backbone.output_shape().values()),
            num_classes=3,
            num_anchors=9,
            conv_dims=[64, 64],
        ),
        head_in_features=model.head_in_features,
        anchor_generator=model.anchor_generator,
        box2box_transform=model.inference.coder,
        anchor_matcher=_matcher(),
        num_classes=3,
        test_score_thresh=0.01,
        test_nms_thresh=1.0,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    )
    stock.head.load_state_dict(model.head.state_dict())
    batch = make_batch(*annotations)
    for _ in range(2):
        losses, _ = step(model, batch)
        gradient = model.head.cls_subnet[0].weight.grad.clone()
        expected, _ = step(stock, batch)
        assert set(losses) == set(expected)
        for name, loss in expected.items():
            torch.testing.assert_close(losses[name], loss, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(
            gradient, stock.head.cls_subnet[0].weight.grad, rtol=1e-4, atol=1e-6
        )
    with torch.no_grad():
        ours, theirs = (m.eval()(batch)[0]["instances"] for m in (model, stock))
    assert len(ours) > 10
    torch.testing.assert_close(ours.scores, theirs.scores)
    inside = [_clipped(found.pred_boxes.tensor) for found in (ours, theirs)]
    torch.testing.assert_close(*inside)


def _matcher():
    from detectron2.modeling.matcher import Matcher

    return Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)


def _clipped(tensor):
    boxes = Boxes(tensor.clone())
    boxes.clip((64, 96))
    return boxes.tensor


def test_a_thousand_objects_fit(build_tiny, make_batch):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(1000, 2, generator=generator) * torch.tensor([80.0, 48.0])
    boxes = torch.cat([corners, corners + 12], dim=1)
    batch = make_batch([(box.tolist(), 0) for box in boxes])
    losses, latest = step(build_tiny(), batch)
    assert all(loss.isfinite() for loss in losses.values())
    assert latest["ddod/num_pos_cls"][0] > 20


def test_switches_change_what_they_say(build_tiny, make_batch):
    """Each of these settings gives another training step from the same weights."""
    batch = make_batch([CAT, DOG], [CAT])
    variants = {
        "none": {},
        "ALPHA": {"ASSIGN.ALPHA_CLS": 0.0},
        "SHARED": {"ASSIGN.SHARED": True, "ASSIGN.ALPHA_CLS": 0.0},
        "TOPK": {"ASSIGN.TOPK": 1},
        "MODE": {"ASSIGN.MODE": "iou"},
        "TYPE": {"REWEIGHT.TYPE": "linear", "REWEIGHT.MOVING_AVERAGE": False},
        "literal": {"REWEIGHT.TYPE": "sum_literal"},
        "RANGE": {"REWEIGHT.RANGE": [1.0, 3.0]},
        "BOX_TYPE": {"LOSS.BOX_TYPE": "diou"},
        "L1": {"LOSS.BOX_TYPE": "smooth_l1"},
        "beta": {"LOSS.BOX_TYPE": "smooth_l1", "LOSS.SMOOTH_L1_BETA": 1.0},
        "NORMALIZER": {"LOSS.NORMALIZER": "ema"},
        "FOCAL": {"LOSS.FOCAL_ALPHA": 0.5},
        "GAMMA": {"LOSS.FOCAL_GAMMA": 1.0},
        "CLS_WEIGHT": {"LOSS.CLS_WEIGHT": 2.0},
        "QUALITY_WEIGHT": {"LOSS.QUALITY_WEIGHT": 2.0},
        "QUALITY": {"QUALITY": "none"},
        "modulated": {"DCN.MODULATED": True},
    }
    seen = {}
    for name, keys in variants.items():
        model = build_tiny(**keys)
        nn.init.normal_(model.head.cls_score.weight, std=0.3)
        losses, _ = step(model, batch)
        seen[name] = tuple(round(loss.item(), 6) for loss in losses.values())
    twice = [name for name in seen if list(seen.values()).count(seen[name]) > 1]
    assert not twice, twice


def test_groups_of_offsets_and_both_implementations_build(build_tiny, make_batch):
    batch, seen = make_batch([CAT, DOG]), []
    for implementation in ("sampling", "torchvision"):
        model = build_tiny(**{"DCN.DEFORM_GROUPS": 2, "DCN.IMPL": implementation})
        generator = torch.Generator().manual_seed(0)
        for tower in (model.head.cls_subnet, model.head.bbox_subnet):
            bias = tower[0].offset.bias.data
            bias.copy_(torch.randn(bias.shape, generator=generator))
        assert model.head.cls_subnet[0].offset.out_channels == 36
        seen.append(torch.stack([loss.detach() for loss in step(model, batch)[0].values()]))
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-4, atol=1e-5)


def test_the_class_count_is_checked_under_its_own_key(make_cfg):
    from clsloc.engine.checks import class_count_key, is_two_stage

    cfg = make_cfg()
    assert class_count_key(cfg) == "MODEL.DDOD.NUM_CLASSES"
    assert not is_two_stage(cfg)


def test_the_real_backbone_runs(make_cfg, make_batch):
    """ResNet-18 with the pyramid of the project, on images that are no multiple of 32."""
    overrides = {
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.DDOD.CONV_DIM": 64,
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
    }
    for source in ("p5", "res5"):
        model = build_model(make_cfg(overrides={**overrides, "MODEL.DDOD.FPN.P6_FROM": source}))
        losses, _ = step(model, make_batch([CAT], size=(50, 70)))
        assert all(loss.isfinite() for loss in losses.values())
        assert model.backbone.top_block.p6.in_channels == (32 if source == "p5" else 512)


def test_the_relu_before_p7_is_a_switch():
    from ddod.backbone import TopLevels

    plain, relu = (TopLevels(4, 4, "p5", relu=switch) for switch in (False, True))
    relu.load_state_dict(plain.state_dict())
    x = torch.randn(1, 4, 8, 8)
    (p6, p7), (same, other) = plain(x), relu(x)
    assert torch.equal(p6, same)
    torch.testing.assert_close(plain.p7(p6.relu()), other)
    assert not torch.allclose(p7, other)


@pytest.mark.parametrize("source", ["p5", "res5"])
def test_the_second_path_sums_up_from_fine_to_coarse(source, make_cfg):
    """With convolutions that copy, N4 = P4 + every other pixel of P3, and so on."""
    small = {
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.FPN.OUT_CHANNELS": 8,
        "MODEL.DDOD.NORM": "",
        "MODEL.DDOD.FPN.P6_FROM": source,
    }
    cfg = make_cfg(overrides={**small, "MODEL.DEVICE": "cpu", "MODEL.WEIGHTS": ""})
    plain = build_backbone(cfg).eval()
    cfg.defrost()
    cfg.MODEL.DDOD.FPN.TYPE = "pafpn"
    second = build_backbone(cfg).eval()
    moved = {
        name if name.startswith(("bottom_up", "top_block")) else f"fpn.{name}": value
        for name, value in plain.state_dict().items()
    }
    missing = second.load_state_dict(moved, strict=False)
    assert not missing.unexpected_keys
    assert {name.split(".")[0] for name in missing.missing_keys} == {"down", "fuse"}
    for conv in (*second.down, *second.fuse):
        conv.weight.data.zero_()
        conv.weight.data[range(8), range(8), 1, 1] = 1.0
    assert second.output_shape() == plain.output_shape()
    assert second.size_divisibility == plain.size_divisibility
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 96)
        p, n = plain(x), second(x)
        expected = {"p3": p["p3"], "p4": p["p4"] + p["p3"][..., ::2, ::2]}
        expected["p5"] = p["p5"] + expected["p4"][..., ::2, ::2]
        below = second.bottom_up(x)["res5"] if source == "res5" else expected["p5"]
        expected["p6"], expected["p7"] = second.top_block(below)
    assert list(n) == list(p) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(n[name], value)
    model = build_model(cfg)
    losses, _ = step(model, [_image(64, 64)])
    assert all(loss.isfinite() for loss in losses.values())
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad.isfinite().all(), name


def _image(height, width):
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor([CAT[0]]))
    instances.gt_classes = torch.tensor([CAT[1]])
    return {"image": torch.rand(3, height, width) * 255, "instances": instances}


@pytest.mark.parametrize("config", ALL)
def test_images_of_one_pixel_on_coarse_levels(config, build_tiny, make_batch):
    """64x64 leaves one pixel on P6 and on P7; saved and loaded it detects the same."""
    model = build_tiny(config=config, **{"TEST.SCORE_THRESH": 0.005})
    batch = make_batch([CAT], [], size=(64, 64))
    step(model, batch)
    assert all(p.grad.isfinite().all() for p in model.parameters())
    other = build_tiny(config=config, seed=1, **{"TEST.SCORE_THRESH": 0.005})
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        found = [m.eval()(batch)[0]["instances"] for m in (model, other)]
    assert len(found[0]) > 0
    assert torch.equal(found[0].pred_boxes.tensor, found[1].pred_boxes.tensor)
    assert torch.equal(found[0].scores, found[1].scores)
