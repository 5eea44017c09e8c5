"""Evaluators and the inference loop, on either Detectron2."""

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_pascal_voc
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
    inference_context,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.evaluation.pascal_voc_evaluation import voc_ap
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, BoxMode, Instances

NAME = "runtime_evaluation"


@pytest.fixture(autouse=True)
def _forget_datasets():
    yield
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(NAME, None)


def detections(*rows: tuple) -> dict:
    """An output with a detection for each (x0, y0, x1, y1, score, class)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    instances = Instances((200, 200))
    instances.pred_boxes = Boxes(table[:, :4])
    instances.scores = table[:, 4]
    instances.pred_classes = table[:, 5].long()
    return {"instances": instances}


def evaluate(evaluator: DatasetEvaluator, outputs: dict) -> dict:
    """``outputs`` by image id."""
    evaluator.reset()
    evaluator.process([{"image_id": i} for i in outputs], list(outputs.values()))
    return evaluator.evaluate()


# COCO

# Class 0 ("four") has one object of 40x40 in image 1; class 1 ("nine") one of 100x100 in image 2.
OBJECTS = {1: (10, 10, 50, 50), 2: (20, 20, 120, 120)}


@pytest.fixture
def coco(tmp_path: Path) -> str:
    annotations = [
        {
            "id": i,
            "image_id": i,
            "category_id": {1: 4, 2: 9}[i],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0),
            "iscrowd": 0,
        }
        for i, (x0, y0, x1, y1) in OBJECTS.items()
    ]
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 200, "width": 200} for i in (1, 2, 3)]
    categories = [{"id": 9, "name": "nine"}, {"id": 4, "name": "four"}]
    path = tmp_path / "coco.json"
    content = {"images": images, "categories": categories, "annotations": annotations}
    path.write_text(json.dumps(content))
    register_coco_instances(NAME, {}, str(path), "images")
    DatasetCatalog.get(NAME)  # sets the class names
    return NAME


def test_perfect_detections(coco, tmp_path: Path):
    outputs = {1: detections((*OBJECTS[1], 0.9, 0)), 2: detections((*OBJECTS[2], 0.8, 1))}
    folder = tmp_path / "out"
    results = evaluate(COCOEvaluator(coco, output_dir=str(folder)), outputs | {3: detections()})
    metrics = results["bbox"]
    assert list(metrics) == "AP AP50 AP75 APs APm APl AP-four AP-nine".split()
    assert math.isnan(metrics.pop("APs"))  # there is no small object
    assert all(value == pytest.approx(100) for value in metrics.values())

    written = json.loads((folder / "coco_instances_results.json").read_text())
    assert [d["category_id"] for d in written] == [4, 9]  # the dataset's own ids
    assert written[0] == {
        "image_id": 1,
        "category_id": 4,
        "bbox": [10, 10, 40, 40],
        "score": pytest.approx(0.9),
    }
    predictions = torch.load(folder / "instances_predictions.pth", weights_only=False)
    assert [p["image_id"] for p in predictions] == [1, 2, 3]


def test_average_precision_by_hand(coco):
    # "four": IoU 0.8 passes 7 of the 10 thresholds (0.50 to 0.80), behind a wrong detection of a
    # higher score: precision 1/2 at every recall. "nine": missed.
    outputs = {1: detections((10, 10, 50, 42, 0.5, 0), (100, 100, 150, 150, 0.9, 0))}
    metrics = evaluate(COCOEvaluator(coco), outputs)["bbox"]
    assert metrics["AP-four"] == pytest.approx(0.7 * 50)
    assert metrics["AP-nine"] == 0
    assert metrics["AP"] == pytest.approx(0.7 * 25)
    assert metrics["AP50"] == metrics["AP75"] == pytest.approx(25)
    # Of medium objects only "four" has one; the wrong detection is 50x50, medium as well.
    assert metrics["APm"] == pytest.approx(0.7 * 50)


def test_number_of_detections_is_limited(coco):
    right = (10, 10, 50, 42, 0.1, 0)  # at 7 of the 10 thresholds
    wrong = [(100, 100, 150, 150, 0.9 - 0.01 * i, 0) for i in range(12)]
    outputs = {1: detections(right, *wrong)}
    found = evaluate(COCOEvaluator(coco), outputs)["bbox"]["AP-four"]
    assert found == pytest.approx(0.7 * 100 / 13)
    limited = evaluate(COCOEvaluator(coco, max_dets_per_image=12), outputs)["bbox"]
    assert limited["AP-four"] == limited["AP"] == 0
    enough = evaluate(COCOEvaluator(coco, max_dets_per_image=13), outputs)["bbox"]
    assert enough["AP-four"] == pytest.approx(found)
    assert enough["AP"] == pytest.approx(found / 2)
    assert enough["AP50"] == pytest.approx(100 / 13 / 2)


@pytest.mark.parametrize("image_ids, ap", [([1], 100), (None, 50)])
def test_images_can_be_chosen(coco, image_ids, ap):
    evaluator = COCOEvaluator(coco)
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [detections((*OBJECTS[1], 0.9, 0))])
    assert evaluator.evaluate(image_ids)["bbox"]["AP"] == pytest.approx(ap)


def test_no_predictions(coco):
    metrics = evaluate(COCOEvaluator(coco), {1: detections()})["bbox"]
    assert list(metrics) == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert all(math.isnan(value) for value in metrics.values())
    assert evaluate(COCOEvaluator(coco), {}) == {}


def test_class_that_the_dataset_lacks(coco):
    with pytest.raises(AssertionError, match="2"):
        evaluate(COCOEvaluator(coco), {1: detections((0, 0, 9, 9, 0.5, 2))})


def test_test_set_without_annotations(coco, tmp_path: Path):
    path = Path(MetadataCatalog.get(coco).json_file)
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    evaluator = COCOEvaluator(coco, output_dir=str(tmp_path))
    assert evaluate(evaluator, {1: detections((*OBJECTS[1], 0.9, 0))}) == {}
    assert (tmp_path / "coco_instances_results.json").exists()


def test_dataset_in_another_format_is_converted(tmp_path: Path):
    samples = [
        {
            "file_name": "a.jpg",
            "image_id": "first",
            "height": 200,
            "width": 200,
            "annotations": [{"bbox": OBJECTS[1], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}],
        }
    ]
    DatasetCatalog.register(NAME, lambda: samples)
    MetadataCatalog.get(NAME).thing_classes = ["a"]
    with pytest.raises(ValueError, match="output_dir"):
        COCOEvaluator(NAME)
    evaluator = COCOEvaluator(NAME, output_dir=str(tmp_path))
    assert (tmp_path / f"{NAME}_coco_format.json").exists()
    metrics = evaluate(evaluator, {"first": detections((*OBJECTS[1], 0.9, 0))})["bbox"]
    assert metrics["AP"] == pytest.approx(100)
    assert "AP-a" not in metrics  # of one class AP says it all


def test_recall_of_proposals_by_hand(coco, tmp_path: Path):
    def proposals(*rows: tuple) -> dict:
        table = torch.tensor(rows, dtype=torch.float32)
        instances = Instances((200, 200))
        instances.proposal_boxes = Boxes(table[:, :4])
        instances.objectness_logits = table[:, 4]
        return {"proposals": instances}

    # IoU 0.8 with the first object is over 7 of 10 thresholds; the second is found exactly.
    outputs = {
        1: proposals((10, 10, 50, 42, 3.0), (0, 0, 5, 5, 4.0)),
        2: proposals((*OBJECTS[2], 1.0)),
    }
    evaluator = COCOEvaluator(coco, output_dir=str(tmp_path / "out"))
    metrics = evaluate(evaluator, outputs)["box_proposals"]
    assert metrics["AR@100"] == metrics["AR@1000"] == pytest.approx(85)
    assert metrics["ARm@100"] == pytest.approx(70)
    assert metrics["ARl@100"] == pytest.approx(100)
    assert math.isnan(metrics["ARs@100"])
    assert (tmp_path / "out" / "box_proposals.pkl").exists()


def test_an_object_is_recalled_once(coco):
    path = Path(MetadataCatalog.get(coco).json_file)
    content = json.loads(path.read_text())
    missed = {"id": 3, "bbox": [150, 150, 40, 40], "area": 1600}
    content["annotations"].append(content["annotations"][0] | missed)
    path.write_text(json.dumps(content))
    instances = Instances((200, 200))
    instances.proposal_boxes = Boxes(torch.tensor([OBJECTS[1], OBJECTS[1]]).float())
    instances.objectness_logits = torch.tensor([1.0, 2.0])
    metrics = evaluate(COCOEvaluator(coco), {1: {"proposals": instances}})
    assert metrics["box_proposals"]["AR@100"] == pytest.approx(50)


def test_instances_to_coco_json():
    instances = detections((1, 2, 4, 8, 0.5, 3))["instances"]
    expected = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 6], "score": 0.5}
    assert instances_to_coco_json(instances, 7) == [expected]
    assert instances_to_coco_json(detections()["instances"], 7) == []


# Pascal VOC


def test_voc_ap_by_hand():
    recall, precision = np.array([0.5, 0.5, 1.0]), np.array([1.0, 0.5, 2 / 3])
    assert voc_ap(recall, precision) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # Recall 0 to 0.5 are 6 of the 11 levels.
    assert voc_ap(recall, precision, True) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    # A higher precision at a higher recall counts below it, too.
    assert voc_ap(np.array([0.5, 1.0]), np.array([0.5, 2 / 3])) == pytest.approx(2 / 3)
    assert voc_ap(np.array([]), np.array([])) == 0


def voc_xml(*objects: tuple) -> str:
    parts = ["<annotation><size><width>200</width><height>200</height></size>"]
    for name, difficult, corners in objects:
        tags = zip(("xmin", "ymin", "xmax", "ymax"), corners)
        box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
        parts.append(
            f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated>"
            f"<difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"
        )
    return "".join([*parts, "</annotation>"])


@pytest.mark.parametrize("year", [2007, 2012])
def test_voc_evaluation_by_hand(tmp_path: Path, year):
    for folder in ("Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    cats = [("cat", 0, (11, 11, 50, 50)), ("cat", 1, (101, 101, 150, 150))]
    (tmp_path / "Annotations/one.xml").write_text(voc_xml(*cats))
    (tmp_path / "Annotations/two.xml").write_text(voc_xml(("dog", 0, (1, 1, 100, 100))))
    (tmp_path / "ImageSets/Main/val.txt").write_text("one\ntwo\n")
    register_pascal_voc(NAME, str(tmp_path), "val", year, ["cat", "dog"])

    outputs = {
        "one": detections(
            (10, 10, 50, 50, 0.5, 0),  # right
            (10, 10, 50, 50, 0.4, 0),  # wrong: the object is taken
            (100, 100, 150, 150, 0.9, 0),  # of a difficult object: does not count
        ),
        "two": detections((0, 0, 100, 80, 0.8, 1)),  # IoU 0.8: right at 0.50 to 0.75
    }
    metrics = evaluate(PascalVOCDetectionEvaluator(NAME), outputs)["bbox"]
    assert metrics["AP50"] == metrics["AP75"] == pytest.approx(100)
    assert metrics["AP"] == pytest.approx(50 + 0.6 * 50)


# The inference loop


class Recorder(DatasetEvaluator):
    def __init__(self, results):
        self.results = results
        self.processed = []

    def reset(self):
        self.processed.clear()

    def process(self, inputs, outputs):
        self.processed += zip(inputs, outputs)

    def evaluate(self):
        return self.results


class Doubler(nn.Module):
    def __init__(self):
        super().__init__()
        self.modes = []

    def forward(self, batch):
        self.modes.append((self.training, torch.is_grad_enabled()))
        return [2 * x for x in batch]


def test_inference_on_dataset():
    model, evaluator = Doubler(), Recorder({"task": {"AP": 1.0}})
    results = inference_on_dataset(model, [[1], [2, 3]], evaluator)
    assert results == {"task": {"AP": 1.0}}
    assert evaluator.processed == [(1, 2), (2, 4), (3, 6)]
    assert model.modes == [(False, False)] * 2
    assert model.training


def test_inference_without_evaluator_and_without_results():
    assert inference_on_dataset(Doubler(), [[1]], None) == {}
    assert inference_on_dataset(Doubler(), [[1]], Recorder(None)) == {}
    assert inference_on_dataset(Doubler(), [], Recorder(None)) == {}


def test_callbacks_are_called_at_their_stages():
    called = []
    stages = ("on_start", "before_inference", "after_inference", "on_end")
    callbacks = {stage: lambda stage=stage: called.append(stage) for stage in stages}
    inference_on_dataset(Doubler(), [[1]], None, callbacks=callbacks)
    assert called == list(stages)


def test_several_evaluators():
    both = [Recorder({"a": 1}), Recorder({"b": 2}), Recorder(None)]
    assert inference_on_dataset(Doubler(), [[1]], both) == {"a": 1, "b": 2}
    with pytest.raises(AssertionError, match="a"):
        DatasetEvaluators([Recorder({"a": 1}), Recorder({"a": 2})]).evaluate()


def test_inference_context_restores_the_mode():
    model = Doubler()
    for training in (True, False):
        model.train(training)
        with inference_context(model):
            assert not model.training
        assert model.training == training


# Results


def test_flatten_results_dict():
    assert flatten_results_dict({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {
        "a/b": 1,
        "a/c/d": 2,
        "e": 3,
    }


def test_print_csv_format():
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("detectron2.evaluation.testing")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        print_csv_format({"bbox": {"AP": 12.34567, "AP50": 50.0, "AP-cat": 3.0}, "seconds": 1})
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    lines = [record.getMessage() for record in records]
    assert lines == [
        "copypaste: Task: bbox",
        "copypaste: AP,AP50",
        "copypaste: 12.3457,50.0000",
        "copypaste: seconds=1",
    ]


@pytest.mark.parametrize(
    "actual, passes", [(50.4, True), (50.6, False), (float("nan"), False), (None, False)]
)
def test_verify_results(actual, passes):
    cfg = get_cfg()
    results = {"bbox": {} if actual is None else {"AP": actual}}
    assert verify_results(cfg, results)
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 50.0, 0.5]]
    if passes:
        assert verify_results(cfg, results)
    else:
        with pytest.raises(SystemExit) as exit_info:
            verify_results(cfg, results)
        assert exit_info.value.code == 1
