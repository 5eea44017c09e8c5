"""The detectors of WIDER FACE: pyramid with context, what is tested, images of a thousand faces."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clsloc.errors import UserError
from ddod.ssh import SSHContext, _check_channels
from detectron2.layers import get_norm
from detectron2.structures import Boxes, Instances

FACE = "wider_face/ddod_face_R_50_FPN"
CONFIGS = Path(__file__).parents[3] / "projects" / "ddod" / "configs"
SMALL_CONFIG = CONFIGS / "wider_face" / "small_data" / "ddod_face_R_18_FPN.yaml"


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_context_has_the_size_that_arithmetic_says():
    context = SSHContext(256)
    assert count(context) == 552_960 + 768
    convs = [m for m in context.modules() if isinstance(m, nn.Conv2d)]
    assert sum(conv.weight.numel() for conv in convs) == 552_960
    assert all(conv.bias is None for conv in convs)


def test_context_by_hand():
    """With one channel of a kind and kernels of ones, a point spreads over 3x3, 5x5 and 7x7; two
    channels of the four are from the first window."""
    context = SSHContext(4, norm="")
    for conv in (m for m in context.modules() if isinstance(m, nn.Conv2d)):
        nn.init.ones_(conv.weight)
    x = torch.zeros(1, 4, 9, 9)
    x[0, 0, 4, 4] = 1.0
    out = context(x)[0]
    row = {3: [0, 0, 0, 1, 1, 1, 0, 0, 0], 5: [0, 0, 1, 2, 3, 2, 1, 0, 0]}
    row[7] = F.conv1d(torch.tensor([[row[5]]]).float(), torch.ones(1, 1, 3), padding=1)[0, 0]
    for channel, window in enumerate((3, 3, 5, 7)):
        line = torch.as_tensor(row[window]).float()
        torch.testing.assert_close(out[channel], line[:, None] * line)
    for conv in (m for m in context.modules() if isinstance(m, nn.Conv2d)):
        nn.init.constant_(conv.weight, -1.0)
    assert context(x).min() == 0  # a ReLU stands behind all of them


def test_the_pyramid_has_six_levels(build_on_meta):
    backbone = build_on_meta(FACE, {"MODEL.FPN.NORM": ""}).backbone
    shapes = backbone.output_shape()
    assert {name: shape.stride for name, shape in shapes.items()} == {
        f"p{level}": 2**level for level in range(2, 8)
    }
    outside = (backbone.bottom_up, backbone.context)
    assert count(backbone) - sum(map(count, outside)) == 8_653_312


@pytest.fixture
def build_small(make_cfg):
    from detectron2.modeling import build_model

    def build(name="ddod", **keys):
        keys = {f"MODEL.{key}": value for key, value in keys.items()}
        keys = {"MODEL.DEVICE": "cpu", "MODEL.RESNETS.NORM": "GN", **keys}
        torch.manual_seed(0)
        return build_model(make_cfg(f"wider_face/small_data/{name}_face_R_18_FPN", keys))

    return build


def test_maps_come_from_bilinear_upsampling(build_small):
    """Equal to the pyramid of Detectron2, with its nearest upsampling, where a map is constant."""
    backbone = build_small(**{"FPN.NORM": ""}).backbone.eval()
    backbone.context = nn.Identity()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        below = backbone.bottom_up(x)
        maps = backbone(x)
        merged = backbone.fpn_lateral5(below["res5"])
        torch.testing.assert_close(maps["p5"], backbone.fpn_output5(merged))
        up = F.interpolate(merged, size=(4, 6), mode="bilinear")
        merged = backbone.fpn_lateral4(below["res4"]) + up
        torch.testing.assert_close(maps["p4"], backbone.fpn_output4(merged))
        torch.testing.assert_close(maps["p6"], backbone.top_block.p6(below["res5"]))
    assert {name: level.shape[-2:] for name, level in maps.items()} == {
        "p2": (16, 24), "p3": (8, 12), "p4": (4, 6), "p5": (2, 3), "p6": (1, 2), "p7": (1, 1)
    }  # fmt: skip


def test_p6_may_come_from_p5(build_small):
    backbone = build_small(**{"DDOD.FPN.P6_FROM": "p5", "FPN.FUSE_TYPE": "avg"}).backbone
    assert set(backbone(torch.randn(1, 3, 64, 64))) == {f"p{level}" for level in range(2, 8)}


def test_channels_that_do_not_divide_are_refused(build_small):
    with pytest.raises(UserError, match=r"OUT_CHANNELS is a multiple of 16 .* got 40"):
        build_small(**{"FPN.OUT_CHANNELS": 40, "FPN.NORM": ""})


@pytest.mark.parametrize("channels", [16, 144, 160])
def test_channels_that_group_norms_do_not_divide_are_refused(channels, build_small):
    with pytest.raises(UserError, match=rf"192 or a multiple of 128 .* 'GN', got {channels}\."):
        build_small(**{"FPN.OUT_CHANNELS": channels, "FPN.NORM": "GN"})


def test_exactly_the_channels_that_can_be_built_are_admitted():
    for channels in range(16, 1024, 16):
        try:
            with torch.device("meta"):
                get_norm("GN", channels)
                SSHContext(channels, "GN")
        except ValueError:
            with pytest.raises(UserError):
                _check_channels(channels, "GN")
        else:
            _check_channels(channels, "GN")
            assert channels in (32, 64, 96, 192) or channels % 128 == 0
        _check_channels(channels, "")


def test_group_norms_of_context_are_the_usual_ones_in_the_face_detectors():
    groups = [m.num_groups for m in SSHContext(256).modules() if isinstance(m, nn.GroupNorm)]
    assert groups == [32] * 5


def faces(count, size, side, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * (size - side)
    sides = 4 + torch.rand(count, 2, generator=generator) * (side - 4)
    found = Instances((size, size), gt_boxes=Boxes(torch.cat([corners, corners + sides], dim=1)))
    found.gt_classes = torch.zeros(count, dtype=torch.int64)
    return found


@pytest.mark.parametrize("name", ["atss", "ddod"])
def test_every_parameter_learns_with_and_without_faces(name, build_small, storage):
    model = build_small(name).train()
    for objects in (faces(5, 128, 60), faces(1, 128, 5), faces(0, 128, 60)):
        model.zero_grad()
        losses = model([{"image": torch.rand(3, 128, 128) * 255, "instances": objects}])
        assert set(losses) == {"loss_cls", "loss_box_reg", "loss_iou"}
        sum(losses.values()).backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


def test_low_detections_go_in_the_original_image(build_small):
    """Boxes are 16 times 1.3 ** 0.5 pixels high in the tested image of 128, the least of them."""
    model = build_small(**{"DDOD.PRIOR_PROB": 0.2}).eval()
    nn.init.zeros_(model.head.bbox_pred.weight)
    image = torch.rand(3, 128, 128) * 255
    with torch.no_grad():
        whole, half, tenth = (
            model([{"image": image, "height": side, "width": side}])[0]["instances"]
            for side in (128, 64, 13)
        )

    def least(found):
        boxes = found.pred_boxes.tensor
        inside = (boxes[:, :2] > 0).all(1) & (boxes[:, 2:] < found.image_size[0]).all(1)
        return (boxes[inside, 3] - boxes[inside, 1]).min().item()

    assert least(whole) == pytest.approx(16 * 1.3**0.5, abs=1e-3)
    assert least(half) == pytest.approx(8 * 1.3**0.5, abs=1e-3)
    heights = tenth.pred_boxes.tensor[:, 3] - tenth.pred_boxes.tensor[:, 1]
    assert len(heights) and heights.min() >= 9


def test_recipe_of_table_9(make_cfg):
    cfg = make_cfg(FACE)
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.BASE_LR_END) == (24, 0.0075, 0.000075)
    assert (solver.MAX_ITER, cfg.CLSLOC.SOLVER.CYCLES) == (322_000, 20)
    # 30 epochs of 12,880 images.
    assert solver.MAX_ITER // cfg.CLSLOC.SOLVER.CYCLES == 30 * 12_880 // 24
    assert (cfg.MODEL.DDOD.ASSIGN.ALPHA_CLS, cfg.MODEL.DDOD.ASSIGN.ALPHA_REG) == (0.8, 0.5)
    base = make_cfg("wider_face/atss_face_R_50_FPN").MODEL.DDOD.clone()
    base.defrost()
    for node in ("ASSIGN", "DCN", "REWEIGHT"):
        base[node] = cfg.MODEL.DDOD[node].clone()
    assert base == cfg.MODEL.DDOD


CROWD = """
import sys
import torch
from clsloc.engine import setup_cfg
from clsloc.gauges.workload import resident_peak_mb
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

