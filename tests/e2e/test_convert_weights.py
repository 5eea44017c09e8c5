"""The command-line program convert_weights.py."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import torchvision

from clsloc import cli
from clsloc.checkpoint import Checkpointer
from clsloc.engine import setup_cfg
from detectron2.modeling import build_model

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "digits/faster_rcnn_R_18_FPN.yaml"
DOUBLE_HEAD = ROOT / "projects/double_head/configs/double_head_R_50_FPN_1x.yaml"
PIXELS = ["INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"]


def convert(*args: object) -> int:
    spec = importlib.util.spec_from_file_location("tool", ROOT / "tools/convert_weights.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    parser = tool.parser()
    parser.prog = "convert_weights.py"
    return cli.run(tool.main, parser, [str(arg) for arg in args])


@pytest.fixture
def resnet18(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The state dict that lies in resnet18.pth in the working directory."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    state = torchvision.models.resnet18(weights=None).state_dict()
    for name, tensor in state.items():
        if "bn" in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    torch.save({"state_dict": state}, "resnet18.pth")
    return state


@pytest.mark.parametrize("how", ["config", "layout", "bare.pth", "bare.pkl"])
def test_the_written_file_loads(resnet18, how: str) -> None:
    output = how if "bare" in how else "out/backbone.pth"
    flags = {"config": ["--config-file", CONFIG], "layout": []}.get(how, ["--layout", "bare"])
    assert convert("resnet18.pth", "--output", output, *flags) == 0
    model = build_model(setup_cfg(config_file=CONFIG, overrides=["MODEL.DEVICE", "cpu"]))
    checkpointer = Checkpointer(model)
    checkpointer.load(output)
    assert checkpointer.digest.loaded >= 100 and not checkpointer.digest.mismatched
    assert not [name for name in checkpointer.digest.missing if "bottom_up" in name and
                not name.endswith("num_batches_tracked")]  # fmt: skip
    loaded = model.backbone.bottom_up.state_dict()
    torch.testing.assert_close(loaded["stem.conv1.weight"], resnet18["conv1.weight"])
    for key in ("weight", "bias", "running_mean", "running_var"):
        torch.testing.assert_close(
            loaded[f"res3.0.shortcut.norm.{key}"], resnet18[f"layer2.0.downsample.1.{key}"]
        )


def test_the_report_has_every_tensor(resnet18, capsys) -> None:
    args = ["--config-file", CONFIG, "--output", "out.pth", "--json", "report.json"]
    assert convert("resnet18.pth", *args) == 0
    report = json.loads(Path("report.json").read_text())
    assert report["source"] == "ResNet-18"
    assert {*report["mapped"].values()} | {*report["left_out"]} == {*resnet18}
    assert report["mapped"]["backbone.bottom_up.res2.0.conv1.weight"] == "layer1.0.conv1.weight"
    model = build_model(setup_cfg(config_file=CONFIG, overrides=["MODEL.DEVICE", "cpu"]))
    assert {*report["mapped"]} | {*report["unfilled"]} == {*model.state_dict()}
    assert "backbone.fpn_lateral2.weight" in report["unfilled"]
    assert {*PIXELS} <= {*report["settings"]}
    printed = capsys.readouterr().out
    assert "Left out, as it scores the classes of ImageNet: fc.weight, fc.bias." in printed
    assert 'INPUT.FORMAT "RGB"' in printed and 'MODEL.PIXEL_MEAN "[123.675, 116.28' in printed

    # With the settings that it asks for, nothing is left to ask.
    change = [text for pair in report["settings_to_change"].items() for text in map(str, pair)]
    assert convert("resnet18.pth", *args, *change) == 0
    assert json.loads(Path("report.json").read_text())["settings_to_change"] == {}


@pytest.mark.parametrize(
    ("state", "args", "sentence"),
    [
        (None, [], "'gone.pth' does not exist"),
        ({}, [], "holds no tensors by name"),
        ({"epoch": "last"}, [], "epoch of 'in.pth' is no tensor"),
        ({"a.b": torch.zeros(1)}, [], "'in.pth' is of no kind that is known: it has a.b, ..."),
        ("resnet18", ["--output", "out.onnx"], "must end in .pth or .pkl"),
        ("resnet18", ["--config-file", CONFIG, "--layout", "c4"], "not both"),
        ("resnet18", ["--config-file", "none.yaml"], "'none.yaml' does not exist"),
        (
            "resnet18",
            ["--config-file", CONFIG, "MODEL.RESNETS.DEPTH", "34"],
            "holds ResNet-18, which wants MODEL.RESNETS.DEPTH 18, and the config has 34",
        ),
        (
            {"backbone.body.stem.conv1.weight": torch.zeros(1)},
            [],
            "a detector of maskrcnn-benchmark other than Double-Head",
        ),
        (
            {"bbox_head.atss_cls.weight": torch.zeros(1), "backbone.layer1.0.x": torch.zeros(1)},
            ["--config-file", DOUBLE_HEAD],
            "no depth that is known",
        ),
    ],
)
def test_a_mistake_is_one_sentence(resnet18, state, args, sentence: str, capsys) -> None:
    path = "gone.pth" if state is None else "in.pth"
    if state is not None:
        torch.save(resnet18 if state == "resnet18" else state, path)
    output = [] if "--output" in args else ["--output", "out.pth"]
    assert convert(path, *output, *args) == 2
    error = capsys.readouterr().err
    assert sentence in error and len(error.splitlines()) == 1
    assert not Path("out.pth").exists()


def test_code_in_a_file_does_not_run(resnet18, capsys) -> None:
    torch.save({"conv1.weight": Path("x")}, "in.pth")
    assert convert("in.pth", "--output", "out.pth") == 2
    assert "holds more than tensors" in capsys.readouterr().err
