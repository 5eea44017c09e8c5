"""VGG16 of torchvision becomes a file that fills a detector."""

import importlib.util
from pathlib import Path

import pytest
import torch

from clsloc.checkpoint import Checkpointer
from clsloc.cli import run

TOOL = Path(__file__).parents[3] / "tools" / "convert_weights.py"
NARROW = [3, 8, 8, 16, 16, 16]


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("convert_weights", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def narrow_vgg16():
    """A state dict as torchvision would have it, with a convolution in each block."""
    state = {}
    for i in range(5):
        state[f"features.{3 * i}.weight"] = torch.randn(NARROW[i + 1], NARROW[i], 3, 3)
        state[f"features.{3 * i}.bias"] = torch.randn(NARROW[i + 1])
    for name, inputs in (("classifier.0", 16 * 49), ("classifier.3", 32)):
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(32, inputs), torch.randn(32)
    return state


@pytest.mark.parametrize("config", ["vgg16_baseline", "vgg16_detect_rf", "vgg16_detect_s"])
def test_the_file_fills_backbone_and_heads(config, tool, build_tiny, tmp_path, monkeypatch):
    model = build_tiny(f"coco/{config}")
    monkeypatch.setattr("clsloc.checkpoint.vgg16.VGG16_BLOCKS", tuple((n, 1) for n in NARROW[1:]))
    state = narrow_vgg16()
    torch.save(state, tmp_path / "in.pth")
    output = tmp_path / "folder" / "out.pkl"
    assert run(tool.main, tool.parser(), [str(tmp_path / "in.pth"), "--output", str(output)]) == 0
    checkpointer = Checkpointer(model)
    checkpointer.load(str(output))
    loaded = model.state_dict()
    assert torch.equal(loaded["backbone.conv5.conv1.weight"], state["features.12.weight"])
    assert torch.equal(loaded["roi_heads.box_head.head.fc7.bias"], state["classifier.3.bias"])
    if config != "vgg16_baseline":
        copy = loaded["roi_heads.box_head.head_copy.fc6.weight"]
        assert torch.equal(copy, state["classifier.0.weight"])
    assert {name.split(".")[0] for name in checkpointer.digest.missing} == {
        "proposal_generator",
        "roi_heads",
    }
    assert all("box_head" not in name for name in checkpointer.digest.missing)
    assert checkpointer.digest.unused == checkpointer.digest.mismatched == ()