keys = {"MODEL.DEVICE": "cpu", "MODEL.WEIGHTS": "", "MODEL.DDOD.ASSIGN.MODE": sys.argv[2]}
cfg = setup_cfg(config_file=sys.argv[1], overrides=[x for pair in keys.items() for x in pair])
torch.manual_seed(0)
model = build_model(cfg).train()
peaks = []
for count in (1, 1, 3000):
    corners = torch.rand(count, 2) * 620
    boxes = torch.cat([corners, corners + 4 + torch.rand(count, 2) * 14], dim=1)
    faces = Instances((640, 640), gt_boxes=Boxes(boxes))
    faces.gt_classes = torch.zeros(count, dtype=torch.int64)
    with EventStorage(0) as storage:
        losses = model([{"image": torch.rand(3, 640, 640) * 255, "instances": faces}])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    peaks.append(resident_peak_mb())
found = storage.latest()["ddod/num_pos_reg"][0]
assert found > 500, found
print(peaks[2] - peaks[1])
"""


@pytest.mark.parametrize("mode", ["atss", "cost"])
def test_memory_of_a_step_hardly_grows_with_thousands_of_faces(mode):
    """A single array of the 34,125 anchors of 640x640 pixels by 3,000 faces takes 410 MB."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", CROWD, str(SMALL_CONFIG), mode]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 400


# Made with Detectron2 main of June 2026 and with the embedded runtime; see test_parity.py.
GOLDEN = {
    "loss_cls": 1.8900953531265259,
    "loss_box_reg": 1.6480650901794434,
    "loss_iou": 0.9314454793930054,
    "gradient": 43.51776885986328,
    "scores": 109.2912826538086,
    "boxes": 77.0252456665039,
}


def test_a_seeded_step_and_its_detections(build_small, storage):
    """Pyramid, context, DIoU and voting against numbers that both Detectron2 gave."""
    model = build_small(**{"DDOD.TEST.NMS_TYPE": "vote", "DDOD.PRIOR_PROB": 0.2}).train()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.02)
    image = torch.rand(3, 128, 192, generator=generator) * 255
    batch = [{"image": image, "instances": faces(7, 128, 60, seed=5)}]
    losses = model(batch)
    sum(losses.values()).backward()
    found = {name: loss.item() for name, loss in losses.items()}
    trained = [p.grad.norm() for p in model.parameters() if p.requires_grad]
    found["gradient"] = torch.stack(trained).norm().item()
    model.eval()
    with torch.no_grad():
        (output,) = model(batch)
    found["scores"] = output["instances"].scores.sum().item()
    found["boxes"] = output["instances"].pred_boxes.tensor.mean().item()
    assert len(output["instances"]) > 20
    assert found == pytest.approx(GOLDEN, rel=1e-4), found
