"""The digits dataset: boxes tight around the ink, equal for equal seeds, disjoint splits."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from clsloc.data import make_digits, register_digits
from clsloc.data.digit_scenes import IMAGE_SIZE, MAX_COVERED, SIZES, SceneMaker, tight_box
from clsloc.data.digits import digits_folder
from clsloc.errors import UserError
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture(scope="module")
def scenes():
    make_scene = SceneMaker("train")
    return [make_scene(number) for number in range(40)]


def test_tight_box_by_hand():
    mask = np.zeros((5, 6), dtype=bool)
    mask[1, 2] = mask[3, 4] = True
    assert tight_box(mask) == (2, 1, 5, 4)


def test_boxes_end_where_the_ink_ends(scenes):
    for scene in scenes:
        for (x0, y0, x1, y1), mask in zip(scene.boxes, scene.masks):
            inside = mask[y0:y1, x0:x1]
            assert inside.sum() == mask.sum()
            for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert edge.any()


def test_the_ink_is_where_the_mask_says(scenes):
    """A digit has one colour, up to the noise and the soft edge; what lies around it has not."""
    spreads = []
    for scene in scenes:
        for mask in scene.masks:
            values = scene.image[mask].astype(float).mean(-1)
            low, high = np.percentile(values, [25, 75])
            spreads.append(high - low)
    assert np.median(spreads) < 8  # the noise alone gives 1.35 * 4


def test_number_and_size_of_the_digits(scenes):
    counts = [len(scene.labels) for scene in scenes]
    assert min(counts) == 1 and max(counts) in (5, 6)
    boxes = np.concatenate([scene.boxes for scene in scenes])
    assert boxes.min() >= 0 and boxes.max() <= IMAGE_SIZE
    longer = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    assert SIZES[0] <= longer.min() < 25 and 70 < longer.max() <= SIZES[1]


def test_digits_overlap_but_only_partly(scenes):
    overlaps = 0
    for scene in scenes:
        assert scene.masks.sum(0).max() == 1  # visible ink belongs to one digit
        x0, y0, x1, y1 = scene.boxes.T
        width = np.minimum(x1[:, None], x1) - np.maximum(x0[:, None], x0)
        height = np.minimum(y1[:, None], y1) - np.maximum(y0[:, None], y0)
        overlaps += np.triu((width > 0) & (height > 0), k=1).sum()
    assert overlaps > 10
    assert 0 < MAX_COVERED < 0.5


def test_a_scene_depends_on_seed_split_and_number_alone(scenes):
    again = SceneMaker("train")(7)
    np.testing.assert_array_equal(again.image, scenes[7].image)
    np.testing.assert_array_equal(again.boxes, scenes[7].boxes)
    for other in (SceneMaker("train", seed=1)(7), SceneMaker("val")(7), scenes[8]):
        assert not np.array_equal(other.image, scenes[7].image)


def test_no_split_uses_a_source_digit_of_the_other():
    sources = {split: set(SceneMaker(split)._sources) for split in ("train", "val")}
    assert sources["train"].isdisjoint(sources["val"])
    assert sources["train"] | sources["val"] == set(range(1797))
    assert len(sources["val"]) == 359  # a fifth


def test_files(digits_root):
    folder = digits_root / "digits"
    for split, size in (("train", 6), ("val", 3)):
        content = json.loads((folder / "annotations" / f"{split}.json").read_text())
        assert [image["id"] for image in content["images"]] == list(range(1, size + 1))
        assert [category["name"] for category in content["categories"]] == list("0123456789")
        scene = SceneMaker(split)(1)
        first = [item for item in content["annotations"] if item["image_id"] == 1]
        x0, y0, x1, y1 = scene.boxes[0].tolist()
        assert first[0]["bbox"] == [x0, y0, x1 - x0, y1 - y0]
        assert [item["category_id"] - 1 for item in first] == scene.labels
        with Image.open(folder / split / "000001.jpg") as image:
            stored = np.asarray(image, dtype=float)
        assert np.abs(stored - scene.image).mean() < 5  # JPEG
    assert sorted(path.name for path in digits_root.iterdir() if path.is_dir()) == ["digits"]


def test_made_once_however_many_want_it(tmp_path):
    folder = tmp_path / "new" / "digits"
    with ThreadPoolExecutor(3) as racers:
        for racer in [racers.submit(make_digits, folder, 2, 1) for _ in range(3)]:
            racer.result()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.jpg")}
    assert len(before) == 3
    make_digits(folder, 50, 50)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.jpg")} == before
    assert not folder.with_name("digits.partial").exists()


def test_left_over_of_a_killed_run_is_replaced(tmp_path):
    partial = tmp_path / "digits.partial"
    partial.mkdir()
    (partial / "junk").touch()
    make_digits(tmp_path / "digits", 1, 1)
    assert not partial.exists() and not (tmp_path / "digits" / "junk").exists()


def test_another_recipe_is_refused(tmp_path):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "digits.json").write_text('{"version": 0}')
    with pytest.raises(UserError, match=r"digits.*remove that folder"):
        make_digits(tmp_path / "digits", 1, 1)


def test_registered_and_loaded(tiny_digits):
    register_digits()
    register_digits()
    dataset = DatasetCatalog.get("digits_val")
    assert len(dataset) == 3
    assert {item["category_id"] for entry in dataset for item in entry["annotations"]} <= set(
        range(10)
    )
    metadata = MetadataCatalog.get("digits_val")
    assert metadata.thing_classes == list("0123456789")
    assert metadata.evaluator_type == "coco"


def test_the_environment_is_read_when_used(tiny_digits, tmp_path, monkeypatch):
    register_digits()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert digits_folder() == tmp_path / "digits"
    register_digits()
    assert MetadataCatalog.get("digits_train").image_root == str(tmp_path / "digits" / "train")
    assert not digits_folder().exists()  # nothing is made before it is needed
