"""Paired timing, set survivors, and workloads in this and in another process."""

import importlib.util
import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from clsloc.cli import run
from clsloc.engine.setup import setup_cfg
from clsloc.errors import UserError
from clsloc.gauges.child import RemoteWorkload
from clsloc.gauges.pairs import PairedTimes, median_interval, time_pairs
from clsloc.gauges.survivors import fixed_survivors, spread
from clsloc.gauges.workload import Workload, calibrated_norms, synthetic_inputs
from detectron2.layers import get_norm

TOOL = Path(__file__).resolve().parents[2] / "tools" / "benchmark.py"
CONFIG = "digits/faster_rcnn_R_18_FPN.yaml"
SMALL = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]


def test_ratio_pair_by_pair_by_hand():
    summary = PairedTimes(a=(2.0, 6.0, 3.0), b=(1.0, 2.0, 4.0)).summary()
    # Ratios 2, 3, 0.75; the ratio of the medians would be 1.5.
    assert (summary["a_s"], summary["b_s"], summary["ratio"]) == (3.0, 2.0, 2.0)
    assert summary["ratio_interval"] == [0.75, 3.0]


def test_median_interval_by_hand():
    # 10 tosses: P(0 or 10 heads) = 2/1024, P(<= 1 or >= 9) = 22/1024, P(<= 2 or >= 8) = 112/1024.
    # The 2nd and the 9th smallest leave out 22/1024 = 2.1 %, the 3rd and 8th 10.9 %.
    values = [float(v) for v in range(10)]
    assert median_interval(values) == (1.0, 8.0)
    assert median_interval(values, confidence=0.85) == (2.0, 7.0)
    assert median_interval([5.0, 4.0]) == (4.0, 5.0)


def test_pairs_take_turns():
    calls = []

    def side(name):
        counter = itertools.count(1)
        return lambda: calls.append(name) or float(next(counter))

    times = time_pairs(side("a"), side("b"), pairs=3, warmup=1)
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert times == PairedTimes(a=(2.0, 3.0, 4.0), b=(2.0, 3.0, 4.0))


def test_survivors_are_spread_evenly():
    rows, classes = spread(4, 10, 3, torch.device("cpu"))
    assert rows.tolist() == [0, 2, 5, 7] and classes.tolist() == [0, 1, 2, 0]
    assert len(spread(9, 4, 3, torch.device("cpu"))[0]) == 4
    assert len(spread(0, 4, 3, torch.device("cpu"))[0]) == 0


def test_exactly_the_set_number_of_rois_passes_in_evaluation_mode_only():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    features = torch.randn(50, 6)
    raw = model(features)
    with fixed_survivors(model, num_classes=3, count=7, batch=2):
        assert torch.equal(model(features), raw)
        model.eval()
        probabilities = model(features).softmax(1)[:, :-1]
        assert (probabilities > 0.05).sum() == 14
        assert ((probabilities > 0.05).sum(1) <= 1).all()
        assert model(features[:0]).shape == (0, 4)
    assert torch.equal(model(features), raw)


def test_dense_survivors_are_shared_out_among_the_levels():
    model = nn.ModuleDict({"cls_score": nn.Conv2d(2, 6, 1)}).eval()
    maps = [torch.randn(1, 2, size, size) for size in (8, 4, 2)]
    with fixed_survivors(model, num_classes=3, count=21, batch=1):
        for _ in range(2):  # the shares are known from the second pass on
            passed = [int((model["cls_score"](m).sigmoid() > 0.05).sum()) for m in maps]
    assert passed == [16, 4, 1]


def test_a_model_without_class_layer_is_a_sentence():
    with pytest.raises(UserError, match="No layer"), fixed_survivors(nn.Linear(2, 2), 3, 1, 1):
        pass


def workload(**kwargs) -> Workload:
    cfg = setup_cfg(config_file=CONFIG, overrides=SMALL)
    return Workload(cfg, size=(96, 128), **kwargs)


def test_a_step_runs_and_changes_no_weight():
    work = workload(survivors=5, batch=2)
    before = [p.clone() for p in work.model.parameters()]
    assert work.measure("inference") > 0 and work.measure("train_step") > 0
    assert all(torch.equal(a, b) for a, b in zip(before, work.model.parameters()))
    assert any(p.grad is not None and p.grad.any() for p in work.model.parameters())
    assert work.peak_memory_mb() > 10


def test_calibrated_norms_whiten_what_random_weights_make_of_the_input():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), get_norm("FrozenBN", 8), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)]
    model = nn.Sequential(*layers).eval()
    x = 1000 * torch.rand(2, 3, 9, 9)
    with calibrated_norms(model), torch.no_grad():
        model(x)
        model(x[:0])  # nothing to learn from
    with torch.no_grad():
        for last in (2, 4):
            out = model[:last](x)
            assert out.mean(dim=(0, 2, 3)).abs().max() < 1e-3
            assert (out.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-3
    assert not any(module._forward_pre_hooks for module in model)


def test_survivors_bound_the_detections_of_a_detector():
    work = workload(survivors=5)
    assert 1 <= len(work._infer()[0]["instances"]) <= 5
    assert len(workload(survivors=0)._infer()[0]["instances"]) == 0


def test_inputs_are_boxes_inside_the_image():
    (image,) = synthetic_inputs((60, 90), batch=1, num_gt=30, num_classes=4)
    boxes = image["instances"].gt_boxes
    assert boxes.nonempty().all() and boxes.tensor[:, 2].max() <= 90
    assert boxes.tensor[:, 3].max() <= 60 and image["image"].shape == (3, 60, 90)


def test_a_child_process_measures_time_and_memory():
    settings = {"config_file": CONFIG, "overrides": SMALL, "size": (64, 64), "survivors": 2}
    with RemoteWorkload(settings) as remote:
        assert remote.measure("inference") > 0
        assert remote.peak_memory_mb() > 10


def test_a_child_that_fails_is_a_sentence(capfd):
    with pytest.raises(UserError, match="ended early"):
        RemoteWorkload({"config_file": "nowhere.yaml", "size": (64, 64)})
    assert "nowhere.yaml" in capfd.readouterr().err


def test_the_command_writes_its_figures(tmp_path):
    spec = importlib.util.spec_from_file_location("benchmark", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    file = tmp_path / "b.json"
    words = f"--config-file {CONFIG} --override-a MODEL.ROI_BOX_HEAD.FC_DIM 32 --size 64 64"
    words += f" --survivors 3 --pairs 2 --warmup 0 --device cpu --json {file}"
    assert run(module.main, module.parser(), words.split()) == 0
    report = json.loads(file.read_text())
    for kind in ("inference", "train_step"):
        assert set(report[kind]) == {"a_s", "b_s", "ratio", "ratio_interval"}
    assert report["peak_memory_mb"]["a"] > 10 and report["environment"]["torch"]
