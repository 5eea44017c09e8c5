"""Processes, seeds, registries, analysis and other helpers, on either Detectron2.

What several processes do together is tested in test_defaults.py, events in test_events.py.
"""

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
from detectron2.utils.file_io import PathManager
from detectron2.utils.memory import retry_if_cuda_oom
from detectron2.utils.registry import Registry, locate
from detectron2.utils.serialize import PicklableWrapper
from detectron2.utils.testing import assert_instances_allclose, random_boxes

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
    for seed in range(5):
        np.random.seed(seed)
        drawn = comm.shared_random_seed()
        np.random.seed(seed)
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
