"""Predictions of methods on the same images, and what a run wrote while it was training."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from clsloc.data import register_datasets
from clsloc.evaluation import BoxEvaluator
from clsloc.gauges.gallery import RIGHT, TRUTH, TRUTH_COLOUR, WRONG, draw_gallery, match
from clsloc.gauges.histories import mean_history, read_history
from clsloc.gauges.page import page, table, tiles
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances

pytestmark = pytest.mark.usefixtures("forget_datasets")


def test_an_object_is_found_once_by_its_class():
    truth = torch.tensor([[0.0, 0, 100, 100], [0, 0, 100, 80]])
    boxes = torch.tensor([[0.0, 0, 100, 90], [0, 0, 100, 100], [0, 0, 100, 100], [50, 0, 150, 100]])
    assert match(boxes, [0, 1, 0, 1], truth, [0, 1]) == [
        pytest.approx(0.9),  # the first object
        pytest.approx(0.8),  # the second one, of the other class
        None,  # the first object is taken
        None,  # overlaps too little
    ]
    assert match(torch.zeros(0, 4), [], truth, [0, 1]) == []


def write_predictions(folder, *predictions):
    (folder / "inference").mkdir(parents=True)
    rows = [
        {"image_id": image, "category_id": category, "bbox": box, "score": score}
        for image, category, box, score in predictions
    ]
    (folder / "inference" / "coco_instances_results.json").write_text(json.dumps(rows))
    return folder


def colours(jpeg):
    """Which of the colours of boxes are in a picture."""
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), dtype=int).reshape(-1, 3)
    wanted = {"truth": TRUTH_COLOUR, "right": RIGHT, "wrong": WRONG}
    rgb = {name: [int(text[i : i + 2], 16) for i in (1, 3, 5)] for name, text in wanted.items()}
    return {n for n, c in rgb.items() if (np.abs(pixels - c).max(1) < 60).sum() > 50}


def test_each_method_beside_the_truth(coco_folder, tmp_path):
    images = [[(3, (20, 20, 100, 100))], [], [(7, (50, 30, 100, 100)), (3, (0, 0, 50, 50))]]
    json_file, root = coco_folder(*images)
    register_datasets([["pets", "coco", json_file, root]])
    good = write_predictions(
        tmp_path / "good",
        (0, 3, [20, 20, 100, 95], 0.9),
        (0, 7, [20, 20, 100, 100], 0.8),  # at the same place
        (0, 7, [150, 100, 40, 40], 0.7),  # one more than there are objects
        (2, 7, [50, 30, 100, 100], 0.2),
    )
    bad = write_predictions(tmp_path / "bad", (0, 7, [20, 20, 100, 100], 0.9))
    folders = {"good": good, "bad": bad, "none": tmp_path / "none"}
    found = draw_gallery("pets", folders, count=9)
    assert [name for name, _ in found] == ["0.png", "2.png"]  # of those with objects
    first, second = (pictures for _, pictures in found)
    assert list(first) == list(second) == [TRUTH, "good", "bad"]
    assert colours(first[TRUTH]) == {"truth"}
    assert colours(first["good"]) == {"right"} and colours(first["bad"]) == {"wrong"}
    assert colours(second["good"]) == {"right"} and colours(second["bad"]) == set()
    assert max(Image.open(io.BytesIO(first["bad"])).size) == 320


def test_the_choice_is_the_same_each_time(coco_folder, tmp_path):
    json_file, root = coco_folder(*[[(3, (0, 0, 50, 50))]] * 8)
    register_datasets([["pets", "coco", json_file, root]])
    one, two = ([n for n, _ in draw_gallery("pets", {}, 3)] for _ in range(2))
    assert one == two and len(set(one)) == 3
    assert one != [n for n, _ in draw_gallery("pets", {}, 3, seed=1)]


def test_what_the_evaluation_of_a_voc_dataset_wrote(voc_folder, tmp_path):
    objects = [("dog", (1, 1, 100, 100), 0)]
    directory = voc_folder({"val": ["000005"]}, {"000005": objects, "000006": []})
    register_datasets([["pets", "voc", directory, "val"]])
    (record,) = DatasetCatalog.get("pets")
    evaluator = BoxEvaluator("pets", str(tmp_path / "run" / "inference" / "pets"))
    evaluator.reset()
    found = Instances((150, 200), pred_boxes=Boxes(torch.tensor([[0.0, 0, 100, 95]])))
    found.scores = torch.tensor([0.9])
    found.pred_classes = torch.tensor([record["annotations"][0]["category_id"]])
    evaluator.process([record], [{"instances": found}])
    evaluator.evaluate()
    ((_, pictures),) = draw_gallery("pets", {"run": tmp_path / "run"}, 1)
    assert colours(pictures["run"]) == {"right"}


def test_a_history_survives_a_resume_and_a_cut_line(tmp_path):
    lines = [
        {"iteration": 19, "total_loss": 4.0},
        {"iteration": 39, "total_loss": 3.0, "bbox/AP": float("nan")},
        {"iteration": 39, "total_loss": 2.0, "bbox/AP": 10.0},
        {"lr": 1.0},
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n[1]\n{"iteration": 59, "tot'
    (tmp_path / "metrics.json").write_text(text)
    history = read_history(tmp_path / "metrics.json")
    assert history == {"total_loss": {19: 4.0, 39: 2.0}, "bbox/AP": {39: 10.0}}
    assert read_history(tmp_path / "none.json") == {}
    other = {"total_loss": {39: 4.0, 59: 1.0}}
    assert mean_history([history, other, {}], "total_loss") == {39: 3.0}
    assert mean_history([{}], "total_loss") == {}


def test_names_cannot_break_the_page():
    text = page("<b>", table([["method", "AP"], ["<i>&", "1"]]), tiles("a/b", {"<u>": b""}))
    assert "<b>" not in text and "<i>" not in text and "<u>" not in text
    assert "&lt;i&gt;&amp;" in text
