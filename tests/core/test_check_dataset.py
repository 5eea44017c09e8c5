"""Each mistake in a dataset is found, named and, where it can be, repaired."""

import copy
import importlib.util
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from clsloc.cli import run
from clsloc.data.check import category_table, check_coco, check_images, check_same_classes
from clsloc.data.fix import fix_coco
from detectron2.data.datasets import load_coco_json

TOOL = Path(__file__).resolve().parents[2] / "tools" / "check_dataset.py"


def content() -> dict:
    """Two images of 40 x 30, three boxes, categories 3 and 4."""
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 30} for i in (1, 2)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 10, 10]},
            {"id": 2, "image_id": 1, "category_id": 4, "bbox": [5, 5, 10, 10]},
            {"id": 3, "image_id": 2, "category_id": 3, "bbox": [30, 20, 10, 10]},
        ],
        "categories": [{"id": 4, "name": "dog"}, {"id": 3, "name": "cat"}],
    }


def good() -> dict:
    result = content()
    for item in result["annotations"]:
        item |= {"area": 100, "iscrowd": 0}
    return result


def kinds(findings) -> dict[str, int]:
    return {finding.kind: finding.count for finding in findings}


@pytest.fixture
def folder(tmp_path):
    for i in (1, 2):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{i}.jpg")
    return tmp_path


def test_a_proper_dataset_has_no_findings(folder):
    assert check_coco(good(), str(folder)) == []
    assert check_images(good(), str(folder)) == []


def test_the_category_table_counts_by_rising_id():
    assert category_table(good()["categories"]) == [(3, "cat", 0), (4, "dog", 1)]


def change(**changes):
    """A change of the first annotation."""
    return lambda c: c["annotations"][0].update(changes)


@pytest.mark.parametrize(
    ("mistake", "expected"),
    [
        (lambda c: c.pop("categories"), {"missing_top_keys": 1}),
        (lambda c: c["categories"].clear(), {"no_categories": 0, "unknown_category_id": 3}),
        (lambda c: c["categories"][0].update(id=9), {"category_id_gaps": 5,
                                                     "unknown_category_id": 1}),
        (lambda c: c["categories"][0].update(name="cat"), {"duplicate_category_names": 1}),
        (lambda c: c["categories"][0].pop("name"), {"nameless_categories": 1}),
        (lambda c: [k.update(name=None) for k in c["categories"]], {"nameless_categories": 2}),
        (lambda c: [k.update(name=["a"]) for k in c["categories"]], {"nameless_categories": 2}),
        (lambda c: c["images"][0].pop("width"), {"missing_images_width": 1}),
        (lambda c: c["images"][0].update(width=None), {"missing_images_width": 1}),
        (lambda c: c["images"][0].update(height=0), {"missing_images_height": 1}),
        (lambda c: c["images"][0].update(height="30"), {"missing_images_height": 1}),
        (lambda c: c["images"][1].update(file_name=None), {"missing_images_file_name": 1}),
        (lambda c: c["images"].append({"id": 7, "file_name": "1.jpg", "width": 4, "height": 3}),
         {"empty_images": 1}),
        (lambda c: c["annotations"][0].pop("iscrowd"), {"missing_annotations_iscrowd": 1}),
        (change(iscrowd=None), {"missing_annotations_iscrowd": 1}),
        (change(area=None), {"missing_annotations_area": 1}),
        (change(category_id=None), {"missing_annotations_category_id": 1}),
        (change(image_id=None), {"missing_annotations_image_id": 1}),
        (lambda c: [a.update(id=None) for a in c["annotations"]], {"missing_annotations_id": 3}),
        (change(ignore=1), {"ignored_annotations": 1}),
        (change(ignore=True), {"ignored_annotations": 1}),
        (change(ignore=None), {"ignored_annotations": 1}),
        (change(ignore=0), {}),
        (change(iscrowd="0"), {"odd_iscrowd": 1}),
        (change(iscrowd=2), {"odd_iscrowd": 1}),
        (change(iscrowd=True), {}),
        (lambda c: [a.update(iscrowd=1) for a in c["annotations"]], {"only_crowds": 3}),
        (change(id=0), {"annotation_id_zero": 1}),
        (change(id=2), {"duplicate_annotations_ids": 1}),
        (change(image_id=8), {"unknown_image_id": 1}),
        (change(category_id=8), {"unknown_category_id": 1}),
        (change(bbox=[1, 1, 0, 5]), {"degenerate_boxes": 1}),
        (change(bbox=[1, 1, float("nan"), 5]), {"broken_boxes": 1}),
        (change(bbox=[1, 1, 10**400, 5]), {"broken_boxes": 1}),
        (lambda c: c["images"][0].update(width=float("inf")), {"missing_images_width": 1}),
        (change(bbox=[1, 1, 5]), {"broken_boxes": 1}),
        (change(bbox=[35, 1, 10, 5]), {"outside_boxes": 1}),
        (change(bbox=[35, 1, 6, 5]), {}),  # one pixel over the edge is rounding
        (change(bbox=[5, 5, 10, 10], category_id=4), {"duplicate_boxes": 1}),
    ],
)  # fmt: skip
def test_each_mistake_is_found_alone(folder, mistake, expected):
    wrong = good()
    mistake(wrong)
    assert kinds(check_coco(wrong, str(folder))) == expected


