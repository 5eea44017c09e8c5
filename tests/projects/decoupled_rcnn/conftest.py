from pathlib import Path

import pytest
import torch
from torch import nn

from clsloc.engine import setup_cfg
from clsloc.engine.projects import find_projects
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.structures import Boxes, Instances

find_projects()  # from here on `decoupled_rcnn` can be imported

CONFIGS = Path(__file__).parents[3] / "projects" / "decoupled_rcnn" / "configs"
SIZE = (64, 96)

TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.BACKBONE.NAME": "SmallPyramid",
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 40,
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.DECOUPLED.POST_NMS_TOPK_REG_TRAIN": 60,
}


@BACKBONE_REGISTRY.register()
class SmallPyramid(Backbone):
    """Maps p2 to p6 of a few channels from six convolutions."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.channels = channels = cfg.MODEL.FPN.OUT_CHANNELS
        self.stem = _conv_relu(input_shape.channels, channels)
        self.stages = nn.ModuleList(_conv_relu(channels, channels) for _ in range(5))

    def forward(self, images):
        maps, x = {}, self.stem(images)
        for level, stage in enumerate(self.stages, start=2):
            maps[f"p{level}"] = x = stage(x)
        return maps

    def output_shape(self):
        return {
            f"p{level}": ShapeSpec(channels=self.channels, stride=2**level) for level in range(2, 7)
        }


def _conv_relu(in_channels, channels):
    return nn.Sequential(nn.Conv2d(in_channels, channels, 3, stride=2, padding=1), nn.ReLU())


@pytest.fixture
def make_cfg():
    """A shipped config by its name, with overrides {key: value}."""

    def make(config="decoupled_cascade_R_50_FPN_1x", overrides=None):
        items = [item for pair in (overrides or {}).items() for item in pair]
        return setup_cfg(config_file=str(CONFIGS / f"{config}.yaml"), overrides=items)

    return make


@pytest.fixture
def build_on_meta(make_cfg):
    """The model of a config without memory: enough to count and to look at."""

    def build(config="decoupled_cascade_R_50_FPN_1x", overrides=None):
        cfg = make_cfg(config, {"MODEL.DEVICE": "meta", **(overrides or {})})
        with torch.device("meta"):
            return build_model(cfg)

    return build


@pytest.fixture
def build_tiny(make_cfg):
    """A small model in the structure of a config of the paper, with the weights of a seed.

    Keyword arguments are keys of the project's own node.
    """

    def build(overrides=None, *, config="decoupled_cascade_R_50_FPN_1x", seed=0, **keys):
        torch.manual_seed(seed)
        node = {f"MODEL.DECOUPLED.{key}": value for key, value in keys.items()}
        return build_model(make_cfg(config, {**TINY, **node, **(overrides or {})}))

    return build


@pytest.fixture
def make_proposals():
    """Proposals of an image from a list of boxes."""

    def make(boxes, size=SIZE):
        boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        proposals = Instances(size, proposal_boxes=Boxes(boxes))
        proposals.objectness_logits = torch.zeros(len(boxes))
        return proposals

    return make


@pytest.fixture
def random_proposals(make_proposals):
    """Boxes anywhere in an image."""

    def make(num, seed=0, size=SIZE):
        corners = torch.rand(num, 2, 2, generator=torch.Generator().manual_seed(seed))
        corners = corners * torch.tensor([size[1], size[0]])
        return make_proposals(torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1), size)

    return make


@pytest.fixture
def random_features():
    """Maps p2 to p6 for a tiny model."""

    def make(num_images=2, seed=0, channels=16, size=SIZE):
        generator = torch.Generator().manual_seed(seed)
        return {
            f"p{level}": torch.randn(
                num_images, channels, size[0] >> level, size[1] >> level, generator=generator
            )
            for level in range(2, 7)
        }

    return make
