"""Paired timing, set survivors, and workloads in this and in another process."""

import importlib.util
import itertools
import json
import subprocess
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from clsloc.cli import run
from clsloc.engine.setup import setup_cfg
from clsloc.errors import UserError
from clsloc.gauges.child import RemoteWorkload
from clsloc.gauges.pairs import PairedTimes, median_interval, time_pairs
from clsloc.gauges.parts import PartClock, median_parts
from clsloc.gauges.survivors import fixed_survivors, spread
from clsloc.gauges.workload import Workload, calibrated_norms, synthetic_inputs
from detectron2.layers import get_norm
from detectron2.modeling.roi_heads import fast_rcnn

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

    cells = []
    for expected in ([21, 4, 1], [16, 4, 1]):
        with fixed_survivors(model, num_classes=3, count=21, batch=1, level_cells=cells):
            passed = [int((model["cls_score"](m).sigmoid() > 0.05).sum()) for m in maps]
        assert passed == expected


def test_box_regressors_are_left_alone():
    layers = {"cls_score": nn.Linear(6, 4), "bbox_pred": nn.Linear(6, 4), "fc_reg": nn.Linear(6, 4)}
    model, features = nn.ModuleDict(layers).eval(), torch.randn(9, 6)
    raw = {name: model[name](features) for name in layers}
    with fixed_survivors(model, num_classes=3, count=2, batch=1):
        changed = [name for name in layers if not torch.equal(model[name](features), raw[name])]
    assert changed == ["cls_score"]


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


def test_a_part_within_another_counts_for_itself(monkeypatch):
    now = iter(range(0, 100, 10))
    monkeypatch.setattr("clsloc.gauges.parts.time.perf_counter", lambda: next(now))
    waits = []
    clock = PartClock(lambda: waits.append(1))
    with clock.part("heads"):  # 0
        with clock.part("pooling"):  # 10 to 20
            pass
        with clock.part("heads"):  # 30 to 40
            pass
    assert clock.seconds == {"heads": 40, "pooling": 10} and len(waits) == 6
    steps = [{"heads": 1.0, "backbone": 5.0}, {"heads": 3.0}, {"heads": 7.0, "other": 4.0}]
    assert median_parts(steps) == {"backbone": 0.0, "heads": 3.0, "other": 0.0}
    assert list(median_parts(steps)) == ["backbone", "heads", "other"]


TRAINING = {"backward", "optimizer", "other"}


@pytest.mark.parametrize(
    "config, inference, training",
    [
        (CONFIG, {"proposals", "pooling", "post-processing"}, {"proposals", "pooling"}),
        ("projects/ddod/configs/digits/ddod_atss_R_18_FPN.yaml", {"post-processing"}, {"losses"}),
    ],
)
def test_the_parts_of_a_step_add_up_to_it(config, inference, training, repo):
    path = repo / config
    cfg = setup_cfg(config_file=str(path) if path.exists() else config, overrides=SMALL)
    work = Workload(cfg, size=(96, 128), survivors=5)
    before = work._infer()[0]["instances"]
    start = time.perf_counter()
    parts = work.measure_parts("inference")
    whole = time.perf_counter() - start
    assert 0.5 * whole < sum(parts.values()) <= whole
    assert torch.equal(work._infer()[0]["instances"].scores, before.scores)
    assert set(parts) == {"backbone", "heads", "other"} | inference
    assert set(work.measure_parts("train_step")) == {"backbone", "heads"} | TRAINING | training
    assert all(seconds > 0 for seconds in parts.values())
    # Nothing of it stays.
    assert not any(module._forward_hooks for module in work.model.modules())
    assert "forward_inference" not in vars(work.model)
    assert fast_rcnn.fast_rcnn_inference_single_image.__name__ != "timed"


def test_time_goes_to_the_part_that_takes_it(monkeypatch):
    def slowly(function, seconds):
        return lambda *args, **kwargs: (time.sleep(seconds), function(*args, **kwargs))[1]

    work = workload(survivors=5)
    pooler = work.model.roi_heads.box_pooler
    monkeypatch.setattr(pooler, "forward", slowly(pooler.forward, 0.4))
    nms = "detectron2.modeling.roi_heads.fast_rcnn.batched_nms"
    monkeypatch.setattr(nms, slowly(fast_rcnn.batched_nms, 0.2))
    parts = work.measure_parts("inference")
    assert parts["pooling"] > 0.4 and parts["post-processing"] > 0.2 > parts["heads"]


