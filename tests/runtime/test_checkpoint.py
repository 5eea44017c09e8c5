"""DetectionCheckpointer, name conversion and the model catalog, on either Detectron2."""

import logging
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from detectron2.checkpoint.c2_model_loading import (
    align_and_update_state_dicts,
    convert_basic_c2_names,
    convert_c2_detectron_names,
)
from detectron2.checkpoint.catalog import ModelCatalog
from detectron2.utils.file_io import PathManager


class _Messages(logging.Handler):
    def __init__(self):
        super().__init__()
        self.text = ""

    def emit(self, record):
        self.text += record.getMessage() + "\n"


class _Model(nn.Module):
    """backbone.res2.0.conv1 with a norm, a linear layer and pixel statistics."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        block = nn.Module()
        block.conv1 = nn.Conv2d(2, 3, 1, bias=False)
        block.conv1.norm = nn.BatchNorm2d(3)
        self.backbone.res2 = nn.Sequential(block)
        self.head = nn.Linear(3, 2)
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1))


CONV = "backbone.res2.0.conv1.weight"


def _value(model: nn.Module, name: str) -> float:
    """The value that all entries of a parameter have."""
    values = model.state_dict()[name].unique()
    assert len(values) == 1, f"{name} was not loaded"
    return values.item()


def _array(value: float, *shape: int) -> np.ndarray:
    return np.full(shape, value, dtype=np.float32)


@pytest.fixture
def load(tmp_path):
    """Writes ``content`` to a file and loads it into a new model: model, rest, log messages."""

    def _load(name: str, content, query: str = ""):
        path = tmp_path / name
        if path.suffix == ".pkl":
            path.write_bytes(pickle.dumps(content, protocol=2))
        else:
            torch.save(content, path)
        model = _Model()
        checkpointer = DetectionCheckpointer(model)
        checkpointer.logger = logging.Logger("test")
        messages = _Messages()
        checkpointer.logger.addHandler(messages)
        rest = checkpointer.load(f"{path}{query}")
        return model, rest, messages.text

    return _load


# Formats


def test_own_format_returns_the_rest(load):
    model, rest, _ = load("a.pth", {"model": {CONV: torch.full((3, 2, 1, 1), 2.0)}, "iteration": 5})
    assert _value(model, CONV) == 2.0
    assert rest == {"iteration": 5}


def test_plain_state_dict(load):
    model, rest, _ = load("a.pth", {CONV: torch.full((3, 2, 1, 1), 2.0)})
    assert _value(model, CONV) == 2.0
    assert rest == {}


def test_model_zoo_pickle_needs_the_exact_names(load):
    content = {"model": {CONV: _array(2, 3, 2, 1, 1)}, "__author__": "Detectron2 Model Zoo"}
    model, rest, _ = load("a.pkl", content)
    assert _value(model, CONV) == 2.0
    assert rest == {"__author__": "Detectron2 Model Zoo"}


def test_pickle_of_python_2_with_byte_strings(tmp_path):
    # str of Python 2 arrives as bytes, with values above 127, unless latin1 is assumed.
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02}q\x00(U\x05modelq\x01}q\x02U\n__author__q\x03U\x02\xe9\xe8q\x04u.")
    assert DetectionCheckpointer(_Model()).load(str(path)) == {"__author__": "\xe9\xe8"}


def test_pickle_with_matching_heuristics(load):
    content = {
        "model": {"res2.0.conv1.weight": _array(2, 3, 2, 1, 1)},
        "__author__": "torchvision",
        "matching_heuristics": True,
    }
    model, _, _ = load("a.pkl", content)
    assert _value(model, CONV) == 2.0


@pytest.mark.parametrize("below_blobs", [False, True])
def test_caffe2_pickle(load, below_blobs):
    weights = {
        "res2_0_branch2a_w": _array(2, 3, 2, 1, 1),
        "res2_0_branch2a_w_momentum": _array(9, 3, 2, 1, 1),
        "res2_0_branch2a_bn_s": _array(3, 3),
        "res2_0_branch2a_bn_b": _array(4, 3),
        "fc1000_w": _array(5, 7, 3),
    }
    model, rest, messages = load("a.pkl", {"blobs": weights} if below_blobs else weights)
    assert _value(model, CONV) == 2.0
    assert _value(model, "backbone.res2.0.conv1.norm.weight") == 3.0
    assert _value(model, "backbone.res2.0.conv1.norm.bias") == 4.0
    assert rest["__author__"] == "Caffe2"
    assert "fc1000" in messages
    assert "momentum" not in messages


def test_pycls_format_matches_by_heuristics(load):
    content = {"model_state": {"res2.0.conv1.weight": torch.full((3, 2, 1, 1), 2.0)}}
    model, rest, _ = load("a.pyth", content)
    assert _value(model, CONV) == 2.0
    assert rest["__author__"] == "pycls"
    with pytest.raises(AssertionError, match="model_state"):
        load("b.pyth", {"epoch": 1})


# Query


@pytest.mark.parametrize(
    ("query", "loaded"),
    [("?matching_heuristics=True", True), ("?matching_heuristics=False", False), ("", False)],
)
def test_query_turns_the_heuristics_on(load, query, loaded):
    content = {"model": {"res2.0.conv1.weight": torch.full((3, 2, 1, 1), 2.0)}}
    model, _, _ = load("a.pth", content, query)
    assert (model.state_dict()[CONV] == 2.0).all() == loaded


def test_unknown_query_is_refused(load):
    with pytest.raises(ValueError, match="foo"):
        load("a.pth", {"model": {}}, "?foo=1")


def test_a_query_holds_for_one_load_only(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"res2.0.conv1.weight": torch.full((3, 2, 1, 1), 2.0)}, path)
    model = _Model()
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(f"{path}?matching_heuristics=True")
    nn.init.ones_(model.backbone.res2[0].conv1.weight)
    checkpointer.load(str(path))
    assert _value(model, CONV) == 1.0


# What is reported


def test_pixel_statistics_and_old_anchors_are_not_reported(load):
    content = {"model": {"anchor_generator.cell_anchors.0": torch.ones(3), "stray": torch.ones(1)}}
    _, _, messages = load("a.pth", content)
    assert "stray" in messages
    assert "head" in messages
    assert "pixel_mean" not in messages
    assert "cell_anchors" not in messages


def test_tensor_of_another_shape_is_skipped(load):
    model, _, messages = load("a.pth", {"model": {"head.weight": torch.ones(5, 3)}})
    assert model.head.weight.shape == (2, 3)
    assert "head.weight" in messages


def test_missing_file_is_named():
    with pytest.raises(AssertionError, match=r"no_such_file\.pth"):
        DetectionCheckpointer(_Model()).load("no_such_file.pth")


def test_empty_path_loads_nothing():
    model = _Model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert DetectionCheckpointer(model).load("") == {}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# Saving and resuming


def test_resume_restores_checkpointables_and_load_does_not(tmp_path):
    model = _Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    checkpointer = DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)
    PeriodicCheckpointer(checkpointer, period=10, max_iter=100).step(9)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000009.pth"

    weights = model.state_dict()[CONV].clone()
    for resume, lr in ((True, 0.5), (False, 0.25)):
        other = _Model()
        other_optimizer = torch.optim.SGD(other.parameters(), lr=0.25)
        again = DetectionCheckpointer(other, str(tmp_path), optimizer=other_optimizer)
        rest = again.resume_or_load(str(tmp_path / "model_0000009.pth"), resume=resume)
        assert rest["iteration"] == 9
        assert torch.equal(other.state_dict()[CONV], weights)
        assert other_optimizer.param_groups[0]["lr"] == lr


def test_only_the_main_process_saves(tmp_path, monkeypatch):
    assert DetectionCheckpointer(_Model()).save_to_disk
    monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: 1)
    checkpointer = DetectionCheckpointer(_Model(), str(tmp_path))
    checkpointer.save("model")
    assert not checkpointer.save_to_disk
    assert list(tmp_path.iterdir()) == []
    assert DetectionCheckpointer(_Model(), save_to_disk=True).save_to_disk


# Names of Caffe2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("conv1_w", "stem.conv1.weight"),
        ("res_conv1_bn_s", "stem.conv1.norm.weight"),
        ("conv1_gn_b", "stem.conv1.norm.bias"),
        ("res2_0_branch1_w", "res2.0.shortcut.weight"),
        ("res3_1_branch2a_bn_b", "res3.1.conv1.norm.bias"),
        ("res4_22_branch2b_bn_rm", "res4.22.conv2.norm.running_mean"),
        ("res4_22_branch2b_bn_riv", "res4.22.conv2.norm.running_var"),
        ("res5_2_branch2c_gn_s", "res5.2.conv3.norm.weight"),
        ("pred_w", "linear.weight"),
        ("pred_b", "linear.bias"),
    ],
)
def test_names_of_a_backbone(old, new):
    assert convert_basic_c2_names([old]) == [new]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("res2_0_branch2a_w", "res2.0.conv1.weight"),
        ("fpn_inner_res5_2_sum_w", "fpn_lateral5.weight"),
        ("fpn_inner_res4_22_sum_lateral_w", "fpn_lateral4.weight"),
        ("fpn_inner_res2_2_sum_lateral_gn_s", "fpn_lateral2.norm.weight"),
        ("fpn_res3_3_sum_b", "fpn_output3.bias"),
        ("conv_rpn_w", "proposal_generator.rpn_head.conv.weight"),
        ("conv_rpn_fpn2_b", "proposal_generator.rpn_head.conv.bias"),
        ("rpn_cls_logits_fpn2_w", "proposal_generator.rpn_head.objectness_logits.weight"),
        ("rpn_bbox_pred_w", "proposal_generator.rpn_head.anchor_deltas.weight"),
        ("fc6_w", "box_head.fc1.weight"),
        ("fc7_b", "box_head.fc2.bias"),
        ("head_conv1_w", "box_head.conv1.weight"),
        ("head_conv4_gn_b", "box_head.conv4.norm.bias"),
    ],
)
def test_names_of_a_detector(old, new):
    weight = torch.rand(3, 2)
    weights, names = convert_c2_detectron_names({old: weight})
    assert names == {new: old}
    assert torch.equal(weights[new], weight)


def test_background_moves_from_the_first_class_to_the_last():
    # Background and two classes.
    scores, boxes = torch.arange(3.0), torch.arange(12.0)
    weights, _ = convert_c2_detectron_names({"cls_score_b": scores, "bbox_pred_b": boxes})
    assert weights["cls_score.bias"].tolist() == [1, 2, 0]
    assert weights["bbox_pred.bias"].tolist() == list(range(4, 12))


def test_two_names_of_one_parameter_are_refused():
    with pytest.raises((ValueError, AssertionError)):
        convert_c2_detectron_names({"conv_rpn_w": torch.ones(1), "conv_rpn_fpn2_w": torch.ones(1)})


# Matching by the ends of names


def _aligned(model: dict[str, torch.Tensor], checkpoint: dict[str, torch.Tensor]):
    return align_and_update_state_dicts(model, checkpoint, c2_conversion=False)


def test_the_longest_matching_end_wins():
    model = {"a.b.c": torch.zeros(2), "x.b.c": torch.zeros(2)}
    checkpoint = {"c": torch.ones(2), "b.c": torch.full((2,), 2.0), "x.b.c": torch.full((2,), 3.0)}
    aligned = _aligned(model, checkpoint)
    assert {k: v[0].item() for k, v in aligned.items()} == {"a.b.c": 2, "x.b.c": 3, "c": 1}


def test_ends_are_whole_parts():
    aligned = _aligned({"a.bb.c": torch.zeros(2)}, {"b.c": torch.ones(2)})
    assert list(aligned) == ["b.c"]


def test_another_shape_does_not_match():
    aligned = _aligned({"a.b": torch.zeros(2), "a.c": torch.zeros(2)}, {"b": torch.ones(3)})
    assert list(aligned) == ["b"]


def test_a_tensor_for_two_parameters_is_refused():
    with pytest.raises(ValueError, match=r"match"):
        _aligned({"a.c": torch.zeros(2), "b.c": torch.zeros(2)}, {"c": torch.ones(2)})


# Catalog


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("ImageNetPretrained/MSRA/R-50", "ImageNetPretrained/MSRA/R-50.pkl"),
        ("ImageNetPretrained/FAIR/R-50-GN", "ImageNetPretrained/47261647/R-50-GN.pkl"),
        (
            "Caffe2Detectron/COCO/35857345/e2e_faster_rcnn_R-50-FPN_1x",
            "35857345/12_2017_baselines/e2e_faster_rcnn_R-50-FPN_1x.yaml.01_36_30.cUF7QR7I/output/"
            "train/coco_2014_train%3Acoco_2014_valminusminival/generalized_rcnn/model_final.pkl",
        ),
    ],
)
def test_catalog(name, path):
    assert ModelCatalog.get(name) == f"https://dl.fbaipublicfiles.com/detectron/{path}"


def test_catalog_names_are_paths():
    with pytest.raises(RuntimeError, match="no_such_model"):
        PathManager.get_local_path("catalog://no_such_model")
