"""The command-line program visualize_batch.py, and what it records of a training step."""

import importlib.util
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clsloc import cli
from clsloc.data import make_digits
from clsloc.engine import setup_cfg
from clsloc.sample_pictures import NEGATIVE, TRUTH, draw_samples, sample_figures
from clsloc.sample_record import SampleGroup, is_recording, record_samples, recorded_samples
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

ROOT = Path(__file__).resolve().parents[2]
CORE_CONFIG = "digits/faster_rcnn_R_18_FPN.yaml"
HEADS = ["RPN", "RoI heads"]
# What each kind of digits config shows.
GROUPS = {
    CORE_CONFIG: HEADS,
    "double_head/configs/digits/double_head_ext_R_18_FPN.yaml": HEADS,
    "grcn/configs/digits/grcn_C4.yaml": HEADS,
    "grcn/configs/digits/grcn_R_18_FPN.yaml": HEADS,
    "decoupled_rcnn/configs/digits/decoupled_R_18_FPN.yaml": [*HEADS, "localisation, stage 1"],
    "decoupled_rcnn/configs/digits/decoupled_cascade_R_18_FPN.yaml": [
        *HEADS,
        *(f"localisation, stage {i}" for i in (1, 2, 3)),
    ],
    "iou_uniform/configs/digits/uniform_iou_efo_R_18_FPN.yaml": [*HEADS, "localisation, stage 1"],
    "iou_uniform/configs/digits/cascade_iou_uniform_R_18_FPN.yaml": [
        *("RPN", "RoI heads", "localisation, stage 1"),
        *(f"{what}, stage {i}" for i in (2, 3) for what in ("RoI heads", "localisation")),
    ],
    "ddod/configs/digits/ddod_atss_R_18_FPN.yaml": ["classification", "localisation"],
    "ddod/configs/digits/atss_iou_R_18_FPN.yaml": ["classification", "localisation"],
}


@pytest.fixture(scope="module")
def digits_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    make_digits(root / "digits", num_train=6, num_val=3)
    return root


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch, digits_root):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(digits_root))
    monkeypatch.chdir(tmp_path)


