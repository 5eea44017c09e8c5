"""The evaluator against detections whose average precision follows from their IoU."""

import json
import math
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from clsloc.data import register_datasets
from clsloc.engine import setup_cfg
from clsloc.errors import UserError
from clsloc.evaluation import BoxEvaluator, build_evaluator
from clsloc.evaluation.coco import AP_BY_IOU, REPORTED
from clsloc.evaluation.reasons import class_agnostic_recall
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.evaluation import DatasetEvaluators
from detectron2.structures import Boxes, Instances

pytestmark = pytest.mark.usefixtures("forget_datasets")


def run(evaluator, dataset_name, detections):
    """Score detections, lists of (class index, score, XYXY) for each image."""
    evaluator.reset()
    for image, found in zip(DatasetCatalog.get(dataset_name), detections):
        instances = Instances((image["height"], image["width"]))
        instances.pred_classes = torch.tensor([kind for kind, _, _ in found], dtype=torch.int64)
        instances.scores = torch.tensor([score for _, score, _ in found])
        boxes = torch.tensor([box for *_, box in found], dtype=torch.float32)
        instances.pred_boxes = Boxes(boxes.reshape(-1, 4))
        evaluator.process([image], [{"instances": instances}])
    return evaluator.evaluate()


@pytest.fixture
def pets(coco_folder):
    json_file, root = coco_folder([(3, (0, 0, 100, 100)), (7, (100, 0, 100, 100))])
    register_datasets([["pets", "coco", json_file, root]])
    DatasetCatalog.get("pets")
    return "pets"


def test_every_threshold_by_hand(pets, tmp_path):
    # A cat found with IoU 0.72, a dog with IoU 0.93: of the ten thresholds from 0.5 to 0.95 they
    # pass five and nine.
    found = [[(0, 0.9, (0, 0, 100, 72)), (1, 0.8, (100, 0, 200, 93))]]
    results = run(BoxEvaluator(pets, str(tmp_path)), pets, found)
    assert list(results) == ["bbox"]
    assert tuple(results["bbox"]) == REPORTED
    expected = {"AP": 70, "AP50": 100, "AP60": 100, "AP70": 100, "AP75": 50, "AP80": 50}
    expected |= {"AP90": 50, "APl": 70, "AP55": 100, "AP65": 100, "AP85": 50, "AP95": 0}
    for metric, value in expected.items():
        assert results["bbox"][metric] == pytest.approx(value, abs=1e-6), metric
    curve = [results["bbox"][metric] for metric in AP_BY_IOU.values()]
    assert sum(curve) / len(curve) == pytest.approx(results["bbox"]["AP"])
    assert math.isnan(results["bbox"]["APs"]) and math.isnan(results["bbox"]["APm"])
    predictions = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert [item["category_id"] for item in predictions] == [3, 7]


def reasons(caplog, pets, found):
    caplog.clear()
    run(BoxEvaluator(pets), pets, [found])
    return " ".join(
        record.getMessage() for record in caplog.records if record.name.startswith("clsloc")
    )


def test_recall_without_classes_by_hand_and_in_silence(coco_folder, capsys):
    truth = COCO(coco_folder([(3, (0, 0, 100, 100)), (7, (100, 0, 100, 100))])[0])
    row = {"image_id": 0, "category_id": 7, "bbox": [0, 0, 100, 90], "score": 0.5}
    found = truth.loadRes([row])  # the cat, taken for a dog
    capsys.readouterr()
    assert class_agnostic_recall(COCOeval(truth, found, "bbox")) == 0.5
    assert capsys.readouterr().out == ""


def test_recall_without_classes_leaves_crowds_out(coco_folder):
    truth = COCO(coco_folder([(3, (0, 0, 100, 100)), (7, (100, 0, 100, 100))])[0])
    truth.anns[1]["iscrowd"] = 1
    assert truth.anns[1]["category_id"] == 3
    row = {"image_id": 0, "category_id": 7, "bbox": [0, 0, 100, 100], "score": 0.5}
    found = truth.loadRes([row])  # in the crowd; the dog beside it is not found
    assert class_agnostic_recall(COCOeval(truth, found, "bbox")) == 0


def test_what_an_annotation_says_is_not_written_over(coco_folder):
    json_file, root = coco_folder([(3, (0, 0, 100, 100)), (7, (100, 0, 100, 100))])
    content = json.loads(Path(json_file).read_text())
    crowd, dog = content["annotations"]
    crowd["iscrowd"], dog["area"] = 1, 500
    del crowd["area"], dog["iscrowd"]
    Path(json_file).write_text(json.dumps(content))
    register_datasets([["odd", "coco", json_file, root]])
    DatasetCatalog.get("odd")
    known = BoxEvaluator("odd")._coco_api.anns.values()
    assert [(a["area"], a["iscrowd"]) for a in known] == [(10_000, 1), (500, 0)]


