"""Several modes of one model from one pass, and the programs for Figure 8 and Table 3."""

import importlib.util
import json
import math
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from clsloc.cli import run
from clsloc.engine import setup_cfg
from detectron2.modeling import build_model
from double_head.mode_evaluation import available_rows, detect_in_rows

PROJECT = Path(__file__).parents[3] / "projects" / "double_head"
EXT = {"MODEL.DOUBLE_HEAD.LAMBDA_FC": 0.7, "MODEL.DOUBLE_HEAD.LAMBDA_CONV": 0.8}
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.DOUBLE_HEAD.CONV_DIM": 128,
    "MODEL.DOUBLE_HEAD.NONLOCAL.INTER_DIM": 16,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
}


@pytest.fixture
def dataset(tmp_path, forget_datasets):
    """Three images with a box each, of three classes, as COCO JSON."""
    images, annotations = [], []
    for i in range(3):
        image = np.full((64, 96, 3), 90, np.uint8)
        cv2.rectangle(image, (20, 10), (60, 50), (255, 80 * i, 0), -1)
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
        images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 96})
        box = {"bbox": [20, 10, 40, 40], "area": 1600, "iscrowd": 0}
        annotations.append({"id": i + 1, "image_id": i, "category_id": i + 1, **box})
    categories = [{"id": i + 1, "name": f"class {i}"} for i in range(3)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "data.json").write_text(json.dumps(content))
    return ["three", str(tmp_path / "data.json"), str(tmp_path)]


def test_every_row_equals_a_model_that_is_configured_for_it(build_tiny, make_batch):
    model = build_tiny(EXT).eval()
    for layer in model.roi_heads.box_predictor.predictors.values():
        torch.nn.init.normal_(layer.weight, std=0.2)
    rows = available_rows(model.roi_heads.box_predictor.plan)
    assert list(rows) == ["conv", "fc", "split", "fused", "max", "average"]
    batch = make_batch([], [])
    batch[1].update(height=128, width=192)  # detections are returned in these pixels
    found = detect_in_rows(model, batch, rows)
    seen = set()
    for row, (score, box) in rows.items():
        keys = {"MODEL.DOUBLE_HEAD.TEST_SCORE": score, "MODEL.DOUBLE_HEAD.TEST_BOX": box}
        configured = build_tiny({**EXT, **keys}).eval()
        configured.load_state_dict(model.state_dict())
        with torch.no_grad():
            expected = configured(batch)
        for a, b in zip(found[row], expected, strict=True):
            a, b = a["instances"], b["instances"]
            assert len(a) == len(b) > 0
            assert a.image_size == b.image_size
            torch.testing.assert_close(a.scores, b.scores)
            torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor)
        seen.add((tuple(a.scores.tolist()), tuple(a.pred_boxes.tensor.flatten().tolist())))
    assert len(seen) == len(rows)


def test_rows_of_a_vanilla_model(build_tiny):
    assert list(available_rows(build_tiny().roi_heads.box_predictor.plan)) == ["split"]