def visualize(config: str, *args: object) -> int:
    spec = importlib.util.spec_from_file_location("tool", ROOT / "tools/visualize_batch.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    path = config if config in (CORE_CONFIG, "none.yaml") else ROOT / "projects" / config
    shared = ["--config-file", path, "--output", "out", *args]
    return cli.run(tool.main, tool.parser(), [str(arg) for arg in shared])


@pytest.mark.parametrize("config", GROUPS)
def test_pictures_of_what_each_detector_trains_on(config: str, capsys) -> None:
    assert visualize(config, "--num-images", 3, "--json", "out.json", "MODEL.DEVICE", "cpu") == 0
    images = json.loads(Path("out.json").read_text())["images"]
    pictures = sorted(Path("out").iterdir())
    assert [image["picture"] for image in images] == list(map(str, pictures))
    assert len(pictures) == 3 and pictures[0].name.startswith("000_")
    for image, picture in zip(images, pictures, strict=True):
        samples = image["samples"]
        assert list(samples) == GROUPS[config]
        panels = 1 + len(samples)
        width, height = Image.open(picture).size
        assert width == min(3, panels) * 400 and height == -(-panels // 3) * 434
        for name, group in samples.items():
            anchors = name in ("RPN", "classification") or name == "localisation"
            assert ("levels" in group) == anchors
            if anchors:
                assert sum(group["levels"].values()) == group["positives"] > 0
            if "RoI" in name:
                # The objects themselves join the proposals, and are found positive.
                assert group["positives"] >= image["objects"] and group["negatives"] > 0
            if "uniform" in config and name.startswith("localisation"):
                assert group["positives"] > 5 * image["objects"]
                assert 0.5 < group["mean_iou"] < 0.95
    out = capsys.readouterr().out
    assert f"{pictures[0]}: {images[0]['objects']} objects; " in out


def test_the_seed_decides_and_the_weights_count() -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        args = ["--num-images", 1, "--seed", seed, "--json", f"{name}.json", "MODEL.DEVICE", "cpu"]
        assert visualize(CORE_CONFIG, *args) == 0
    first, again, other = (json.loads(Path(f"{n}.json").read_text()) for n in "abc")
    assert first == again and first != other
    cfg = setup_cfg(config_file=CORE_CONFIG, overrides=["MODEL.DEVICE", "cpu"])
    torch.manual_seed(5)
    torch.save({"model": build_model(cfg).state_dict()}, "w.pth")
    args = ["--weights", "w.pth", "--num-images", 1, "--json", "d.json", "MODEL.DEVICE", "cpu"]
    assert visualize(CORE_CONFIG, *args) == 0
    report = json.loads(Path("d.json").read_text())
    assert report["weights"] == "w.pth" and report["images"] != first["images"]


@pytest.mark.parametrize(
    ("config", "args", "sentence"),
    [
        ("none.yaml", [], "'none.yaml' does not exist"),
        (CORE_CONFIG, ["--num-images", "0"], "--num-images 0 is too few"),
        (CORE_CONFIG, ["--seed", "-1"], "--seed -1 is negative"),
        (CORE_CONFIG, ["--weights", "gone.pth"], "'gone.pth'"),
        (CORE_CONFIG, ["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
        (CORE_CONFIG, ["DATASETS.TRAIN", "('digit',)"], "digit"),
        (CORE_CONFIG, ["MODEL.ROI_HEADS.NUM_CLASSES", "3"], "NUM_CLASSES"),
        (CORE_CONFIG, ["--output", "file"], "'file'"),
    ],
)
def test_a_mistake_is_one_sentence(config: str, args, sentence: str, capsys, monkeypatch) -> None:
    # A log handler that an earlier test left behind may write to that test's closed stderr.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    Path("file").write_text("")
    assert visualize(config, *args) == 2
    error = capsys.readouterr().err.splitlines()
    assert sentence in error[-1] and "Traceback" not in "".join(error)


def test_nothing_is_kept_outside_of_the_context() -> None:
    model = build_model(setup_cfg(config_file=CORE_CONFIG, overrides=["MODEL.DEVICE", "cpu"]))
    boxes = [torch.zeros(2, 4)]
    record_samples("before", boxes)
    with recorded_samples(model) as groups:
        assert is_recording() and "label_and_sample_proposals" in vars(model.roi_heads)
        record_samples("inside", [Boxes(boxes[0])])
    record_samples("after", boxes)
    assert [group.name for group in groups] == ["inside"] and not is_recording()
    assert groups[0].positive[0].tolist() == [True, True]
    assert "label_and_sample_proposals" not in vars(model.roi_heads)
    assert "label_and_sample_anchors" not in vars(model.proposal_generator)


def test_boxes_are_drawn_where_they_are() -> None:
    truth = Instances((100, 100))
    truth.gt_boxes = Boxes(torch.tensor([[10.0, 20.0, 50.0, 60.0]]))
    truth.gt_classes = torch.tensor([0])
    boxes = torch.tensor([[10.0, 20.0, 50.0, 40.0], [70.0, 70.0, 90.0, 90.0]])
    group = SampleGroup("RoI heads", [boxes], [torch.tensor([True, False])])
    figures = sample_figures(group, 0, truth)
    assert figures == {"positives": 1, "negatives": 1, "mean_iou": 0.5}
    image = np.zeros((100, 100, 3), dtype=np.uint8)
    picture = np.asarray(draw_samples(image, truth, ["one"], [group], 0))
    assert picture.shape == (434, 800, 3)

    def colour(x: int, y: int, panel: int) -> list[int]:
        return picture[34 + 4 * y, 400 * panel + 4 * x].tolist()

    blue = [int(TRUTH[i : i + 2], 16) for i in (1, 3, 5)]
    assert colour(30, 60, 0) == blue and colour(30, 60, 1) == blue
    red = colour(80, 70, 1)
    assert red[0] > 100 > red[1] and NEGATIVE.startswith("#ff")
    green = colour(30, 40, 1)
    assert green[1] > 100 > green[0]
    assert colour(80, 70, 0) == [0, 0, 0]


def test_an_image_without_objects_or_samples() -> None:
    truth = Instances((100, 100))
    truth.gt_boxes, truth.gt_classes = Boxes(torch.zeros(0, 4)), torch.zeros(0, dtype=torch.int64)
    empty = torch.zeros(0, dtype=torch.bool)
    group = SampleGroup("RPN", [torch.zeros(0, 4)], [empty], [torch.zeros(0, dtype=torch.int64)])
    figures = sample_figures(group, 0, truth)
    assert figures == {"positives": 0, "negatives": 0, "mean_iou": None, "levels": {}}
    draw_samples(np.zeros((30, 50, 3), dtype=np.uint8), truth, [], [group], 0)


def test_weights_of_another_detector_are_refused(capsys, monkeypatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    state = build_model(setup_cfg(config_file=CORE_CONFIG)).state_dict()
    backbone = {name: value for name, value in state.items() if name.startswith("backbone.")}
    torch.save({"model": backbone}, "w.pth")
    args = ["--num-images", 1, "MODEL.DEVICE", "cpu"]
    assert visualize(CORE_CONFIG, "--weights", "w.pth", *args) == 2
    assert "'w.pth' do not fill the model" in capsys.readouterr().err
    # Training may start from them.
    assert visualize(CORE_CONFIG, *args, "MODEL.WEIGHTS", "w.pth") == 0


def test_a_json_file_that_cannot_be_is_found_first(capsys, monkeypatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    Path("folder").mkdir()
    args = ["--num-images", 1, "--json", "folder", "MODEL.DEVICE", "cpu"]
    assert visualize(CORE_CONFIG, *args) == 2
    assert "'folder' could not be written" in capsys.readouterr().err
    assert not list(Path("out").glob("*.png"))
