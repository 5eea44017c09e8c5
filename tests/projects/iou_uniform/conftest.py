from pathlib import Path

import pytest
import torch
from torch import nn

from clsloc.engine import setup_cfg
from clsloc.engine.projects import find_projects
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model

find_projects()  # from here on `iou_uniform` can be imported

CONFIGS = Path(__file__).parents[3] / "projects" / "iou_uniform" / "configs"
SIZE = (64, 96)
FASTER = "faster_iou_uniform_R_50_FPN_1x"

TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.BACKBONE.NAME": "IoUUniformPyramid",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 40,
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
}


@BACKBONE_REGISTRY.register()
class IoUUniformPyramid(Backbone):
    """Maps p2 to p6 of 16 channels from six convolutions."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.stem = _conv_bn_relu(input_shape.channels)
        self.stages = nn.ModuleList(_conv_bn_relu(16) for _ in range(5))

    def forward(self, images):
        maps, x = {}, self.stem(images)
        for level, stage in enumerate(self.stages, start=2):
            maps[f"p{level}"] = x = stage(x)
        return maps

    def output_shape(self):
        return {f"p{level}": ShapeSpec(channels=16, stride=2**level) for level in range(2, 7)}


def _conv_bn_relu(in_channels):
    conv = nn.Conv2d(in_channels, 16, 3, stride=2, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(16), nn.ReLU())


@pytest.fixture
def make_cfg():
    """A shipped config by its name, with overrides {key: value}."""

    def make(config=FASTER, overrides=None):
        items = [item for pair in (overrides or {}).items() for item in pair]
        return setup_cfg(config_file=str(CONFIGS / f"{config}.yaml"), overrides=items)

    return make


@pytest.fixture
def build_on_meta(make_cfg):
    """The model of a config without memory: enough to count and to look at."""

    def build(config=FASTER, overrides=None):
        cfg = make_cfg(config, {"MODEL.DEVICE": "meta", **(overrides or {})})
        with torch.device("meta"):
            return build_model(cfg)

    return build


@pytest.fixture
def build_tiny(make_cfg):
    """A small model in the structure of a config of the paper, with the weights of a seed.

    Keyword arguments are keys of the project's own node.
    """

    def build(overrides=None, *, config=FASTER, seed=0, **keys):
        torch.manual_seed(seed)
        node = {f"MODEL.IOU_UNIFORM.{key}": value for key, value in keys.items()}
        return build_model(make_cfg(config, {**TINY, **node, **(overrides or {})}))

    return build


@pytest.fixture
def make_targets(make_target):
    """Instances of ground truth, one for each list of (box, class)."""

    def make(*annotations, size=SIZE):
        return [make_target(objects, size) for objects in annotations]

    return make