@pytest.fixture
def run_tool(monkeypatch, capsys):
    """Run a program in this process; what it starts finds the packages of this one."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PROJECT), *filter(None, sys.path)]))

    def run_tool(name, *arguments):
        spec = importlib.util.spec_from_file_location(name, PROJECT / "tools" / f"{name}.py")
        tool = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tool)
        status = run(tool.main, tool.parser(), [str(argument) for argument in arguments])
        return status, capsys.readouterr()

    return run_tool


def test_lambda_grid_trains_and_evaluates_each_pair_once(dataset, tmp_path, run_tool):
    config = PROJECT / "configs" / "digits" / "double_head_R_18_FPN.yaml"
    keys = {**SMALL, "MODEL.ROI_HEADS.NUM_CLASSES": 3}
    keys |= {"DATASETS.TRAIN": "('three',)", "DATASETS.TEST": "('three',)"}
    arguments = [
        *("--config-file", config, "--coco", *dataset, "--output", tmp_path / "grid"),
        *("--lambda-fc", 0.7, "--lambda-conv", 1.0, "--json", tmp_path / "grid.json"),
        *(item for pair in keys.items() for item in pair),
    ]
    status, output = run_tool("lambda_grid", *arguments)
    assert status == 0, output.err
    (report,) = json.loads((tmp_path / "grid.json").read_text())
    assert (report["lambda_fc"], report["lambda_conv"]) == (0.7, 1.0)
    assert list(report["modes"]) == ["fc", "split"]
    metrics = report["modes"]["split"]["three"]["bbox"]
    assert metrics["AP"] is None or math.isfinite(metrics["AP"])

    log = tmp_path / "grid" / "fc_0.7_conv_1.0" / "log.txt"
    written = log.stat().st_mtime_ns
    status, again = run_tool("lambda_grid", *arguments)
    assert status == 0
    assert "mode split" in again.out
    status, wrong = run_tool("lambda_grid", "--metric", "AP51", *arguments)
    assert status == 2
    assert "--metric AP51 was not measured: choose one of AP, AP50" in wrong.err
    assert log.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ("digits/double_head_R_18_FPN", "MODEL.WEIGHTS"),
        ("fpn_baseline_R_50_FPN_1x", "StandardROIHeads"),
    ],
)
def test_evaluate_modes_says_what_is_missing(config, word, run_tool):
    path = PROJECT / "configs" / f"{config}.yaml"
    status, output = run_tool("evaluate_modes", "--config-file", path)
    assert status == 2
    assert word in output.err


@pytest.mark.parametrize(
    ("config", "keys", "words"),
    [
        ("double_head_ext_R_50_FPN_1x", ["DATASETS.TEST", "('faces',)"], "'faces' has the measure"),
        ("double_head_ext_R_50_FPN_1x", ["DATASETS.TEST", "()"], "DATASETS.TEST is empty"),
        ("fpn_baseline_R_50_FPN_1x", [], "none of the towers"),
    ],
)
@pytest.mark.parametrize("tool", ["evaluate_modes", "lambda_grid"])
def test_what_has_no_modes_to_compare_is_refused_at_once(
    tool, config, keys, words, tmp_path, run_tool, forget_datasets
):
    folder = ["--output", tmp_path / "grid"] if tool == "lambda_grid" else []
    path = PROJECT / "configs" / f"{config}.yaml"
    faces = ["--wider-face", "faces", tmp_path, "val"]
    keys = ["MODEL.WEIGHTS", tmp_path / "none.pth", *keys]
    status, output = run_tool(tool, "--config-file", path, *faces, *folder, *keys)
    assert status == 2
    assert words in output.err and output.err.count("\n") == 1
    assert not (tmp_path / "grid").exists()


def test_analyze_heads(dataset, tmp_path, run_tool):
    config = PROJECT / "configs" / "digits" / "double_head_R_18_FPN.yaml"
    keys = {**SMALL, "MODEL.ROI_HEADS.NUM_CLASSES": 3}
    overrides = [str(item) for pair in keys.items() for item in pair]
    model = build_model(setup_cfg(config_file=str(config), overrides=overrides))
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    aps = tmp_path / "ap.json"
    aps.write_text(json.dumps({f"class {i}": 10.0 * i for i in range(3)}))
    words = ["--config-file", config, "--coco", *dataset, "--output", tmp_path / "out"]
    words += ["--class-ap", aps, "--images", 2]
    overrides += ["DATASETS.TEST", "('three',)", "MODEL.WEIGHTS", tmp_path / "model.pth"]
    status, output = run_tool("analyze_heads", *words, "--windows", 20, *overrides)
    assert status == 0, output.err
    assert "windows, all" in output.out and "detections:" in output.out
    report = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert report["images"] == 2 and sum(report["groups"]["all"]["count"]) == 40
    for name in ("windows", "cells"):
        assert Image.open(tmp_path / "out" / f"{name}.png").width > 300

    status, output = run_tool("analyze_heads", *words, "--windows", 0, *overrides)
    assert status == 2 and "--windows 0 is too few" in output.err
    aps.write_text("{}")
    status, output = run_tool("analyze_heads", *words, *overrides)
    assert status == 2 and "an AP for each class" in output.err
