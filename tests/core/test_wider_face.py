"""WIDER FACE: the lists and folders, the official protocol by hand, and against a plain reading."""

import importlib.util
import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from clsloc.cli import run
from clsloc.data import register_datasets
from clsloc.data.wider_face import load_wider_face, read_list
from clsloc.engine import argument_parser, setup_cfg
from clsloc.errors import UserError
from clsloc.evaluation import BoxEvaluator, WIDERFaceEvaluator, build_evaluator
from clsloc.evaluation.wider_face import face_average_precision
from clsloc.evaluation.wider_face_truth import SUBSETS, FaceTruth, load_truth
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

pytestmark = pytest.mark.usefixtures("forget_datasets")

FIRST, SECOND, THIRD = (0, 0, 20, 20), (100, 0, 20, 20), (0, 100, 20, 20)


def faces(boxes, **counts):
    """The truth of an image; a subset that is not named counts all faces."""
    masks = {
        subset: np.isin(np.arange(len(boxes)), counts.get(subset, range(len(boxes))))
        for subset in SUBSETS
    }
    return FaceTruth(np.array(boxes, dtype=float).reshape(-1, 4), masks)


def rows(*found):
    """Detections (box, score)."""
    return np.array([[*box, score] for box, score in found], dtype=np.float32).reshape(-1, 5)


def aps(truth, found):
    return list(face_average_precision(truth, found).values())


def test_perfect_detections_give_one():
    truth = {
        "a": faces([FIRST, SECOND, THIRD], easy=[0], medium=[0, 1]),
        "b": faces([SECOND], easy=[], medium=[]),
    }
    found = {
        "a": rows((FIRST, 0.9), (SECOND, 0.8), (THIRD, 0.7)),
        "b": rows((SECOND, 0.6)),
    }
    assert aps(truth, found) == [1, 1, 1]


def test_scores_are_stretched_over_all_images():
    """The thresholds would not tell these apart otherwise."""
    truth = {"a": faces([FIRST, SECOND])}
    found = {"a": rows((FIRST, 1e-5), (THIRD, 2e-6), (SECOND, 1e-6))}
    assert aps(truth, found) == pytest.approx([(1 + 2 / 3) / 2] * 3)
    truth["b"], found["b"] = faces([FIRST]), rows((FIRST, 1.0))
    # Now the three of the first image are below the threshold of 0.001.
    assert aps(truth, found) == pytest.approx([(1 + 2 * 3 / 4) / 3] * 3)


def test_equal_scores_pass_all_thresholds_at_once():
    truth = {"a": faces([FIRST, SECOND])}
    found = {"a": rows((FIRST, 0.5), (THIRD, 0.5))}
    assert aps(truth, found) == pytest.approx([1 / 2 * 1 / 2] * 3)
    assert aps(truth, {"a": rows((FIRST, 0.5))}) == pytest.approx([1 / 2] * 3)


def test_a_wrong_detection_with_the_top_score():
    truth = {"a": faces([FIRST, SECOND])}
    found = {"a": rows((THIRD, 0.9), (FIRST, 0.5), (SECOND, 0.3))}
    # Precision 1/2 at recall 1/2 and 2/3 at recall 1, so that 2/3 is the largest from there on.
    assert aps(truth, found) == pytest.approx([2 / 3] * 3)


def test_an_ignored_face_is_neither_right_nor_wrong():
    truth = {"a": faces([FIRST, SECOND], easy=[0])}
    found = {"a": rows((SECOND, 0.9), (SECOND, 0.8), (FIRST, 0.7))}
    easy, medium, hard = aps(truth, found)
    assert easy == 1
    # All thresholds above the third count one right and one wrong detection or fewer.
    assert medium == hard == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)


def test_a_second_detection_of_a_face_is_wrong():
    truth = {"a": faces([FIRST, SECOND])}
    found = {"a": rows((FIRST, 0.9), (FIRST, 0.8), (SECOND, 0.7))}
    assert aps(truth, found) == pytest.approx([(1 + 2 / 3) / 2] * 3)


def test_what_is_found_beside_faces_that_do_not_count_is_wrong():
    truth = {"a": faces([FIRST]), "b": faces([SECOND], easy=[], medium=[], hard=[])}
    found = {"a": rows((FIRST, 0.5)), "b": rows((THIRD, 0.9))}
    assert aps(truth, found) == pytest.approx([1 / 2] * 3)