@pytest.mark.parametrize(("key", "taken"), [("area", "width times height"), ("iscrowd", "as 0")])
def test_what_evaluation_can_do_without_is_a_warning(folder, key, taken):
    wrong = good()
    for item in wrong["annotations"][:2]:
        del item[key]
    (finding,) = check_coco(wrong, str(folder))
    assert (finding.severity, finding.count) == ("warning", 2)
    assert f"2 of 3 annotations have no '{key}', which is taken" in finding.sentence
    assert taken in finding.sentence


@pytest.mark.parametrize(
    ("key", "table"),
    [("x", [(3, "cat", 0), ("x", "dog", 1)]), (None, [(3, "cat", 0)])],
)
def test_category_ids_that_cannot_be_sorted(key, table):
    wrong = good()
    wrong["categories"][0]["id"] = key
    wrong["annotations"][1]["category_id"] = key or 3
    (finding,) = check_coco(wrong)
    assert (finding.kind, finding.severity, finding.count) == ("unordered_category_ids", "error", 1)
    assert repr(key) in finding.sentence
    assert category_table(wrong["categories"]) == table


def test_category_ids_that_are_text_are_noted():
    odd = good()
    for part, key in (("categories", "id"), ("annotations", "category_id")):
        for item in odd[part]:
            item[key] = str(item[key])
    (finding,) = check_coco(odd)
    assert (finding.kind, finding.severity, finding.count) == ("text_category_ids", "note", 2)
    assert "sorts them as text" in finding.sentence


def first(part, **changes):
    """A change of the first entry of ``part``, None: a text instead of it."""
    return lambda c: c[part][0].update(changes) if changes else c[part].__setitem__(0, "a.png")


MALFORMED = [
    (first("images"), "images[0] is no object: 'a.png'"),
    (first("annotations"), "annotations[0] is no object: 'a.png'"),
    (first("categories"), "categories[0] is no object: 'a.png'"),
    (first("images", file_name=5), "images[0] has the file_name 5"),
    (first("images", file_name=["a.png"]), "images[0] has the file_name ['a.png']"),
    (first("images", id=[1]), "images[0] has the id [1]"),
    (first("annotations", id={"a": 1}), "annotations[0] has the id {'a': 1}"),
    (first("annotations", image_id=[1]), "annotations[0] has the image_id [1]"),
    (first("annotations", category_id=[3]), "annotations[0] has the category_id [3]"),
    (first("annotations", category_id=2.5), "annotations[0] has the category_id 2.5"),
    (first("annotations", category_id=True), "annotations[0] has the category_id True"),
    (first("categories", id=[4]), "categories[0] has the id [4]"),
    (first("categories", id=float("nan")), "categories[0] has the id nan"),
]


@pytest.mark.parametrize(("mistake", "text"), MALFORMED)
def test_malformed_entries_are_named_and_end_the_checks(folder, mistake, text):
    wrong = good()
    mistake(wrong)
    (finding,) = check_coco(wrong, str(folder))
    assert (finding.kind, finding.severity, finding.count) == ("malformed_entries", "error", 1)
    assert f"such as {text};" in finding.sentence


def test_malformed_entries_are_counted():
    wrong = good()
    wrong["images"] = ["a.png"] * 9
    wrong["annotations"][1]["image_id"] = wrong["annotations"][1]["id"] = []
    assert kinds(check_coco(wrong)) == {"malformed_entries": 10}


@pytest.mark.parametrize(("mistake", "text"), MALFORMED)
def test_the_command_survives_malformed_entries(folder, capsys, mistake, text):
    wrong = good()
    mistake(wrong)
    (folder / "a.json").write_text(json.dumps(wrong))
    (folder / "b.json").write_text(json.dumps(good()))
    args = ("--coco", "ok", folder / "b.json", folder, "--coco", "bad", folder / "a.json", folder)
    assert tool()(*args, "--open-images") == 1
    assert text.casefold() in capsys.readouterr().out.casefold()
    assert tool()(*args, "--fix", folder / "fixed") == 2
    error = capsys.readouterr().err
    assert "'bad' cannot be repaired" in error and error.count("\n") == 1
    assert not (folder / "fixed").exists()  # not the sound part alone