def test_an_ap_without_value_or_of_zero_comes_with_its_reason(pets, caplog):
    caplog.set_level("WARNING", logger="clsloc")
    assert "the model predicts nothing" in reasons(caplog, pets, [])
    good = [(0, 0.9, (0, 0, 100, 100)), (1, 0.8, (100, 0, 200, 100))]
    text = reasons(caplog, pets, good)
    assert "no object below 32² pixels" in text and "AP is 0" not in text
    swapped = [(1, 0.9, (0, 0, 100, 100)), (0, 0.8, (100, 0, 200, 100))]
    assert "100 % of the objects are found when classes are ignored" in reasons(
        caplog, pets, swapped
    )
    elsewhere = [(0, 0.9, (0, 0, 10, 10))]
    assert "no prediction overlaps" in reasons(caplog, pets, elsewhere)


def test_an_empty_dataset_is_the_reason(coco_folder, caplog):
    caplog.set_level("WARNING", logger="clsloc")
    json_file, root = coco_folder([])
    register_datasets([["none", "coco", json_file, root]])
    DatasetCatalog.get("none")
    assert "the dataset has no object to find" in reasons(caplog, "none", [(0, 0.9, (0, 0, 9, 9))])


def test_classes_on_request(pets):
    found = [[(0, 0.9, (0, 0, 100, 72)), (1, 0.8, (100, 0, 200, 93))]]
    results = run(BoxEvaluator(pets, per_class=True), pets, found)["bbox"]
    assert results["AP-cat"] == pytest.approx(50) and results["AP-dog"] == pytest.approx(90)
    assert not any("-" in name for name in run(BoxEvaluator(pets), pets, found)["bbox"])


def test_a_better_scored_mistake_halves_the_precision(pets):
    found = [[(0, 0.9, (150, 100, 190, 140)), (0, 0.5, (0, 0, 100, 100))]]
    results = run(BoxEvaluator(pets, per_class=True), pets, found)["bbox"]
    assert results["AP-cat"] == pytest.approx(50) and results["AP-dog"] == 0
    assert results["AP60"] == pytest.approx(25)


def test_no_detection(pets):
    results = run(BoxEvaluator(pets), pets, [[]])["bbox"]
    assert tuple(results) == REPORTED
    assert all(math.isnan(value) for value in results.values())


def test_voc_folder_with_difficult_objects(voc_folder, tmp_path):
    objects = [("dog", (1, 1, 100, 100), 0), ("dog", (101, 1, 200, 100), 1)]
    directory = voc_folder({"val": ["a"]}, {"a": [*objects, ("cat", (1, 101, 40, 140), 0)]})
    register_datasets([["pets", "voc", directory, "val"]])
    DatasetCatalog.get("pets")
    evaluator = BoxEvaluator("pets", str(tmp_path / "out"))
    exact = [(1, 0.8, (0, 0, 100, 100)), (0, 0.7, (0, 100, 40, 140))]
    difficult = (1, 0.9, (100, 0, 200, 100))
    for found in (exact, [*exact, difficult]):  # found or not, it does not count
        results = run(evaluator, "pets", [found])["bbox"]
        assert results["AP90"] == pytest.approx(100)
    mistake = (1, 0.9, (10, 110, 60, 150))
    results = run(evaluator, "pets", [[*exact, mistake]])["bbox"]
    assert results["AP90"] == pytest.approx(75)


def test_a_converted_file_is_never_stale(voc_folder, tmp_path):
    directory = voc_folder({"val": ["a"]}, {"a": [("dog", (1, 1, 100, 100), 0)]})
    register_datasets([["pets", "voc", directory, "val"]])
    found = [[(0, 0.9, (0, 0, 100, 100))]]
    DatasetCatalog.get("pets")
    out = str(tmp_path / "out")
    assert run(BoxEvaluator("pets", out), "pets", found)["bbox"]["AP"] == pytest.approx(100)
    file = tmp_path / "voc" / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<ymax>100</ymax>", "<ymax>140</ymax>"))
    assert run(BoxEvaluator("pets", out), "pets", found)["bbox"]["AP75"] == 0