def test_a_detection_belongs_to_the_face_that_it_overlaps_most():
    """Also where that is taken or does not count, and another one would do."""
    near = (3, 0, 20, 20)
    truth = {"a": faces([FIRST, near], easy=[1])}
    found = {"a": rows((FIRST, 0.9), (FIRST, 0.8))}
    easy, medium, _ = aps(truth, found)
    assert easy == 0
    assert medium == 1 / 2
    # Of two equal faces it is the first.
    truth = {"a": faces([FIRST, FIRST], easy=[0], medium=[1])}
    assert aps(truth, {"a": rows((FIRST, 0.9))}) == [1, 0, 1 / 2]


def test_pixels_are_counted_with_the_last_one():
    """A side from 0 to 1 has two pixels, one from 0 to 3 has four."""
    truth = {"a": faces([(0, 0, 1, 1)])}
    assert aps(truth, {"a": rows(((0, 0, 1, 3), 0.9))}) == [1] * 3  # 4 of 8: enough
    assert aps(truth, {"a": rows(((0, 0, 1, 3.1), 0.9))}) == [0] * 3
    # A face of no size is one pixel.
    assert aps({"a": faces([(5, 5, 0, 0)])}, {"a": rows(((5, 5, 0, 1), 0.9))}) == [1] * 3


def test_thresholds_are_a_thousandth_apart():
    truth = {"a": faces([FIRST, SECOND]), "b": faces([], easy=[])}
    for wrong, right, expected in ((0.5004, 0.5016, 1), (0.5011, 0.5019, 1 / 2 + 1 / 2 * 2 / 3)):
        found = {"a": rows((FIRST, 1.0), (THIRD, wrong), (SECOND, right)), "b": rows((THIRD, 0.0))}
        assert aps(truth, found) == pytest.approx([expected] * 3)


def test_equal_scores_at_a_threshold():
    """Ties in one image and in two fall together, in whatever order."""
    wrong, right = (THIRD, 0.8), (SECOND, 0.8)
    results = []
    for first, second in ((wrong, right), (right, wrong)):
        truth = {"a": faces([FIRST, SECOND]), "b": faces([FIRST])}
        found = {"a": rows((FIRST, 1.0), first, second), "b": rows((THIRD, 0.0), (FIRST, 0.8))}
        results.append(aps(truth, found))
    assert results[0] == results[1] == pytest.approx([1 / 3 + 2 / 3 * 3 / 4] * 3)


def test_images_without_faces_that_count_bring_wrong_detections_and_those_without_any_do_not():
    truth = {"a": faces([FIRST]), "b": faces([SECOND], easy=[]), "c": faces([])}
    found = {
        "a": rows((FIRST, 0.5)),
        "b": rows((THIRD, 0.9)),
        "c": rows((THIRD, 0.8), (THIRD, 0.1)),
    }
    assert aps(truth, found) == pytest.approx([1 / 2, 1 / 4, 1 / 4])


def test_no_detections_and_no_faces():
    truth = {"a": faces([FIRST], easy=[])}
    for found in ({}, {"a": rows()}):
        easy, *others = aps(truth, found)
        assert np.isnan(easy) and others == [0, 0]


def plain_reading(truth, found, subset):
    """The protocol step by step, as slow as it is."""
    scores = np.concatenate([found[name][:, 4] for name in truth]).astype(float)
    low, high = scores.min(), scores.max()
    points = np.zeros((1000, 2))
    for name, image in truth.items():
        detections = sorted(found[name].astype(float).tolist(), key=lambda row: -row[4])
        matched, history = set(), []
        for x, y, w, h, score in detections:
            ious = []
            for fx, fy, fw, fh in image.boxes:
                wide = min(x + w, fx + fw) - max(x, fx) + 1
                high_ = min(y + h, fy + fh) - max(y, fy) + 1
                shared = max(wide, 0) * max(high_, 0)
                ious.append(shared / ((w + 1) * (h + 1) + (fw + 1) * (fh + 1) - shared))
            face = int(np.argmax(ious))
            neutral = ious[face] >= 0.5 and not image.counts[subset][face]
            if ious[face] >= 0.5 and not neutral:
                matched.add(face)
            history.append(((score - low) / (high - low), neutral, len(matched)))
        for number in range(1000):
            above = [step for step in history if step[0] >= 1 - (number + 1) / 1000]
            if above:
                points[number] += sum(not neutral for _, neutral, _ in above), above[-1][2]
    count = sum(image.counts[subset].sum() for image in truth.values())
    recalls = [0, *(points[:, 1] / count), 1]
    precisions = [0, *(points[:, 1] / np.maximum(points[:, 0], 1)), 0]
    return sum((recalls[i] - recalls[i - 1]) * max(precisions[i:]) for i in range(1, len(recalls)))


