from pathlib import Path

import pytest
import torch

from clsloc.engine import setup_cfg
from clsloc.engine.projects import find_projects
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

find_projects()  # from here on `grcn` can be imported

CONFIGS = Path(__file__).parents[3] / "projects" / "grcn" / "configs"
SIZE = (64, 96)

TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[16, 32, 64]],
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 0,
    "MODEL.RPN.BOUNDARY_THRESH": -1,
    "MODEL.RPN.CONV_DIMS": [16],
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 40,
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
}
NARROW_RESNET = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
}
# One convolution in each block, a few channels.
NARROW_VGG = ((8, 1), (8, 1), (16, 1), (16, 1), (16, 1))


@pytest.fixture
def make_cfg():
    """A shipped config by its name, with overrides {key: value}."""

    def make(config="coco/R_50_grcn", overrides=None):
        items = [item for pair in (overrides or {}).items() for item in pair]
        return setup_cfg(config_file=str(CONFIGS / f"{config}.yaml"), overrides=items)

    return make


@pytest.fixture
def build_on_meta(make_cfg):
    """The model of a config without memory: enough to count and to look at."""

    def build(config="coco/R_50_grcn", overrides=None):
        cfg = make_cfg(config, {"MODEL.DEVICE": "meta", **(overrides or {})})
        with torch.device("meta"):
            return build_model(cfg)

    return build


@pytest.fixture
def tiny_cfg(make_cfg):
    """A small model in the structure of a config of the paper; keyword arguments are keys of
    `MODEL.GRCN`."""

    def make(config="coco/R_50_grcn", overrides=None, **keys):
        node = {f"MODEL.GRCN.{key.replace('__', '.')}": value for key, value in keys.items()}
        fpn = {"MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]]}
        tiny = TINY | NARROW_RESNET | (fpn if "FPN" in config else {})
        return make_cfg(config, {**tiny, **node, **(overrides or {})})

    return make


@pytest.fixture
def build_tiny(tiny_cfg, monkeypatch):
    """The model of `tiny_cfg` with the weights of a seed."""
    monkeypatch.setattr("clsloc.layers.vgg.VGG16_BLOCKS", NARROW_VGG)

    def build(config="coco/R_50_grcn", overrides=None, *, seed=0, **keys):
        cfg = tiny_cfg(config, overrides, **keys)
        torch.manual_seed(seed)
        return build_model(cfg)

    return build


@pytest.fixture
def make_proposals():
    """Proposals of given boxes, one list for each image."""

    def make(*boxes, size=SIZE):
        return [
            Instances(
                size,
                proposal_boxes=Boxes(torch.tensor(b, dtype=torch.float32).reshape(-1, 4)),
                objectness_logits=torch.zeros(len(b)),
            )
            for b in boxes
        ]

    return make
