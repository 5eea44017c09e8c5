"""The stock box-detection configs and their checkpoints, on either Detectron2."""

import hashlib
import json

import pytest
import yaml

from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg

# Digest of each merged config, from Detectron2 main of 2026-06-06. On a difference, compare
# get_config(name).dump() of both.
DIGESTS = {
    "Base-RCNN-C4": "ab9a8f132d29c406",
    "Base-RCNN-DilatedC5": "c691997ddab61b77",
    "Base-RCNN-FPN": "f42437acf2e35139",
    "Base-RetinaNet": "87f0fb0aa9448a67",
    "COCO-Detection/fast_rcnn_R_50_FPN_1x": "6b767eafd91d6491",
    "COCO-Detection/faster_rcnn_R_101_C4_3x": "3da06094bd3efd3f",
    "COCO-Detection/faster_rcnn_R_101_DC5_3x": "3e4cecbe07441ca9",
    "COCO-Detection/faster_rcnn_R_101_FPN_3x": "cdde37977f9f53e8",
    "COCO-Detection/faster_rcnn_R_50_C4_1x": "287f64c167704fac",
    "COCO-Detection/faster_rcnn_R_50_C4_3x": "f3ae7db8943e4d57",
    "COCO-Detection/faster_rcnn_R_50_DC5_1x": "7b161b649e0b6ea4",
    "COCO-Detection/faster_rcnn_R_50_DC5_3x": "2a10b1740574d4aa",
    "COCO-Detection/faster_rcnn_R_50_FPN_1x": "dc223e267fa41a94",
    "COCO-Detection/faster_rcnn_R_50_FPN_3x": "64b44f311b00d33a",
    "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x": "9302bccd9d48a0f4",
    "COCO-Detection/retinanet_R_101_FPN_3x": "6a262cd5e88cd75e",
    "COCO-Detection/retinanet_R_50_FPN_1x": "ed91a295c8c23c7c",
    "COCO-Detection/retinanet_R_50_FPN_3x": "9753541918732b12",
    "COCO-Detection/rpn_R_50_C4_1x": "157500fa7ae64351",
    "COCO-Detection/rpn_R_50_FPN_1x": "f366ce4c4209d67a",
    "Detectron1-Comparisons/faster_rcnn_R_50_FPN_noaug_1x": "2ed088b366e81c24",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x": "bfb05307a933f4f0",
    "Misc/cascade_mask_rcnn_R_50_FPN_3x": "b3658de21227af86",
    "PascalVOC-Detection/faster_rcnn_R_50_C4": "647648388d61e3f7",
    "PascalVOC-Detection/faster_rcnn_R_50_FPN": "1d5eb4389062ba36",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_merged_config_is_that_of_detectron2(name):
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file(f"{name}.yaml"))
    # Through plain containers: the text of a dump depends on which values are one object.
    text = json.dumps(yaml.safe_load(cfg.dump()), sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DIGESTS[name]


def test_config_of_retinanet_by_hand():
    cfg = model_zoo.get_config("COCO-Detection/retinanet_R_101_FPN_3x.yaml")
    assert cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    assert cfg.MODEL.RESNETS.DEPTH == 101
    assert cfg.SOLVER.STEPS == (210000, 250000)
    for size, sizes in zip((32, 64, 128, 256, 512), cfg.MODEL.ANCHOR_GENERATOR.SIZES, strict=True):
        assert sizes == pytest.approx([size, size * 2 ** (1 / 3), size * 2 ** (2 / 3)], rel=1e-14)


def test_checkpoint_url_with_and_without_extension():
    name = "COCO-Detection/faster_rcnn_R_50_FPN_1x"
    url = f"https://dl.fbaipublicfiles.com/detectron2/{name}/137257794/model_final_b275ba.pkl"
    assert model_zoo.get_checkpoint_url(name) == url
    assert model_zoo.get_checkpoint_url(f"{name}.yaml") == url


def test_all_checkpoint_urls():
    # From the same version; the bases and one config for PASCAL VOC have no trained model.
    without = {name for name in DIGESTS if name.startswith("Base-")}
    without.add("PascalVOC-Detection/faster_rcnn_R_50_FPN")
    urls = [model_zoo.get_checkpoint_url(name) for name in sorted(DIGESTS.keys() - without)]
    assert hashlib.sha256("\n".join(urls).encode()).hexdigest()[:16] == "106df42c8ec657e5"


def test_trained_config_points_to_the_checkpoint():
    name = "Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml"
    assert model_zoo.get_config(name).MODEL.WEIGHTS.endswith("ImageNetPretrained/MSRA/R-50.pkl")
    trained = model_zoo.get_config(name, trained=True)
    assert trained.MODEL.WEIGHTS == model_zoo.get_checkpoint_url(name)


@pytest.mark.parametrize(
    "function", [model_zoo.get_config_file, model_zoo.get_config, model_zoo.get_checkpoint_url]
)
def test_unknown_config_is_named(function):
    with pytest.raises(RuntimeError, match=r"Invalid/config\.yaml"):
        function("Invalid/config.yaml")


def test_config_without_trained_model():
    name = "PascalVOC-Detection/faster_rcnn_R_50_FPN.yaml"
    with pytest.raises(RuntimeError, match="faster_rcnn_R_50_FPN"):
        model_zoo.get_config(name, trained=True)


def test_get_builds_the_model_and_loads_its_weights(monkeypatch):
    loaded = []
    monkeypatch.setattr(DetectionCheckpointer, "load", lambda self, path: loaded.append(path))
    name = "COCO-Detection/rpn_R_50_C4_1x.yaml"
    model = model_zoo.get(name, trained=True, device="cpu")
    assert type(model).__name__ == "ProposalNetwork"
    assert model.training
    assert next(model.parameters()).device.type == "cpu"
    assert loaded == [model_zoo.get_checkpoint_url(name)]