@pytest.mark.parametrize("pairs_at_once", [1_000_000, 50])
def test_equal_to_a_plain_reading_of_the_protocol(pairs_at_once, monkeypatch):
    monkeypatch.setattr("clsloc.evaluation.wider_face.PAIRS_AT_ONCE", pairs_at_once)
    rng = np.random.default_rng(3)
    truth, found = {}, {}
    for name in "abcd":
        boxes = np.concatenate([rng.random((12, 2)) * 60, 5 + rng.random((12, 2)) * 30], axis=1)
        truth[name] = faces(boxes, easy=[0, 1, 2], medium=range(1, 7))
        near = np.repeat(boxes, 4, axis=0) + rng.normal(0, 3, (48, 4))
        near[:, 2:] = np.maximum(near[:, 2:], 0)
        scores = rng.random((48, 1)).round(1)  # with ties
        found[name] = np.concatenate([near, scores], axis=1).astype(np.float32)
    ours = face_average_precision(truth, found)
    assert all(0.05 < ap < 0.9 for ap in ours.values())
    for subset in SUBSETS:
        assert ours[subset] == pytest.approx(plain_reading(truth, found, subset), abs=1e-12)


LARGE = """
import time
import numpy as np
import torch
from clsloc.evaluation import WIDERFaceEvaluator
from clsloc.gauges.workload import resident_peak_mb
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from clsloc.evaluation.wider_face_truth import SUBSETS, FaceTruth

MetadataCatalog.get("faces").set(ground_truth=None)
evaluator = WIDERFaceEvaluator("faces", "out")
rng = np.random.default_rng(0)
truth = {}
for number in range(3226):
    # 39,708 faces, in one image more than a thousand.
    boxes = rng.random((1200 if number == 0 else 12, 4)) * (900, 600, 80, 80)
    counts = {subset: rng.random(len(boxes)) < 0.6 for subset in SUBSETS}
    truth[f"{number % 61}--Event/{number}"] = FaceTruth(boxes, counts)
evaluator._truth = truth
evaluator.reset()
generator = torch.Generator().manual_seed(0)
for number, (name, image) in enumerate(truth.items()):
    count = 10_000 if number == 0 else 307
    found = Instances((1000, 1000))
    corners = torch.as_tensor(image.boxes, dtype=torch.float32)
    corners = corners[torch.randint(len(corners), (count,), generator=generator)]
    corners += torch.randn(count, 4, generator=generator) * 5
    corners[:, 2:] += corners[:, :2]
    found.pred_boxes = Boxes(corners)
    found.scores = torch.rand(count, generator=generator)
    evaluator.process([{"image_id": name}], [{"instances": found}])
assert sum(map(len, evaluator._found.values())) >= 1_000_000
started = time.perf_counter()
results = evaluator.evaluate()
assert 1 < results["face"]["hard"] < 99, results
print(time.perf_counter() - started, resident_peak_mb())
"""


