"""Events and writers, logging, seeds, registries and other helpers, on either Detectron2.

What several processes do together is tested in test_engine.py.
"""

import json
import logging
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.analysis import (
    FlopCountAnalysis,
    activation_count_operators,
    find_unused_parameters,
    flop_count_operators,
    parameter_count,
)
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.colormap import colormap, random_color, random_colors
from detectron2.utils.develop import create_dummy_class, create_dummy_func
from detectron2.utils.env import TORCH_VERSION, seed_all_rng, setup_custom_environment
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import (
    create_small_table,
    log_every_n,
    log_every_n_seconds,
    log_first_n,
    setup_logger,
)
from detectron2.utils.memory import retry_if_cuda_oom
from detectron2.utils.registry import Registry, locate
from detectron2.utils.serialize import PicklableWrapper
from detectron2.utils.testing import assert_instances_allclose, random_boxes

# Events


def test_storage_smooths_what_was_put_with_the_hint():
    with EventStorage(start_iter=10) as storage:
        for value in (1.0, 2.0, 9.0, 4.0):
            storage.put_scalar("loss", value)
            storage.put_scalar("lr", torch.tensor(value), smoothing_hint=False)
            storage.step()
        assert storage.iter == storage.iteration == 14
        assert storage.latest() == {"loss": (4.0, 13), "lr": (4.0, 13)}
        assert storage.latest_with_smoothing_hint(3) == {"loss": (4.0, 13), "lr": (4.0, 13)}
        assert storage.latest_with_smoothing_hint(4) == {"loss": (3.0, 13), "lr": (4.0, 13)}
        assert storage.smoothing_hints() == {"loss": True, "lr": False}
        assert storage.history("loss").values() == [(1.0, 10), (2.0, 11), (9.0, 12), (4.0, 13)]
        assert set(storage.histories()) == {"loss", "lr"}


def test_window_counts_iterations_and_not_values():
    with EventStorage() as storage:
        for iteration in range(10):
            if iteration % 3 == 0:  # 0, 3, 6, 9
                storage.put_scalar("rare", iteration)
            storage.step()
        assert storage.count_samples("rare", 4) == 2
        assert storage.latest_with_smoothing_hint(4)["rare"] == (7.5, 9)


def test_scalars_of_another_iteration_and_of_a_scope():
    with EventStorage() as storage:
        storage.step()
        with storage.name_scope("rpn"):
            storage.put_scalars(a=1, b=2, cur_iter=0)
        storage.put_scalar("a", 3)
        assert storage.latest() == {"rpn/a": (1.0, 0), "rpn/b": (2.0, 0), "a": (3.0, 1)}


def test_storages_nest():
    assert not has_event_storage()
    with pytest.raises(AssertionError, match="get_event_storage"):
        get_event_storage()
    with EventStorage() as outer:
        with EventStorage() as inner:
            assert get_event_storage() is inner
        assert get_event_storage() is outer
    assert not has_event_storage()


def test_storage_errors():
    with EventStorage() as storage:
        with pytest.raises(KeyError, match="nothing"):
            storage.history("nothing")
        storage.put_scalar("x", 1)
        with pytest.raises(AssertionError, match="x"):
            storage.put_scalar("x", 1, smoothing_hint=False)


def _run(writer, iterations: range, period: int = 2) -> None:
    with EventStorage(iterations.start) as storage:
        for iteration in iterations:
            storage.put_scalar("loss", iteration)
            storage.put_scalar("lr", 0.5, smoothing_hint=False)
            if iteration == 2:
                storage.put_scalar("AP", 40.0, smoothing_hint=False)
            if (iteration + 1) % period == 0:
                writer.write()
            storage.step()
        writer.close()