@pytest.mark.parametrize("categories", [None, 5, ["a", "b"], [{"id": [4], "name": "dog"}]])
def test_malformed_categories_are_neither_compared_nor_listed(categories):
    wrong = good() | {"categories": categories}
    assert check_same_classes("train", good(), "val", wrong) == []
    assert check_same_classes("train", wrong, "val", good()) == []
    if isinstance(categories, list):
        assert category_table(categories) == []


def test_whole_numbers_with_a_point_are_ids(folder):
    odd = good()
    for item in odd["annotations"]:
        item["category_id"] = float(item["category_id"])
    odd["categories"][0]["id"] = 4.0
    assert check_coco(odd, str(folder)) == []
    file = folder / "a.json"
    file.write_text(json.dumps(odd))
    samples = load_coco_json(str(file), str(folder), "odd_ids_of_check_dataset")
    assert [a["category_id"] for s in samples for a in s["annotations"]] == [0, 1, 0]


def test_nameless_categories_are_told_by_their_ids():
    wrong = good()
    del wrong["categories"][0]["name"]
    wrong["categories"][1]["name"] = 7
    (finding,) = check_coco(wrong)
    assert finding.severity == "error" and finding.sentence.startswith("2 of 2 categories")
    assert "those with the ids 4, 3" in finding.sentence


def test_the_command_reports_category_ids_that_cannot_be_sorted(folder, capsys):
    wrong = good()
    wrong["categories"].append({"id": "x", "name": "fox"})
    file = folder / "a.json"
    file.write_text(json.dumps(wrong))
    assert tool()("--coco", "train", file, folder) == 1
    assert "cannot be sorted, as the model does, with 'x' among them" in capsys.readouterr().out


def test_corners_instead_of_sizes_are_recognised():
    wrong = good()
    for item, box in zip(
        wrong["annotations"], ([20, 15, 38, 28], [25, 16, 39, 29], [22, 18, 36, 27])
    ):
        item["bbox"] = box
    assert kinds(check_coco(wrong))["boxes_as_corners"] == 3