def test_a_million_detections_in_a_minute_and_two_gigabytes():
    """In a process of its own: the peak of this one says nothing. Writing them is included."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", LARGE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds < 60
    assert megabytes < 2000


def cells(values):
    """A column of MATLAB cells."""
    column = np.empty((len(values), 1), dtype=object)
    for row, value in enumerate(values):
        column[row, 0] = value
    return column


@pytest.fixture
def write_truth(tmp_path):
    """Write the four files of the evaluation tools: for each image its boxes and, by subset, the
    numbers of the faces that count."""

    def write(images, root=tmp_path):
        folder = root / "eval_tools" / "ground_truth"
        folder.mkdir(parents=True)
        events = {}
        for name in images:
            events.setdefault(name.split("/")[0], []).append(name)

        def lists(value):
            return cells([cells([value(name) for name in names]) for names in events.values()])

        shared = {
            "event_list": cells(list(events)),
            "file_list": lists(lambda name: name.split("/")[1]),
            "face_bbx_list": lists(lambda n: np.array(images[n][0], dtype=float).reshape(-1, 4)),
        }
        scipy.io.savemat(folder / "wider_face_val.mat", shared)
        for subset in SUBSETS:
            numbers = lists(
                lambda name, subset=subset: np.array(
                    images[name][1][subset], dtype=np.uint8
                ).reshape(-1, 1)
            )
            scipy.io.savemat(folder / f"wider_{subset}_val.mat", shared | {"gt_list": numbers})
        return str(folder)

    return write


COUNTING = {
    "0--Parade/one": ([FIRST, SECOND], {"easy": [1], "medium": [1], "hard": [1, 2]}),
    "0--Parade/two": ([], {"easy": [], "medium": [], "hard": []}),
    "1--Handshaking/three": ([THIRD], {"easy": [], "medium": [1], "hard": [1]}),
}


def test_ground_truth_of_the_files(write_truth):
    truth = load_truth(write_truth(COUNTING))
    assert list(truth) == list(COUNTING)
    first = truth["0--Parade/one"]
    assert first.boxes.tolist() == [list(FIRST), list(SECOND)]
    assert {s: m.tolist() for s, m in first.counts.items()} == {
        "easy": [True, False], "medium": [True, False], "hard": [True, True]
    }  # fmt: skip
    assert truth["0--Parade/two"].boxes.shape == (0, 4)


def test_each_bad_ground_truth_gives_a_sentence(write_truth, tmp_path, monkeypatch):
    folder = write_truth(COUNTING)
    easy = os.path.join(folder, "wider_easy_val.mat")
    with pytest.raises(UserError, match=r"cannot be opened .*evaluation tools"):
        load_truth(str(tmp_path / "nowhere"))
    scipy.io.savemat(easy, {"gt_list": cells([1])})
    with pytest.raises(UserError, match=r"wider_easy_val\.mat' has no lists event_list"):
        load_truth(folder)
    with open(easy, "wb") as file:  # as MATLAB begins files of version 7.3
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n" * 9)
    with pytest.raises(UserError, match=r"is of version 7\.3"):
        load_truth(folder)
    for content in (b"", b"<html>404: not found</html>" * 20):
        with open(easy, "wb") as file:
            file.write(content)
        with pytest.raises(UserError, match="is no MATLAB file"):
            load_truth(folder)
    other = write_truth(
        {"0--Parade/one": ([FIRST], {"easy": [2], "medium": [], "hard": []})}, tmp_path / "other"
    )
    with pytest.raises(UserError, match=r"wider_easy_val\.mat .* does not fit"):
        load_truth(other)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match="pip install scipy"):
        load_truth(folder)


def detections(*found):
    boxes = torch.tensor([box for box, _ in found], dtype=torch.float32).reshape(-1, 4)
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
    result = Instances((200, 200), pred_boxes=Boxes(boxes))
    result.scores = torch.tensor([score for _, score in found])
    result.pred_classes = torch.zeros(len(found), dtype=torch.int64)
    return {"instances": result}


@pytest.fixture
def evaluator(write_truth, tmp_path):
    MetadataCatalog.get("faces").set(ground_truth=write_truth(COUNTING))
    yield WIDERFaceEvaluator("faces", str(tmp_path / "out"))
    MetadataCatalog.pop("faces")


def test_evaluator_through_its_hooks(evaluator, tmp_path):
    images = [{"image_id": name} for name in COUNTING]
    found = [
        detections((SECOND, 0.25), (FIRST, 0.75)),
        detections(),
        detections((FIRST, 0.5), ((0.5, 100, 20, 20), 0.25)),
    ]
    for _ in range(2):
        evaluator.reset()
        evaluator.process(images[:2], found[:2])
        evaluator.process(images[2:], found[2:])
        results = evaluator.evaluate()
        assert list(results) == ["face"]
        assert results["face"] == pytest.approx(
            {"easy": 100, "medium": 100 * (1 + 2 / 3) / 2, "hard": 100 * (1 + 2 * 3 / 4) / 3}
        )
    folder = tmp_path / "out" / "wider_face"
    assert (folder / "0--Parade" / "one.txt").read_text() == (
        "one\n2\n0.00 0.00 20.00 20.00 0.75\n100.00 0.00 20.00 20.00 0.25\n"
    )
    assert (folder / "0--Parade" / "two.txt").read_text() == "two\n0\n"
    third = (folder / "1--Handshaking" / "three.txt").read_text().splitlines()
    assert third[1:] == ["2", "0.00 0.00 20.00 20.00 0.5", "0.50 100.00 20.00 20.00 0.25"]


def test_a_part_of_the_images_and_no_detection(evaluator, caplog):
    caplog.set_level(logging.WARNING, logger="clsloc")
    evaluator.reset()
    evaluator.process([{"image_id": "0--Parade/two"}], [detections()])
    results = evaluator.evaluate()["face"]
    assert all(map(np.isnan, results.values()))
    assert "1 of the 3 images of the benchmark" in caplog.text
    assert "hard has no value: no face counts" in caplog.text
    assert "the model predicts nothing" in caplog.text


def test_an_image_without_ground_truth(evaluator):
    evaluator.process([{"image_id": "0--Parade/four"}], [detections()])
    with pytest.raises(UserError, match="'0--Parade/four' of 'faces' is not in the ground truth"):
        evaluator.evaluate()


def test_images_of_the_test_set_are_written_alone(tmp_path):
    MetadataCatalog.get("faces").set(ground_truth=None)
    evaluator = WIDERFaceEvaluator("faces", str(tmp_path / "out"))
    evaluator.process([{"image_id": "0--Parade/four"}], [detections((FIRST, 0.5))])
    assert evaluator.evaluate() == {}
    assert (tmp_path / "out/wider_face/0--Parade/four.txt").is_file()
    MetadataCatalog.pop("faces")


LISTED = """0--Parade/one.jpg
3
10 20 30 40 2 1 1 0 2 1
50 20 3 1 2 0 0 1 2 0
70 94 0 1 2 0 0 0 1 0
0--Parade/two.jpg
0
0 0 0 0 0 0 0 0 0 0
0--Parade/missing.jpg
1
5 6 7 8 0 0 0 0 0 0
1--Handshaking/three.jpg
1
0 100 20 20 0 1 0 0 0 1
"""


@pytest.fixture
def wider_face(tmp_path):
    """A folder in the official layout with the images of a list, each 200x150, but one."""

    def write(split="val", content=LISTED):
        listing = "filelist" if split == "test" else "bbx_gt"
        file = tmp_path / "wider_face" / "wider_face_split" / f"wider_face_{split}_{listing}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        for name in ("0--Parade/one", "0--Parade/two", "1--Handshaking/three"):
            image = tmp_path / "wider_face" / f"WIDER_{split}" / "images" / f"{name}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (200, 150)).save(image)
        return tmp_path / "wider_face"

    return write


def test_images_and_faces_of_a_list(wider_face, caplog):
    caplog.set_level(logging.WARNING, logger="clsloc")
    root = str(wider_face())
    register_datasets([["faces", "wider_face", root, "val"]])
    one, two, three = DatasetCatalog.get("faces")
    assert (one["image_id"], one["height"], one["width"]) == ("0--Parade/one", 150, 200)
    assert os.path.samefile(one["file_name"], f"{root}/WIDER_val/images/0--Parade/one.jpg")
    large, invalid = one["annotations"]
    assert large == {
        "bbox": [10, 20, 30, 40],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "iscrowd": 0,
    }
    assert (invalid["bbox"], invalid["iscrowd"]) == ([50, 20, 3, 1], 1)
    assert two["annotations"] == []
    assert [face["bbox"] for face in three["annotations"]] == [[0, 100, 20, 20]]
    assert "dropped 1 faces with a side below 1 pixel" in caplog.text
    assert "left out 1 of 4 images" in caplog.text and "missing.jpg" in caplog.text
    assert len(caplog.records) == 2
    assert MetadataCatalog.get("faces").thing_classes == ["face"]


def test_the_size_is_that_of_the_upright_image(wider_face):
    root = wider_face()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 150)).save(root / "WIDER_val/images/0--Parade/one.jpg", exif=exif)
    one, two, _ = load_wider_face(str(root), "val")
    assert (one["width"], one["height"]) == (150, 200)
    assert (two["width"], two["height"]) == (200, 150)


def test_an_invalid_face_is_not_trained_on(wider_face):
    from clsloc.data.train_data import build_train_loader

    root = str(wider_face("train"))
    keys = {"DATASETS.TRAIN": "('faces',)", "SOLVER.IMS_PER_BATCH": 2, "DATALOADER.NUM_WORKERS": 0}
    keys |= {"INPUT.RANDOM_FLIP": "none", "INPUT.MIN_SIZE_TRAIN": "(150,)"}
    cfg = setup_cfg(overrides=[str(part) for pair in keys.items() for part in pair])
    register_datasets([["faces", "wider_face", root, "train"]])
    batch = next(iter(build_train_loader(cfg, seed=0)))
    # The image without faces is left out.
    boxes = {sample["image_id"]: sample["instances"].gt_boxes.tensor.tolist() for sample in batch}
    assert boxes == {
        "0--Parade/one": [[10, 20, 40, 60]],
        "1--Handshaking/three": [[0, 100, 20, 120]],
    }


def test_images_of_the_test_list_have_no_annotations(wider_face):
    root = str(wider_face("test", "0--Parade/one.jpg\n1--Handshaking/three.jpg\n"))
    register_datasets([["faces", "wider_face", root, "test"]])
    samples = DatasetCatalog.get("faces")
    assert [sample["image_id"] for sample in samples] == ["0--Parade/one", "1--Handshaking/three"]
    assert not any("annotations" in sample for sample in samples)


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("one.jpg\n1\n", r"Line 1 of .* is 'one\.jpg' where the path <event>/<image>"),
        ("\na/one.jpg\n", r"Line 3 of .* is missing where the number of faces"),
        ("a/one.jpg\nb/two.jpg\n", r"Line 2 of .* is 'b/two\.jpg' where the number of faces"),
        ("a/one.jpg\n1\n1 2 3 4\n", r"Line 3 of .* is '1 2 3 4' where the 10 integers"),
        ("a/one.jpg\n2\n1 2 3 4 0 0 0 0 0 0\n", r"Line 4 of .* is missing where the 10"),
        ("a/one.jpg\n0\n1 2 3 4 0 0 0 0 0 0\n", r"Line 3 of .* where the path"),
    ],
)
def test_a_malformed_list_gives_its_line(tmp_path, content, sentence):
    file = tmp_path / "list.txt"
    file.write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_list(file)


def test_an_image_without_faces_may_have_a_line_of_zeros_or_not(tmp_path):
    file = tmp_path / "list.txt"
    zeros = "0 0 0 0 0 0 0 0 0 0 \n"
    file.write_text(f"a/one.jpg\n0\na/two.jpg\n0\n{zeros}a/three.jpg\n1\n{zeros}")
    assert [(image.path, image.faces) for image in read_list(file)] == [
        ("a/one.jpg", []), ("a/two.jpg", []), ("a/three.jpg", [])
    ]  # fmt: skip


def test_what_is_missing_gives_a_sentence(wider_face, tmp_path):
    root = wider_face()
    with pytest.raises(UserError, match=r"no split 'valid'; choose from train, val, test"):
        register_datasets([["faces", "wider_face", str(root), "valid"]])
    register_datasets([["faces", "wider_face", str(root), "train"]])
    with pytest.raises(UserError, match=r"'faces' needs '.*train_bbx_gt\.txt', which does not"):
        DatasetCatalog.get("faces")
    (root / "WIDER_val").rename(root / "elsewhere")
    register_datasets([["others", "wider_face", str(root), "val"]])
    with pytest.raises(UserError, match="None of the 4 images"):
        DatasetCatalog.get("others")
    (root / "elsewhere").rename(root / "WIDER_val")
    (root / "WIDER_val" / "images" / "0--Parade" / "two.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"two\.jpg' cannot be read"):
        DatasetCatalog.get("others")


def test_the_builtin_names_follow_the_variable(wider_face, monkeypatch, tmp_path):
    wider_face()
    names = {"wider_face_train", "wider_face_val", "wider_face_test"}
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    setup_cfg()
    assert names <= set(DatasetCatalog.list())
    with pytest.raises(UserError, match="DETECTRON2_DATASETS"):
        DatasetCatalog.get("wider_face_val")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    setup_cfg()
    assert len(DatasetCatalog.get("wider_face_val")) == 3


def test_the_flag_registers_a_split_and_the_stored_config_names_it(wider_face):
    root = str(wider_face())
    cfg = setup_cfg(argument_parser().parse_args(["--wider-face", "faces", root, "val"]))
    assert cfg.CLSLOC.DATASETS == [["faces", "wider_face", root, "val"]]
    assert len(DatasetCatalog.get("faces")) == 3


def test_evaluator_of_a_split(wider_face, write_truth, tmp_path):
    root = wider_face()
    wider_face("train")
    splits = [["val", "wider_face", str(root), "val"], ["train", "wider_face", str(root), "train"]]
    register_datasets(splits)
    cfg = setup_cfg(overrides=["OUTPUT_DIR", str(tmp_path)])
    with pytest.raises(UserError, match=r"wider_face_val\.mat' cannot be opened"):
        build_evaluator(cfg, "val")
    write_truth(COUNTING, root)
    evaluator = build_evaluator(cfg, "val")
    assert isinstance(evaluator, WIDERFaceEvaluator)
    samples = DatasetCatalog.get("val")
    found = [detections((FIRST, 0.9), (SECOND, 0.8)), detections(), detections((THIRD, 0.7))]
    evaluator.process(samples, found)
    assert evaluator.evaluate() == {"face": {"easy": 100, "medium": 100, "hard": 100}}
    assert (tmp_path / "inference/wider_face/1--Handshaking/three.txt").is_file()
    assert isinstance(build_evaluator(cfg, "train"), BoxEvaluator)


def test_check_dataset(wider_face, repo, capsys, caplog):
    root = str(wider_face())
    path = repo / "tools" / "check_dataset.py"
    spec = importlib.util.spec_from_file_location("check_dataset_of_faces", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def check(split):
        return run(tool.main, tool.parser(), ["--wider-face", "faces", root, split])

    assert check("val") == 1
    printed = capsys.readouterr().out
    assert "faces: 3 images, 4 boxes, 1 categories" in printed
    assert "1 of 4 boxes have no area" in printed and "[70, 94, 0, 1]" in printed
    assert "left out 1 of 4 images" in caplog.text
    assert check("test") == 2
    assert "wider_face_test_filelist.txt' cannot be read" in capsys.readouterr().err


PROGRAM = """
import sys
from clsloc.engine import argument_parser, run

