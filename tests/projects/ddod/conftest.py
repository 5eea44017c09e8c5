from pathlib import Path

import pytest
import torch
from torch import nn

from clsloc.engine import setup_cfg
from clsloc.engine.projects import find_projects
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model

find_projects()  # from here on `ddod` can be imported

CONFIGS = Path(__file__).parents[3] / "projects" / "ddod" / "configs"
SIZE = (64, 96)

TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.BACKBONE.NAME": "TinyDensePyramid",
    "MODEL.DDOD.NUM_CLASSES": 3,
    "MODEL.DDOD.NUM_CONVS": 2,
    "MODEL.DDOD.CONV_DIM": 64,
}


@BACKBONE_REGISTRY.register()
class TinyDensePyramid(Backbone):
    """Maps p3 to p7 of 32 channels from seven convolutions."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.stem = nn.Sequential(_conv(input_shape.channels), _conv(32))
        self.stages = nn.ModuleList(_conv(32) for _ in range(5))

    size_divisibility = 32

    def forward(self, images):
        maps, x = {}, self.stem(images)
        for level, stage in enumerate(self.stages, start=3):
            maps[f"p{level}"] = x = stage(x)
        return maps

    def output_shape(self):
        return {f"p{level}": ShapeSpec(channels=32, stride=2**level) for level in range(3, 8)}


def _conv(in_channels):
    conv = nn.Conv2d(in_channels, 32, 3, stride=2, padding=1)
    return nn.Sequential(conv, nn.GroupNorm(8, 32), nn.ReLU())


@pytest.fixture
def make_cfg():
    """A shipped config by its name, with overrides {key: value}."""

    def make(config="ddod_atss_R_50_FPN_1x", overrides=None):
        items = [item for pair in (overrides or {}).items() for item in pair]
        return setup_cfg(config_file=str(CONFIGS / f"{config}.yaml"), overrides=items)

    return make


@pytest.fixture
def build_on_meta(make_cfg):
    """The model of a config without memory: enough to count and to look at."""

    def build(config="ddod_atss_R_50_FPN_1x", overrides=None):
        cfg = make_cfg(config, {"MODEL.DEVICE": "meta", **(overrides or {})})
        with torch.device("meta"):
            return build_model(cfg)

    return build


@pytest.fixture
def build_tiny(make_cfg):
    """A small model in the structure of a config of the paper, with the weights of a seed.

    Keyword arguments are keys of the project's own node.
    """

    def build(overrides=None, *, config="ddod_atss_R_50_FPN_1x", seed=0, **keys):
        torch.manual_seed(seed)
        node = {f"MODEL.DDOD.{key}": value for key, value in keys.items()}
        return build_model(make_cfg(config, {**TINY, **node, **(overrides or {})}))

    return build