def _json_lines(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_json_writer_appends_a_line_per_iteration():
    _run(JSONWriter("metrics.json", window_size=2), range(4))
    _run(JSONWriter("metrics.json", window_size=2), range(4, 6))
    assert _json_lines("metrics.json") == [
        {"iteration": 1, "loss": 0.5, "lr": 0.5},
        {"iteration": 3, "loss": 2.5, "lr": 0.5},
        {"iteration": 2, "AP": 40.0},
        {"iteration": 5, "loss": 4.5, "lr": 0.5},
    ]


def test_printer_line(caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    with caplog.at_level(logging.INFO, "detectron2"), EventStorage(3) as storage:
        printer = CommonMetricPrinter(max_iter=65, window_size=2)
        for value in (1.0, 2.0):
            storage.put_scalars(total_loss=value, time=value, data_time=value / 4)
            storage.put_scalar("[metric]acc", 0.12345)
            storage.put_scalar("other", 7)
            storage.put_scalar("lr", 1e-5, smoothing_hint=False)
            printer.write()
            storage.step()
        storage.iter = 65
        printer.write()  # the end was reported before
        assert storage.latest()["eta_seconds"] == (90.0, 4)
    assert [" ".join(record.getMessage().split()) for record in caplog.records] == [
        "eta: 0:01:01 iter: 3 total_loss: 1 [metric]acc: 0.1235 time: 1.0000 last_time: 1.0000 "
        "data_time: 0.2500 last_data_time: 0.2500 lr: 1e-05",
        "eta: 0:01:30 iter: 4 total_loss: 1.5 [metric]acc: 0.1235 time: 1.5000 last_time: 2.0000 "
        "data_time: 0.3750 last_data_time: 0.5000 lr: 1e-05",
    ]


def test_tensorboard_file_appears_with_the_first_write(tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    TensorboardXWriter(str(tmp_path / "empty")).close()
    assert not (tmp_path / "empty").exists()

    writer = TensorboardXWriter(str(tmp_path / "full"), window_size=2)
    with EventStorage() as storage:
        storage.put_image("picture", torch.zeros(3, 4, 4))
        storage.put_histogram("h", torch.arange(4.0), bins=2)
        writer.write()
    _run(writer, range(1, 5))
    events = event_accumulator.EventAccumulator(str(tmp_path / "full"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (3, 2.5)]
    assert [e.value for e in events.Scalars("AP")] == [40.0]
    assert [e.step for e in events.Images("picture")] == [0]
    assert events.Histograms("h")[0].histogram_value.sum == 6.0


# Logging


def test_log_files_by_rank(capsys):
    main = setup_logger("out", name="test_log_main", color=False)
    other = setup_logger("out", distributed_rank=2, name="test_log_other")
    named = setup_logger("out/named.log", name="test_log_named")
    assert setup_logger("out", name="test_log_main", color=False) is main
    assert len(main.handlers) == 2
    for logger in (main, other, named):
        logger.debug("hello")
        for handler in logger.handlers:
            handler.flush()
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "log.txt",
        "log.txt.rank2",
        "named.log",
    ]
    assert Path("out/log.txt").read_text().endswith("] test_log_main DEBUG: hello\n")
    assert Path("out/log.txt.rank2").read_text().endswith("] test_log_other DEBUG: hello\n")
    console = capsys.readouterr().out
    assert "test_log_main" in console
    assert "test_log_other" not in console


def test_console_abbreviates_names_and_marks_warnings(capsys):
    setup_logger(name="test_console", abbrev_name="tc")
    logging.getLogger("test_console.engine").warning("careful")
    line = capsys.readouterr().out
    assert "WARNING" in line
    assert "tc.engine]: " in line
    assert "test_console" not in line


def test_rate_limited_logging(caplog):
    def at_one_line(message: str) -> None:
        log_first_n(logging.INFO, message, 2, name="limited")

    with caplog.at_level(logging.INFO):
        for number in range(5):
            at_one_line(f"first {number}")
            log_first_n(logging.INFO, f"kind {number % 2}", name="limited", key="message")
            log_every_n(logging.INFO, f"every {number}", 3, name="limited")
            log_every_n_seconds(logging.INFO, f"seconds {number}", 100, name="limited")
    assert sorted(record.getMessage() for record in caplog.records) == sorted(
        ["first 0", "first 1", "kind 0", "kind 1", "every 0", "every 3", "seconds 0"]
    )


def test_small_table():
    header, _, row = create_small_table({"AP": 1.23456, "name": "x"}).splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["AP", "name"]
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["1.235", "x"]


# Processes


def test_comm_without_processes():
    assert (comm.get_world_size(), comm.get_rank()) == (1, 0)
    assert (comm.get_local_size(), comm.get_local_rank()) == (1, 0)
    assert comm.is_main_process()
    assert comm.all_gather({"a": 1}) == comm.gather({"a": 1}) == [{"a": 1}]
    values = {"a": torch.tensor(3.0)}
    assert comm.reduce_dict(values) == values
    comm.synchronize()
    with pytest.raises(AssertionError, match="launch"):
        comm.get_local_process_group()


def test_shared_random_seed_is_numpys_next_number():
    np.random.seed(7)
    drawn = comm.shared_random_seed()
    np.random.seed(7)
    assert drawn == np.random.randint(2**31)


# Environment


def test_seeds_reach_all_generators():
    def draw() -> tuple:
        return random.random(), np.random.rand(), torch.rand(1).item()

    seed_all_rng(7)
    first = draw()
    # Of the generators themselves: Python's, numpy's and PyTorch's.
    assert first == pytest.approx((0.32383276, 0.07630829, 0.53492254))
    seed_all_rng(7)
    assert draw() == first
    seed_all_rng()
    second = draw()
    assert all(a != b for a, b in zip(first, second))


def test_custom_environment_module(tmp_path):
    module = tmp_path / "my_env.py"
    module.write_text("def setup_environment():\n    open('was_set_up', 'w').close()\n")
    setup_custom_environment(str(module))
    assert Path("was_set_up").exists()
    module.write_text("")
    with pytest.raises(AssertionError, match="setup_environment"):
        setup_custom_environment(str(module))


def test_environment_report():
    report = collect_env_info()
    for word in ("Python", "PyTorch", "torchvision", "fvcore", "iopath", "numpy", "detectron2"):
        assert word in report
    assert torch.__version__ in report
    assert torch.__version__.startswith(".".join(map(str, TORCH_VERSION)))


# Registries and paths


def test_registry_and_locate():
    registry = Registry("ANIMALS")

    @registry.register()
    class Cat:
        pass

    assert registry.get("Cat") is Cat
    with pytest.raises(KeyError, match="Dog"):
        registry.get("Dog")
    assert locate("torch.nn.Linear") is nn.Linear
    assert locate("torch.nn.modules.linear.Linear") is nn.Linear
    assert locate("logging.Logger.info") is logging.Logger.info
    for missing in ("no_such_module.x", "torch.nn.NoSuchLayer"):
        with pytest.raises(ImportError, match=missing):
            locate(missing)


def test_path_manager_on_local_files():
    PathManager.mkdirs("a/b")
    with PathManager.open("a/b/c.txt", "w") as file:
        file.write("x")
    assert PathManager.isfile("a/b/c.txt")
    assert Path(PathManager.get_local_path("a/b/c.txt")).read_text() == "x"


def test_zoo_paths_go_to_the_download_site(monkeypatch):
    asked = []
    original = PathManager.get_local_path

    def get_local_path(path, *args, **kwargs):
        asked.append(path)
        return "local" if path.startswith("https") else original(path, *args, **kwargs)

    monkeypatch.setattr(PathManager, "get_local_path", get_local_path)
    assert PathManager.get_local_path("detectron2://a/model.pkl") == "local"
    assert asked[-1] == "https://dl.fbaipublicfiles.com/detectron2/a/model.pkl"


# Small helpers


def test_lambdas_become_picklable():
    factor = 3
    wrapped = PicklableWrapper(lambda x: x * factor)
    assert pickle.loads(pickle.dumps(wrapped))(2) == 6
    assert pickle.loads(pickle.dumps(PicklableWrapper(wrapped)))(2) == 6


def test_retry_after_running_out_of_memory():
    calls = []

    @retry_if_cuda_oom
    def fails_twice(x, *, y):
        calls.append(x.device.type)
        if len(calls) < 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.")
        return x + y

    assert fails_twice(torch.ones(1), y=1).item() == 2
    assert len(calls) == 3

    @retry_if_cuda_oom
    def other_error():
        calls.append("other")
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        other_error()
    assert calls.count("other") == 1


def test_stand_ins_for_missing_dependencies():
    stand_in = create_dummy_class("Fast", "fastlib", "Build it.")
    for use in (stand_in, lambda: stand_in.method, create_dummy_func("fast", ("fastlib", "x"))):
        with pytest.raises(ImportError, match="fastlib"):
            use()


def test_palette():
    for maximum in (1, 255):
        colors = colormap(rgb=True, maximum=maximum)
        assert 0 <= colors.min() < colors.max() <= maximum
        assert (colormap(maximum=maximum) == colors[:, ::-1]).all()
    assert len(np.unique(colormap(), axis=0)) >= 40
    assert random_color(rgb=True, maximum=1).shape == (3,)
    chosen = random_colors(10)
    assert len(chosen) == len(np.unique(chosen, axis=0)) == 10


# Analysis


class _Detector(nn.Module):
    """Takes and gives what detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)
        self.unused = nn.Linear(2, 3)

    def forward(self, batched_inputs):
        features = self.conv(batched_inputs[0]["image"][None])
        scores = self.fc(features.mean(dim=(2, 3)))
        if self.training:
            return {"loss": scores.sum()}
        result = Instances(features.shape[2:], pred_boxes=Boxes(scores[:, :4]), scores=scores[:, 4])
        return [{"instances": result}]


CONV_FLOPS = 8 * 10 * 3 * 4 * 3 * 3
FC_FLOPS = 4 * 5


def _inputs() -> list[dict]:
    return [{"image": torch.rand(3, 8, 10), "file_name": "x.jpg", "height": torch.tensor(80)}]


def test_operations_by_operator():
    model = _Detector()
    flops = flop_count_operators(model, _inputs())
    assert model.training
    assert flops["conv"] == pytest.approx(CONV_FLOPS / 1e9)
    assert flops["linear"] == pytest.approx(FC_FLOPS / 1e9)
    activations = activation_count_operators(model, _inputs())
    assert activations["conv"] == pytest.approx(4 * 8 * 10 / 1e6)
    with pytest.raises(AssertionError):
        activation_count_operators(model, _inputs() * 2)


def test_operations_by_module():
    analysis = FlopCountAnalysis(_Detector().eval(), _inputs())
    by_module = analysis.by_module()
    assert by_module["model.conv"] == CONV_FLOPS
    assert by_module["model.fc"] == FC_FLOPS


def test_parameters():
    model = _Detector()
    assert parameter_count(model)["conv"] == 3 * 4 * 9 + 4
    assert set(find_unused_parameters(model, _inputs())) == {"unused.weight", "unused.bias"}


def test_helpers_for_tests():
    boxes = random_boxes(50, max_coord=20)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert boxes.shape == (50, 4)
    assert sides.min() >= 1
    assert boxes.min() >= 1
    assert boxes.max() <= 20
    left = Instances((4, 4), pred_boxes=Boxes(boxes), scores=torch.rand(50))
    right = Instances((4, 4), pred_boxes=Boxes(boxes + 1e-4), scores=left.scores.clone())
    assert_instances_allclose(left, right)
    right.pred_boxes.tensor[0, 0] += 0.01
    with pytest.raises(AssertionError, match="pred_boxes"):
        assert_instances_allclose(left, right)