if __name__ == "__main__":
    sys.exit(run(argument_parser().parse_args()))
"""

TINY = """
_BASE_: "Base-Digits-RCNN-FPN.yaml"
MODEL:
  FPN: {OUT_CHANNELS: 8, NORM: ""}
  RPN: {PRE_NMS_TOPK_TRAIN: 50, PRE_NMS_TOPK_TEST: 20, POST_NMS_TOPK_TEST: 10}
  ROI_HEADS: {NUM_CLASSES: 1, SCORE_THRESH_TEST: 0.0}
  ROI_BOX_HEAD: {FC_DIM: 16}
  DEVICE: cpu
DATASETS: {TRAIN: ["train"], TEST: ["val", "test"]}
INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 1}
CLSLOC: {BEST: {METRIC: "val/face/hard"}}
"""


def test_two_processes_train_and_evaluate_and_the_images_can_be_predicted(
    wider_face, write_truth, tmp_path, repo
):
    for split in ("train", "val"):
        root = str(wider_face(split))
    wider_face("test", "0--Parade/two.jpg\n")
    write_truth(COUNTING, wider_face())
    (tmp_path / "train.py").write_text(PROGRAM)
    (tmp_path / "tiny.yaml").write_text(TINY)
    flags = [
        part for split in ("train", "val", "test") for part in ("--wider-face", split, root, split)
    ]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}

    def call(*command):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    call("train.py", "--num-gpus", "2", "--config-file", "tiny.yaml", *flags, "OUTPUT_DIR", "out")
    metrics = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]
    assert set(metrics) == {f"val/face/{subset}" for subset in SUBSETS}
    assert all(0 <= value <= 100 for value in metrics.values())
    folder = tmp_path / "out" / "inference"
    written = sorted(file.relative_to(folder).with_suffix("") for file in folder.rglob("*.txt"))
    assert list(map(str, written)) == [
        "test/wider_face/0--Parade/two",
        *(f"val/wider_face/{name}" for name in COUNTING),
    ]
    assert (tmp_path / "out" / "model_best.pth").is_file()

    call(
        str(repo / "tools" / "predict.py"), "--config-file", "out/config.yaml",
        "--weights", "out/model_final.pth", "--dataset", "val", "--compare-gt",
        "--output", "seen", "--threshold", "0"
    )  # fmt: skip
    assert len(list((tmp_path / "seen").rglob("*.jpg"))) == 3
