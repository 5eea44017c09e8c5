"""Parameters and FLOPs against counts by hand."""

import pytest
import torch
from torch import nn
from torchvision.ops import DeformConv2d

from clsloc.engine import setup_cfg
from clsloc.model_info import NUM_ROIS, count_parameters, model_info
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

DIGITS = "digits/faster_rcnn_R_18_FPN.yaml"
FEW_CLASSES = ["MODEL.ROI_HEADS.NUM_CLASSES", 3]


class Toy(nn.Module):
    """A "detector" of one convolution and one deformable convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 18, 3, stride=2, padding=1)
        self.head = DeformConv2d(3, 5, 3, stride=2, padding=1, bias=False)
        self.frozen = nn.Conv2d(1, 1, 1, bias=False).requires_grad_(False)

    def forward(self, inputs: list[dict]) -> list[dict]:
        image = inputs[0]["image"][None]
        out = self.head(image, self.backbone(image))
        instances = Instances((1, 1))
        instances.pred_boxes = Boxes(out.flatten()[:4].reshape(1, 4))
        instances.scores = instances.pred_classes = out.flatten()[:1]
        return [{"instances": instances}]


def test_toy_counted_by_hand() -> None:
    report = model_info(Toy(), (8, 12))
    positions = 4 * 6
    assert report["parts"] == {
        "backbone": {"params": 18 * 27 + 18, "flops": positions * 18 * 27},
        "head": {"params": 5 * 27, "flops": positions * 5 * 27},
        "frozen": {"params": 1, "flops": 0},
    }
    assert report["flops"] == positions * 23 * 27
    assert report["params_total"] == 18 * 27 + 18 + 5 * 27 + 1
    assert report["params_trainable"] == report["params_total"] - 1
    assert (report["input_size"], report["num_rois"]) == ([8, 12], 0)


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(3, 4)
    assert count_parameters(nn.ModuleList([layer, layer])) == 16


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    return build_model(setup_cfg(config_file=DIGITS, overrides=FEW_CLASSES))


@pytest.mark.parametrize("num_rois", [NUM_ROIS, 7])
def test_roi_heads_see_exactly_the_stated_rois(detector: nn.Module, num_rois: int) -> None:
    report = model_info(detector, (64, 96), num_rois)
    fc, classes = 256, 3
    head = num_rois * (64 * 49 * fc + fc * fc)
    predictor = num_rois * fc * (classes + 1 + 4)  # one box for all classes
    parts = report["parts"]
    assert parts["roi_heads.box_head"]["flops"] == head
    assert parts["roi_heads.box_predictor"]["flops"] == predictor
    assert parts["roi_heads"]["flops"] == head + predictor
    assert report["num_rois"] == num_rois
    outer = [part["flops"] for name, part in parts.items() if "." not in name]
    assert report["flops"] == sum(outer)


def test_proposal_generator_is_counted_on_every_level(detector: nn.Module) -> None:
    cells = sum((64 // stride) * (96 // stride) for stride in (4, 8, 16, 32))
    expected = cells * (9 * 64 * 64 + 64 * 3 + 64 * 3 * 4)
    parts = model_info(detector, (64, 96))["parts"]
    assert parts["proposal_generator"]["flops"] == expected


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(detector: nn.Module, training: bool) -> None:
    detector.train(training)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    generator = detector.proposal_generator
    model_info(detector, (64, 64))
    assert detector.proposal_generator is generator
    assert detector.training is training
    after = detector.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_dense_detector() -> None:
    cfg = setup_cfg(
        config_file=DIGITS,
        overrides=[
            "MODEL.META_ARCHITECTURE", "RetinaNet",
            "MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone",
            "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"],
            "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"],
            "MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [128], [256]],
            "MODEL.RETINANET.NUM_CLASSES", 3,
            "MODEL.RETINANET.NUM_CONVS", 1,
        ],
    )  # fmt: skip
    report = model_info(build_model(cfg), (64, 128))
    cells = sum(-(-64 // stride) * -(-128 // stride) for stride in (8, 16, 32, 64, 128))
    one_conv = 9 * 64
    expected = cells * one_conv * (64 + 64 + 3 * 3 + 3 * 4)
    assert report["parts"]["head"]["flops"] == expected
    assert report["num_rois"] == 0
    assert set(report["parts"]) == {"backbone", "head"}