def test_mixed_precision_on_a_cpu_is_bfloat16():
    work = workload(survivors=5, amp=True)
    found = []
    work.model.backbone.register_forward_hook(lambda *args: found.append(args[2]["p2"].dtype))
    assert work.precision == "bfloat16" and workload().precision == "float32"
    assert work.measure("inference") > 0 and work.measure("train_step") > 0
    assert found == [torch.bfloat16] * 2 and not work.scaler.is_enabled()


def test_a_layer_without_mixed_precision_is_a_sentence(monkeypatch):
    def fail(_):
        raise RuntimeError("\"roi_align\" not implemented for 'BFloat16'")

    work = workload(amp=True)
    monkeypatch.setattr(work.model, "forward", fail)
    with pytest.raises(UserError, match=r"roi_align.*leave out --amp"):
        work.measure("inference")
    work.amp = False
    with pytest.raises(RuntimeError, match="roi_align"):
        work.measure("inference")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_mixed_precision_on_cuda_is_float16_with_scaled_gradients():
    cfg = setup_cfg(config_file=CONFIG, overrides=["MODEL.DEVICE", "cuda", "MODEL.WEIGHTS", ""])
    work = Workload(cfg, size=(96, 128), survivors=5, amp=True)
    assert work.precision == "float16" and work.scaler.is_enabled()
    assert work.measure("inference") > 0 and work.measure("train_step") > 0
    assert sum(work.measure_parts("inference").values()) > 0


def test_channels_last_reaches_the_feature_maps_and_changes_no_detection():
    work, last = workload(survivors=5), workload(survivors=5, channels_last=True)
    found = []
    last.model.backbone.register_forward_hook(lambda *args: found.append(args[2]["p2"]))
    expected, got = (w._infer()[0]["instances"] for w in (work, last))
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    boxes = expected.pred_boxes.tensor
    torch.testing.assert_close(got.pred_boxes.tensor, boxes, rtol=1e-4, atol=1e-3)
    assert last.measure("train_step") > 0


def test_a_child_process_measures_time_and_memory():
    settings = {"config_file": CONFIG, "overrides": SMALL, "size": (64, 64), "survivors": 2}
    with RemoteWorkload({**settings, "amp": True, "channels_last": True}) as remote:
        assert remote.measure("inference") > 0 and remote.precision == "bfloat16"
        assert set(remote.measure_parts("inference")) >= {"backbone", "heads", "other"}
        assert remote.peak_memory_mb() > 10


def test_a_child_that_fails_is_a_sentence_and_leaves_nothing(capfd, monkeypatch):
    started, start = [], subprocess.Popen

    def noted(*args, **kwargs):
        started.append(start(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    with pytest.raises(UserError, match="ended early"):
        RemoteWorkload({"config_file": "nowhere.yaml", "size": (64, 64)})
    assert "nowhere.yaml" in capfd.readouterr().err
    (child,) = started
    assert child.returncode == 2 and child.stdin.closed and child.stdout.closed


def test_the_command_writes_its_figures(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("benchmark", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    file = tmp_path / "b.json"
    words = f"--config-file {CONFIG} --override-a MODEL.ROI_BOX_HEAD.FC_DIM 32 --size 64 64"
    words += f" --survivors 3 --pairs 2 --warmup 0 --device cpu --json {file}"
    words += " --amp --channels-last --parts"
    assert run(module.main, module.parser(), words.split()) == 0
    out = capsys.readouterr().out
    assert "mixed precision: A bfloat16, B bfloat16" in out and "parts of train_step" in out
    report = json.loads(file.read_text())
    assert report["parts"]["inference"]["a"]["backbone"] > 0
    assert report["parts"]["train_step"]["b"]["backward"] > 0
    assert report["precision"] == {"a": "bfloat16", "b": "bfloat16"}
    for kind in ("inference", "train_step"):
        assert set(report[kind]) == {"a_s", "b_s", "ratio", "ratio_interval"}
    assert report["peak_memory_mb"]["a"] > 10 and report["environment"]["torch"]