def test_official_voc_sets_get_both_measures(voc_folder, tmp_path):
    dog = ("dog", (1, 1, 100, 100), 0)
    directory = voc_folder({"test": ["a", "b"]}, {"a": [dog], "b": [dog]})
    register_pascal_voc("voc_test", directory, "test", 2007, ["dog"])
    MetadataCatalog.get("voc_test").evaluator_type = "pascal_voc"
    cfg = setup_cfg(overrides=["OUTPUT_DIR", str(tmp_path)])
    evaluator = build_evaluator(cfg, "voc_test")
    assert isinstance(evaluator, DatasetEvaluators)
    results = run(evaluator, "voc_test", [[(0, 0.9, (0, 0, 100, 72))]] * 2)
    assert results["bbox"]["AP70"] == pytest.approx(100) and results["bbox"]["AP75"] == 0
    assert results["voc"]["AP50"] == pytest.approx(100) and results["voc"]["AP75"] == 0
    assert results["voc"]["AP70"] == pytest.approx(100)
    assert list(results["voc"]) == ["AP", "AP50", "AP75", "AP70"]


def test_ap70_of_every_class_is_the_mean_of_eleven_points_in_the_order_of_the_classes(
    voc_folder, tmp_path
):
    objects = [("dog", (1, 1, 100, 100), 0), ("cat", (101, 1, 200, 100), 0)]
    directory = voc_folder({"test": ["a", "b"]}, {"a": objects, "b": objects})
    register_pascal_voc("voc_test", directory, "test", 2007, ["dog", "cat"])
    MetadataCatalog.get("voc_test").evaluator_type = "pascal_voc"
    cfg = setup_cfg(overrides=["OUTPUT_DIR", str(tmp_path), "CLSLOC.TEST.PER_CLASS", "True"])
    evaluator = build_evaluator(cfg, "voc_test")
    # Both dogs with IoU 0.72; one of two cats, so that recall reaches 0.5: six points of eleven.
    dog, cat = (0, 0.9, (0, 0, 100, 72)), (1, 0.8, (100, 0, 200, 72))
    results = run(evaluator, "voc_test", [[dog, cat], [dog]])["voc"]
    assert list(results)[4:] == ["AP70-dog", "AP70-cat"]
    assert results["AP70-dog"] == pytest.approx(100)
    assert results["AP70-cat"] == pytest.approx(100 * 6 / 11)
    assert results["AP70"] == pytest.approx(100 * (1 + 6 / 11) / 2)
    assert results["AP75"] == 0


def test_each_of_several_datasets_gets_its_folder(pets, tmp_path):
    one = setup_cfg(overrides=["OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", "('pets',)"])
    run(build_evaluator(one, pets), pets, [[(0, 0.9, (0, 0, 100, 72))]])
    assert (tmp_path / "inference" / "coco_instances_results.json").is_file()
    two = setup_cfg(overrides=["OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", "('pets', 'other')"])
    run(build_evaluator(two, pets), pets, [[(0, 0.9, (0, 0, 100, 72))]])
    assert (tmp_path / "inference" / "pets" / "coco_instances_results.json").is_file()


def test_unknown_evaluator_type(pets):
    cfg = setup_cfg()
    MetadataCatalog.get(pets).__dict__["evaluator_type"] = "lvis"
    with pytest.raises(UserError, match="evaluator_type 'lvis'"):
        build_evaluator(cfg, pets)


@pytest.mark.parametrize("first", [0, -1, "a"])
def test_ids_of_objects_do_not_change_ap(coco_folder, first):
    json_file, root = coco_folder([(3, (0, 0, 100, 100)), (7, (100, 0, 100, 100))])
    content = json.loads(Path(json_file).read_text())
    content["annotations"][0]["id"] = first  # COCO's evaluation takes 0 for no match
    Path(json_file).write_text(json.dumps(content))
    register_datasets([["odd", "coco", json_file, root]])
    DatasetCatalog.get("odd")
    good = [(0, 0.9, (0, 0, 100, 100)), (1, 0.8, (100, 0, 200, 100))]
    assert run(BoxEvaluator("odd"), "odd", [good])["bbox"]["AP"] == pytest.approx(100)


def test_objects_that_nothing_can_match_are_told(coco_folder, caplog):
    caplog.set_level("WARNING", logger="clsloc")
    json_file, root = coco_folder([(3, (0, 0, 100, 100)), (7, (100, 0, -100, 100))])
    register_datasets([["odd", "coco", json_file, root]])
    DatasetCatalog.get("odd")
    BoxEvaluator("odd")
    assert "odd: 1 of 2 objects have a box without area" in caplog.text