def test_missing_and_damaged_and_rotated_images(folder):
    (folder / "2.jpg").unlink()
    (finding,) = check_coco(good(), str(folder))
    assert finding.kind == "missing_files" and "2.jpg" in finding.sentence

    whole = (folder / "1.jpg").read_bytes()
    (folder / "2.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (50, 30)).save(folder / "1.jpg")
    assert kinds(check_images(good(), str(folder))) == {
        "unreadable_images": 1,
        "size_mismatches": 1,
    }

    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright: the stored picture lies on its side
    for i in (1, 2):
        Image.new("RGB", (30, 40)).save(folder / f"{i}.jpg", exif=exif)
    assert kinds(check_images(good(), str(folder))) == {"exif_rotations": 2}


def test_an_image_without_a_size_has_no_other_one(folder):
    unknown = good()
    unknown["images"][0].update(width=None)
    assert check_images(unknown, str(folder)) == []


def test_differing_categories_are_named():
    other = good()
    other["categories"][0]["name"] = "fox"
    (finding,) = check_same_classes("train", good(), "val", other)
    assert "id 4 is 'dog' and 'fox'" in finding.sentence


def test_a_repaired_copy_has_no_errors(folder):
    wrong = content()  # without area and iscrowd
    del wrong["images"][0]["width"]
    extra = [
        {"id": 0, "image_id": 1, "category_id": 3, "bbox": [0, 0, 10, 10]},  # twice
        {"id": 5, "image_id": 1, "category_id": 3, "bbox": [4, 4, 0, 3]},
        {"id": 6, "image_id": 9, "category_id": 3, "bbox": [4, 4, 2, 3]},
        {"id": 7, "image_id": 1, "category_id": 9, "bbox": [4, 4, 2, 3]},
        {"id": 8, "image_id": 1, "category_id": 3, "bbox": [4, 4, 2]},
        {"id": 3, "image_id": 2, "category_id": 3, "bbox": [-5, 20, 10, 20]},
        {"id": 9, "image_id": 2, "category_id": 3, "bbox": [50, 50, 10, 20]},
    ]
    wrong["annotations"] += extra
    before = copy.deepcopy(wrong)
    fixed, done = fix_coco(wrong, str(folder))
    assert wrong == before
    assert check_coco(fixed, str(folder)) == []
    assert [item["id"] for item in fixed["annotations"]] == [1, 2, 3, 4]
    assert fixed["annotations"][3]["bbox"] == [0, 20, 5, 10]
    assert fixed["annotations"][3]["area"] == 50
    assert fixed["images"][0]["width"] == 40
    assert done["boxes without area dropped"] == 1 and done["repeated boxes dropped"] == 1


def test_ids_and_crowds_in_text_are_made_numbers(folder):
    wrong = good()
    first, second, _ = wrong["annotations"]
    category, image = first["category_id"], second["image_id"]
    first.update(category_id=str(category), iscrowd="0")
    second.update(image_id=str(image), iscrowd="1")
    (unknown,) = (f for f in check_coco(wrong, str(folder)) if f.kind == "unknown_category_id")
    assert f"('{category}' is not {category}; --fix makes it so)" in unknown.sentence
    fixed, done = fix_coco(wrong, str(folder))
    assert check_coco(fixed, str(folder)) == []
    first, second, _ = fixed["annotations"]
    assert (first["category_id"], first["iscrowd"]) == (category, 0)
    assert (second["image_id"], second["iscrowd"]) == (image, 1)
    assert done == {"ids written as in the lists": 2, "iscrowd made 0 or 1": 2}


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_pictures_of_more_than_eight_bits_are_told(folder, mode):
    name = "1.tiff"
    Image.new(mode, (40, 30)).save(folder / name)
    wrong = good()
    wrong["images"][0]["file_name"] = name
    (finding,) = check_images(wrong, str(folder))
    assert (finding.kind, finding.severity, finding.count) == ("deep_images", "warning", 1)
    assert name in finding.sentence and "convert them to 8 bits" in finding.sentence


def test_values_that_are_null_are_filled_in_as_missing_ones(folder):
    wrong = good()
    first, second, third = wrong["annotations"]
    first.update(area=None, iscrowd=None)
    second.update(id=None, image_id=None)
    third["category_id"] = None
    wrong["images"][0].update(file_name=None, width=None)
    wrong["images"].append(good()["images"][0] | {"id": None})
    wrong["categories"].append({"name": "fox"})
    fixed, done = fix_coco(wrong, str(folder))
    assert fixed["annotations"] == good()["annotations"][:1]
    assert done == {
        "iscrowd set to 0": 1,
        "areas computed from the boxes": 1,
        "annotations of an unknown image or category dropped": 2,
    }


def test_annotations_to_ignore_become_crowds(folder):
    wrong = good()
    for item, mark in zip(wrong["annotations"], (1, 0, None)):
        item["ignore"] = mark
    (finding,) = check_coco(wrong)
    assert finding.severity == "error" and finding.count == 2
    assert "iscrowd 1" in finding.sentence and "--fix" in finding.sentence
    fixed, done = fix_coco(wrong, str(folder))
    assert check_coco(fixed, str(folder)) == []
    assert [item.get("iscrowd") for item in fixed["annotations"]] == [1, 0, 0]
    assert done == {"ignored annotations made crowds": 1, "empty marks 'ignore' removed": 1}
    file = folder / "a.json"
    file.write_text(json.dumps(fixed))
    assert len(load_coco_json(str(file), str(folder))) == 2


@pytest.mark.parametrize("width", [None, 0, "40"])
def test_a_size_that_is_none_is_read_from_the_upright_image(folder, width):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (30, 40)).save(folder / "1.jpg", exif=exif)
    wrong = good()
    wrong["images"][0]["width"] = width
    fixed, done = fix_coco(wrong, str(folder))
    assert fixed == good()
    assert done == {"image sizes read from the files": 1}
    unread, done = fix_coco(wrong)
    assert (unread, done) == (wrong, {})  # no box is dropped


