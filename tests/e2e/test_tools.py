"""The command-line programs predict.py and model_info.py, with a small detector."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clsloc import cli
from clsloc.engine import setup_cfg
from clsloc.prediction import Predictor, batches_of_one_size
from clsloc.video import VideoReader, VideoWriter
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

TOOLS = Path(__file__).resolve().parents[2] / "tools"
CONFIG = "digits/faster_rcnn_R_18_FPN.yaml"
# Random weights detect something everywhere, with scores of about 1/3.
MODEL = ["MODEL.ROI_HEADS.NUM_CLASSES", "2", "TEST.DETECTIONS_PER_IMAGE", "5"]
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]


def run_tool(name: str, *args: object) -> int:
    """Run tools/<name>.py in this process; returns its exit status."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cli.run(module.main, module.parser(), [str(arg) for arg in args])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = build_model(setup_cfg(config_file=CONFIG, overrides=MODEL))
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with three images and a text, and the COCO annotations of two of them."""
    folder = tmp_path / "images"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for name, size in {"a.png": (60, 40), "b.jpg": (50, 70), "c.JPG": (40, 40)}.items():
        pixels = noise.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    content = {
        "images": [
            {"id": 11, "file_name": "a.png", "width": 60, "height": 40},
            {"id": 12, "file_name": "b.jpg", "width": 50, "height": 70},
        ],
        "annotations": [
            {
                "id": 1, "image_id": 11, "category_id": 7, "bbox": [5, 5, 20, 10],
                "area": 200, "iscrowd": 0,
            }
        ],
        "categories": CATEGORIES,
    }  # fmt: skip
    (tmp_path / "coco.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def predict(weights: Path, images: Path) -> Callable[..., int]:
    """Runs predict.py with the dataset ``pets`` registered; arguments come behind."""
    coco = ["--coco", "pets", images.parent / "coco.json", images]
    shared = ["--config-file", CONFIG, "--weights", weights, *coco, "--threshold", 0]

    def run(*args: object, overrides: tuple[str, ...] = ()) -> int:
        test = ["DATASETS.TEST", "('pets',)", *MODEL, *overrides]
        return run_tool("predict", *shared, "--output", "out", *args, *test)

    yield run
    if "pets" in DatasetCatalog.list():
        DatasetCatalog.remove("pets")
        MetadataCatalog.pop("pets", None)


def written(path: str = "out/predictions.json") -> dict:
    return json.loads(Path(path).read_text())


def pictures() -> list[str]:
    return sorted(path.name for path in Path("out").glob("*.jpg"))


def test_predict_tells_what_the_predictor_says(predict, images: Path, weights: Path) -> None:
    assert predict("--input", images / "a.png") == 0
    cfg = setup_cfg(config_file=CONFIG, overrides=[*MODEL, "MODEL.WEIGHTS", str(weights)])
    bgr = np.array(Image.open(images / "a.png"))[:, :, ::-1]
    expected = DefaultPredictor(cfg)(bgr)["instances"]
    assert len(expected) == 5

    content = written()
    assert content["categories"] == CATEGORIES
    assert content["images"] == [
        {"id": 1, "file_name": str(images / "a.png"), "height": 40, "width": 60}
    ]
    annotations = content["annotations"]
    assert [a["id"] for a in annotations] == [1, 2, 3, 4, 5]
    assert {a["image_id"] for a in annotations} == {1}
    boxes = torch.tensor([a["bbox"] for a in annotations])
    boxes[:, 2:] += boxes[:, :2]
    torch.testing.assert_close(boxes, expected.pred_boxes.tensor)
    torch.testing.assert_close(torch.tensor([a["score"] for a in annotations]), expected.scores)
    assert [a["category_id"] for a in annotations] == [
        CATEGORIES[index]["id"] for index in expected.pred_classes
    ]


def test_predict_takes_files_folders_and_patterns_once(predict, images: Path) -> None:
    assert predict("--input", images, images / "a.png", f"{images}/*.jpg") == 0
    names = [Path(image["file_name"]).name for image in written()["images"]]
    assert names == ["a.png", "b.jpg", "c.JPG"]
    assert pictures() == ["a.jpg", "b.jpg", "c.jpg"]
    assert Image.open("out/b.jpg").size[1] == 480  # small images are drawn enlarged


def test_predict_stops_after_max_images(predict, images: Path) -> None:
    assert predict("--input", images, "--max-images", 2) == 0
    assert pictures() == ["a.jpg", "b.jpg"]


def test_predict_keeps_pictures_of_equal_names_apart(predict, images: Path) -> None:
    other = images.parent / "other"
    other.mkdir()
    (other / "a.png").write_bytes((images / "a.png").read_bytes())
    assert predict("--input", images / "a.png", other / "a.png") == 0
    assert pictures() == ["a_1.jpg", "a_2.jpg"]


def test_predict_gives_no_picture_the_name_of_another_image(predict, images: Path) -> None:
    for name in ("a.jpg", "a_1.jpg", "a_2_2.jpg"):
        (images / name).write_bytes((images / "b.jpg").read_bytes())
    assert predict("--input", images / "a.png", images / "a.jpg", images / "a_1.jpg") == 0
    assert pictures() == ["a_1.jpg", "a_1_1.jpg", "a_2.jpg"]


def test_predict_leaves_out_low_scores(predict, images: Path) -> None:
    assert predict("--input", images, "--threshold", 0.99) == 0
    assert written()["annotations"] == []
    assert len(pictures()) == 3


def test_predict_on_a_dataset_beside_its_ground_truth(predict) -> None:
    assert predict("--dataset", "pets", "--compare-gt") == 0
    assert [image["id"] for image in written()["images"]] == [11, 12]
    assert {a["category_id"] for a in written()["annotations"]} <= {3, 7}
    width, height = Image.open("out/a.jpg").size
    assert width == 2 * 480
    assert height > 480 * 40 / 60


def test_ground_truth_has_the_classes_of_its_dataset(predict, images: Path) -> None:
    file = images.parent / "coco.json"
    content = json.loads(file.read_text())
    content["categories"].append({"id": 9, "name": "fox"})
    content["annotations"][0]["category_id"] = 9
    file.write_text(json.dumps(content))
    arguments = ["--dataset", "pets", "--compare-gt"]
    assert predict(*arguments, overrides=("DATASETS.TEST", "()")) == 0
    assert Image.open("out/a.jpg").size[0] == 2 * 480


def test_predict_writes_its_json_elsewhere(predict, images: Path) -> None:
    assert predict("--input", images / "a.png", "--json", "other/found.json") == 0
    assert len(written("other/found.json")["annotations"]) == 5
    assert not Path("out/predictions.json").exists()


def test_predict_goes_on_after_an_unreadable_image(predict, images: Path, capsys) -> None:
    whole = (images / "b.jpg").read_bytes()
    (images / "b.jpg").write_bytes(whole[: len(whole) // 2])
    assert predict("--input", images, "missing.jpg") == 2
    assert pictures() == ["a.jpg", "c.jpg"]
    lines = capsys.readouterr().err.splitlines()
    sentences = [line for line in lines if line.startswith("predict.py: ")]
    assert len(sentences) == 2
    assert "missing.jpg" in sentences[0]
    assert "b.jpg" in sentences[1]
    assert len(written()["images"]) == 2


def test_predict_fails_when_there_is_nothing_to_write(predict, capsys) -> None:
    Path("empty").mkdir()
    assert predict("--input", "empty") == 2
    assert "'empty' is no image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--dataset", "nowhere"], "There is no dataset 'nowhere'"),
        (["--input", "images/a.png", "--output", "images"], "choose another folder"),
        (["--input", "images/a.png", "--compare-gt"], "--compare-gt needs ground truth"),
        (["--input", "images/a.png", "--weights", "gone.pth"], "'gone.pth'"),
        (["--input", "images/a.png", "--output", "coco.json"], "'coco.json'"),
        (["--input", "images/a.png", "--max-images", "-1"], "--max-images -1 is too few"),
        (["--input", "images/a.png", "--threshold", "nan"], "--threshold nan is no score"),
        (["--input", "images/a.png", "--threshold", "50"], "50.0 is no score; give a number from"),
        (["--input", "images/a.png", "--threshold", "-1"], "--threshold -1.0 is no score"),
        (["--input", "images/a.png", "--json", "images"], "'images' could not be written"),
        (["--input", "images/a.png", "--json", "coco.json/x.json"], "'coco.json/x.json' could"),
    ],
)
def test_predict_says_what_is_wrong(predict, images: Path, args, sentence: str, capsys) -> None:
    before = (images / "a.png").read_bytes()
    assert predict(*args) == 2
    assert sentence in capsys.readouterr().err
    assert (images / "a.png").read_bytes() == before
    assert not pictures()  # found before the model ran


def test_predict_goes_on_after_an_image_too_thin(predict, images: Path, capsys) -> None:
    Image.new("RGB", (3000, 1)).save(images / "b0.png")
    Image.new("RGB", (1, 3000)).save(images / "b1.png")
    Image.new("RGB", (3000, 12)).save(images / "b2.png")  # half a pixel is left
    assert predict("--input", images) == 2
    assert pictures() == ["a.jpg", "b.jpg", "b2.jpg", "c.jpg"]
    lines = capsys.readouterr().err.splitlines()
    first, second = [line for line in lines if line.startswith("predict.py: ")]
    assert "b0.png" in first and "3000 pixels wide and 1 high" in first
    assert "b1.png" in second and "raise INPUT.MAX_SIZE_TEST to 1501." in second
    assert len(written()["images"]) == 4


def test_predict_goes_on_after_a_video_too_thin(predict, images: Path, capsys) -> None:
    pytest.importorskip("cv2")
    with VideoWriter(images / "clip.mp4", fps=5) as writer:
        for _ in range(3):
            writer.write(np.zeros((2, 800, 3), dtype=np.uint8))
    assert predict("--input", images / "clip.mp4", images / "a.png") == 2
    assert "clip.mp4' is too thin" in capsys.readouterr().err
    assert len(written()["images"]) == 1


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (ZeroDivisionError, 1)])
def test_predict_writes_what_was_done_when_it_ends_early(
    predict, images: Path, monkeypatch, error: type[BaseException], status: int, capsys
) -> None:
    predict_all, calls = Predictor.predict, []

    def once(self, batch):
        calls.append(batch)
        if len(calls) > 1:
            raise error
        return predict_all(self, batch)

    monkeypatch.setattr(Predictor, "predict", once)
    if error is KeyboardInterrupt:
        assert predict("--input", "missing.jpg", images) == status
    else:
        with pytest.raises(error):
            predict("--input", "missing.jpg", images)
    assert len(written()["images"]) == 1 and len(written()["annotations"]) == 5
    assert "missing.jpg" in capsys.readouterr().err


def test_predict_refuses_weights_of_another_class_count(predict, images: Path, capsys) -> None:
    other = ("MODEL.ROI_HEADS.NUM_CLASSES", "4")
    assert predict("--input", images, overrides=other) == 2
    assert "number of classes" in capsys.readouterr().err


def test_model_info_writes_its_figures(capsys) -> None:
    args = ["--config-file", CONFIG, "--size", 64, 96, "--json", "info.json", *MODEL]
    assert run_tool("model_info", *args) == 0
    report = json.loads(Path("info.json").read_text())
    model = build_model(setup_cfg(config_file=CONFIG, overrides=MODEL))
    assert report["params_total"] == sum(p.numel() for p in model.parameters())
    assert report["params_trainable"] == report["params_total"]
    assert (report["input_size"], report["num_rois"]) == ([64, 96], 1000)
    assert report["parts"]["roi_heads.box_predictor"]["flops"] == 1000 * 256 * (3 + 4)
    printed = capsys.readouterr().out
    assert f"{report['params_total']:,}" in printed
    assert "64x96" in printed


@pytest.mark.parametrize("tool", ["model_info", "predict"])
def test_an_unknown_part_is_one_sentence(tool: str, images: Path, weights: Path, capsys) -> None:
    predict_args = ["--weights", weights, "--input", images, "--output", "out"]
    args = ["--config-file", CONFIG, *(predict_args if tool == "predict" else [])]
    assert run_tool(tool, *args, "MODEL.ROI_HEADS.NAME", "StandardRoIHeads") == 2
    expected = "MODEL.ROI_HEADS.NAME 'StandardRoIHeads' is not registered; did you mean "
    assert expected + "StandardROIHeads" in capsys.readouterr().err


def test_model_info_takes_its_size_from_the_config() -> None:
    args = ["--config-file", CONFIG, "--json", "info.json", "INPUT.MAX_SIZE_TEST", 1000]
    assert run_tool("model_info", *args) == 0
    assert json.loads(Path("info.json").read_text())["input_size"] == [128, 192]


def test_model_info_names_a_size_that_the_model_cannot_take(capsys) -> None:
    config = TOOLS.parent / "projects/grcn/configs/digits/grcn_C4.yaml"
    args = ["--config-file", config, "MODEL.DEVICE", "cpu"]
    assert run_tool("model_info", *args[:2], "--size", 1, 1, *args[2:]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "cannot take --size 1 1 (Expected more than 1 value" in error
    assert error.endswith("give a larger --size, such as 256 256.")


def test_model_info_leaves_a_defect_of_the_model_alone(monkeypatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("clsloc.model_info.model_info", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        run_tool("model_info", "--config-file", CONFIG, "--size", 1, 1)


@pytest.mark.parametrize("name", ["model_info", "predict"])
def test_a_mistake_is_one_sentence_and_status_2(name: str) -> None:
    paths = os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))
    needed = ["--weights", "w", "--output", "o", "--input", "i"] if name == "predict" else []
    done = subprocess.run(
        [sys.executable, TOOLS / f"{name}.py", "--config-file", "none.yaml", *needed],
        env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"{name}.py: The config file 'none.yaml'")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--size", "0", "64"], "--size 0 64 is no image"),
        (["--num-gt", "-1"], "--num-gt -1 is too few; give at least 0"),
        (["--survivors", "-3"], "--survivors -3 is too few"),
        (["--pairs", "0"], "--pairs 0 is too few; give at least 1"),
    ],
)
def test_benchmark_says_which_number_cannot_be(arguments, sentence: str, capsys) -> None:
    assert run_tool("benchmark", "--config-file", CONFIG, "--baseline", CONFIG, *arguments) == 2
    assert sentence in capsys.readouterr().err


def test_batches_hold_images_of_one_size(images: Path) -> None:
    shapes = [(4, 6), (4, 6), (4, 6), (6, 4), (4, 6)]
    items = [(number, np.zeros((*shape, 3))) for number, shape in enumerate(shapes)]
    batches = [[number for number, _ in batch] for batch in batches_of_one_size(items, 2)]
    assert batches == [[0, 1], [2], [3], [4]]
    assert list(batches_of_one_size([], 2)) == []


def test_a_batch_predicts_what_single_images_do(weights: Path) -> None:
    cfg = setup_cfg(config_file=CONFIG, overrides=[*MODEL, "MODEL.WEIGHTS", str(weights)])
    predictor = Predictor(cfg)
    noise = np.random.default_rng(0).integers(0, 255, (3, 60, 80, 3), dtype=np.uint8)
    together = predictor.predict(list(noise))
    assert predictor.predict([]) == []
    for image, batched in zip(noise, together, strict=True):
        alone = predictor(image)["instances"]
        torch.testing.assert_close(
            batched["instances"].pred_boxes.tensor, alone.pred_boxes.tensor, rtol=1e-4, atol=1e-3
        )
        torch.testing.assert_close(batched["instances"].scores, alone.scores)


def test_names_stored_with_the_weights_count(predict, images: Path, weights: Path) -> None:
    content = torch.load(weights, weights_only=True) | {"thing_classes": ["lynx", "wolf"]}
    own = images.parent / "own.pth"
    torch.save(content, own)
    cfg = setup_cfg(config_file=CONFIG, overrides=[*MODEL, "MODEL.WEIGHTS", str(own)])
    names = [category["name"] for category in Predictor(cfg).categories]
    assert names == ["lynx", "wolf"]


def test_predict_on_a_video(predict, images: Path) -> None:
    pytest.importorskip("cv2")
    noise = np.random.default_rng(0).integers(0, 255, (5, 64, 96, 3), dtype=np.uint8)
    with VideoWriter(images / "clip.mp4", fps=5) as writer:
        for frame in noise:
            writer.write(frame)
    (images / "broken.mp4").write_bytes(b"no video")
    # The broken one is told, the other one done.
    assert predict("--input", images / "clip.mp4", images / "broken.mp4") == 2
    assert [image["frame"] for image in written()["images"]] == [0, 1, 2, 3, 4]
    frames = list(VideoReader("out/clip.mp4"))
    assert len(frames) == 5 and frames[0].shape == (64, 96, 3)