def tool():
    spec = importlib.util.spec_from_file_location("check_dataset", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *args: run(module.main, module.parser(), [str(a) for a in args])


def test_the_command_reports_compares_and_repairs(folder, capsys):
    file = folder / "a.json"
    wrong = content()
    del wrong["images"][0]["width"]
    file.write_text(json.dumps(wrong))
    command = tool()
    report = folder / "report.json"
    args = ("--coco", "train", file, folder)
    assert command(*args, "--fix", folder / "fixed", "--json", report) == 1
    assert "3  cat" in capsys.readouterr().out
    assert json.loads(report.read_text())["train"]["categories"][0]["name"] == "cat"
    fixed = folder / "fixed" / "train.json"
    assert command("--coco", "train", fixed, folder, "--open-images") == 0


@pytest.mark.parametrize("way", ["same", "relative", "link", "other part", "name"])
def test_fix_never_overwrites_an_input(folder, capsys, monkeypatch, way):
    text = json.dumps(content())
    source = folder / "train.json"
    source.write_text(text)
    (folder / "b.json").write_text(text)
    (folder / "deep").mkdir()
    monkeypatch.chdir(folder)
    name, file, into = "train", source, folder
    if way == "relative":
        file, into = "train.json", "deep/.."
    elif way == "link":
        os.link(source, folder / "deep/train.json")
        into = "deep"
    elif way == "name":
        name, into = "../train", "deep"
    args = ["--coco", name, file, folder]
    if way == "other part":
        args = ["--coco", "first", source, folder, "--coco", "train", "b.json", folder]
    assert tool()(*args, "--fix", into) == 2
    error = capsys.readouterr().err
    assert "train.json" in error and "choose another folder for --fix" in error
    assert error.count("\n") == 1
    assert source.read_text() == text
    assert not (folder / "first.json").exists()


def test_fix_writes_no_two_parts_to_one_file(folder, capsys):
    (folder / "a.json").write_text(json.dumps(content()))
    args = [x for n in ("x", "y/../x") for x in ("--coco", n, folder / "a.json", folder)]
    assert tool()(*args, "--fix", folder / "fixed") == 2
    error = capsys.readouterr().err
    assert "'x' and 'y/../x'" in error and "give each its own NAME" in error
    assert not (folder / "fixed").exists()


def test_the_command_survives_missing_lists(folder, capsys):
    (folder / "a.json").write_text(json.dumps(good()))
    (folder / "b.json").write_text(json.dumps(good() | {"categories": None}))
    args = ("--coco", "a", folder / "a.json", folder, "--coco", "b", folder / "b.json", folder)
    assert tool()(*args) == 1
    assert "no list 'categories'" in capsys.readouterr().out
    assert tool()(*args, "--fix", folder / "fixed") == 2
    assert "'b' cannot be repaired" in capsys.readouterr().err
    assert not (folder / "fixed").exists()


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_unusable_input_is_a_sentence_and_status_2(folder, capsys, text):
    file = folder / "a.json"
    if text is not None:
        file.write_text(text)
    assert tool()("--coco", "train", file, folder) == 2
    error = capsys.readouterr().err
    assert "a.json" in error and error.count("\n") == 1
    assert tool()() == 2


def test_a_voc_folder_is_checked_too(folder, capsys):
    for sub in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / "voc" / sub).mkdir(parents=True)
    (folder / "voc/ImageSets/Main/train.txt").write_text("1\n")
    (folder / "1.jpg").rename(folder / "voc/JPEGImages/1.jpg")
    box = "<bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>20</xmax><ymax>10</ymax></bndbox>"
    objects = "".join(f"<object><name>cell</name>{box.format(x)}</object>" for x in (1, 20))
    size = "<size><width>40</width><height>30</height></size>"
    (folder / "voc/Annotations/1.xml").write_text(
        f"<annotation><filename>x.jpg</filename>{size}{objects}</annotation>"
    )
    assert tool()("--voc", "train", folder / "voc", "train") == 1
    assert "1 of 2 boxes have no area" in capsys.readouterr().out


def test_voc_objects_without_a_name_are_reported(folder, capsys):
    for sub in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / "voc" / sub).mkdir(parents=True)
    (folder / "voc/ImageSets/Main/train.txt").write_text("1\n")
    (folder / "1.jpg").rename(folder / "voc/JPEGImages/1.jpg")
    box = "<bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>20</xmax><ymax>10</ymax></bndbox>"
    names = ("<name>cell</name>", "<name/>", "")
    objects = "".join(f"<object>{n}{box.format(x)}</object>" for x, n in enumerate(names, 1))
    size = "<size><width>40</width><height>tall</height></size>"
    (folder / "voc/Annotations/1.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    fixed = folder / "fixed"
    assert tool()("--voc", "train", folder / "voc", "train", "--fix", fixed) == 1
    out = capsys.readouterr().out
    assert "2 of 3 annotations have no 'category_id'" in out
    assert "1 of 1 images have no 'height' above 0" in out
    assert tool()("--coco", "train", fixed / "train.json", folder / "voc/JPEGImages") == 0
    content = json.loads((fixed / "train.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": "1.jpg", "width": 40, "height": 30}]
    assert [item["bbox"] for item in content["annotations"]] == [[0, 0, 20, 10]]


def test_arrays_are_not_needed_for_an_empty_dataset():
    empty = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    assert kinds(check_coco(empty)) == {"no_boxes": 0}
    assert fix_coco(empty)[0]["annotations"] == []
