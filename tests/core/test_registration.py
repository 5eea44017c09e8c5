"""Datasets from lists: COCO JSON, VOC folders, repeated and in other processes."""

import pytest
from PIL import Image

from clsloc.data import register_datasets
from clsloc.errors import UserError
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode

pytestmark = pytest.mark.usefixtures("forget_datasets")


def test_coco_with_gaps_in_the_ids(coco_folder):
    json_file, root = coco_folder([(7, (10, 20, 30, 40))], [(3, (1, 2, 3, 4))], [])
    register_datasets([["pets", "coco", json_file, root]])
    first, second, third = DatasetCatalog.get("pets")
    assert first["annotations"][0]["category_id"] == 1
    assert first["annotations"][0]["bbox"] == [10, 20, 30, 40]
    assert second["annotations"][0]["category_id"] == 0
    assert third["annotations"] == []
    metadata = MetadataCatalog.get("pets")
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}


def test_voc_boxes_by_hand(voc_folder, caplog):
    directory = voc_folder(
        {"train": ["a"]},
        {"a": [("dog", (1, 1, 1, 1), 0), ("dog", (11, 21, 50, 80), 0), ("cat", (0, 1, 9, 9), 1)]},
    )
    register_datasets([["pets", "voc", directory, "train"]])
    with caplog.at_level("WARNING", logger="clsloc"):
        (image,) = DatasetCatalog.get("pets")
    assert "zero area" in caplog.text and "a.xml" in caplog.text
    assert (image["image_id"], image["height"], image["width"]) == ("a", 150, 200)
    dog, cat = image["annotations"]
    assert dog == {
        "bbox": [10, 20, 50, 80],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 1,
        "iscrowd": 0,
    }
    assert cat["bbox"] == [0, 0, 9, 9]  # not -1
    assert cat["iscrowd"] == 1  # difficult


def test_voc_classes_do_not_depend_on_the_split(voc_folder):
    objects = {
        "a": [("zebra", (1, 1, 9, 9), 0)],
        "b": [("ant", (1, 1, 9, 9), 0), ("zebra", (1, 1, 5, 5), 0)],
    }
    directory = voc_folder({"train": ["a"], "val": ["b"]}, objects)
    register_datasets([["t", "voc", directory, "train"], ["v", "voc", directory, "val"]])
    (image,) = DatasetCatalog.get("t")
    DatasetCatalog.get("v")
    assert MetadataCatalog.get("t").thing_classes == ["ant", "zebra"]
    assert MetadataCatalog.get("v").thing_classes == ["ant", "zebra"]
    assert image["annotations"][0]["category_id"] == 1


def test_voc_classes_in_a_given_order(voc_folder):
    directory = voc_folder({"train": ["a"]}, {"a": [("zebra", (1, 1, 9, 9), 0)]})
    register_datasets([["t", "voc", directory, "train", ["zebra", "ant"]]])
    (image,) = DatasetCatalog.get("t")
    assert image["annotations"][0]["category_id"] == 0
    register_datasets([["few", "voc", directory, "train", ["ant"]]])
    with pytest.raises(UserError, match="class 'zebra', which is none of"):
        DatasetCatalog.get("few")


def test_voc_size_from_the_image_where_the_annotation_has_none(voc_folder, tmp_path):
    directory = voc_folder({"train": ["a"]}, {"a": [("dog", (1, 1, 9, 9), 0)]})
    file = tmp_path / "voc" / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<width>200</width>", "<width>0</width>"))
    register_datasets([["pets", "voc", directory, "train"]])
    (image,) = DatasetCatalog.get("pets")
    assert (image["height"], image["width"]) == (150, 200)


@pytest.mark.parametrize("width", ["0", "wide", ""])
def test_voc_size_of_an_image_that_is_stored_on_its_side(voc_folder, tmp_path, width):
    directory = voc_folder({"train": ["a"]}, {"a": [("dog", (1, 1, 9, 9), 0)]})
    file = tmp_path / "voc" / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<width>200<", f"<width>{width}<"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 150)).save(tmp_path / "voc/JPEGImages/a.jpg", exif=exif)
    register_datasets([["pets", "voc", directory, "train"]])
    (image,) = DatasetCatalog.get("pets")
    assert (image["height"], image["width"]) == (200, 150)
    assert read_image(image["file_name"]).shape[:2] == (200, 150)

    (tmp_path / "voc/JPEGImages/a.jpg").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"a\.jpg' cannot be read .*; replace it or drop it"):
        DatasetCatalog.get("pets")


def test_a_voc_object_without_a_name_is_a_sentence(voc_folder, tmp_path):
    directory = voc_folder(
        {"train": ["a"]}, {"a": [("", (1, 1, 9, 9), 0), ("dog", (1, 1, 9, 9), 0)]}
    )
    register_datasets([["pets", "voc", directory, "train"]])
    with pytest.raises(
        UserError, match=r"a\.xml' has an object of class '', which is none of \['dog"
    ):
        DatasetCatalog.get("pets")


@pytest.mark.parametrize("encoding", ["gb2312", "none"])
def test_a_voc_annotation_in_another_encoding_is_a_sentence(voc_folder, tmp_path, encoding):
    directory = voc_folder({"train": ["a"]}, {"a": []})
    file = tmp_path / "voc" / "Annotations" / "a.xml"
    file.write_text(f'<?xml version="1.0" encoding="{encoding}"?>{file.read_text()}')
    register_datasets([["pets", "voc", directory, "train"]])
    with pytest.raises(UserError, match=r"a\.xml' cannot be read: .* encoding"):
        DatasetCatalog.get("pets")


def test_the_classes_given_for_a_voc_folder_belong_to_it(voc_folder):
    source = ["v", "voc", voc_folder({"t": ["a"]}, {"a": [("ant", (1, 1, 9, 9), 0)]}), "t"]
    register_datasets([[*source, ["zebra", "ant"]], [*source, ("zebra", "ant")]])
    with pytest.raises(UserError, match=r"given_classes is \['zebra', 'ant'\], not \['ant'\]"):
        register_datasets([[*source, ["ant"]]])
    with pytest.raises(UserError, match=r"given_classes is \['zebra', 'ant'\], not None"):
        register_datasets([source])
    source[0] = "w"
    register_datasets([source, [*source, []]])  # both: all classes of the folder
    DatasetCatalog.get("w")
    with pytest.raises(UserError, match=r"given_classes is None, not \['ant'\]"):
        register_datasets([[*source, ["ant"]]])


def test_twice_is_once(coco_folder, voc_folder):
    json_file, root = coco_folder([])
    specs = [["c", "coco", json_file, root], ["v", "voc", voc_folder({"t": []}, {}), "t"]]
    register_datasets(specs)
    register_datasets(specs)
    assert len(DatasetCatalog.get("c")) == 1
    with pytest.raises(UserError, match=r"'c' is taken: its json_file is .*; choose another name"):
        register_datasets([["c", "coco", "other.json", root]])
    with pytest.raises(UserError, match="'v' is taken: its split is 't', not 'val'"):
        register_datasets([[*specs[1][:3], "val"]])


def test_official_names_stay(voc_folder):
    with pytest.raises(UserError, match="'voc_2007_trainval' is taken"):
        register_datasets([["voc_2007_trainval", "voc", "somewhere", "trainval"]])
    assert MetadataCatalog.get("voc_2007_trainval").evaluator_type == "pascal_voc"


@pytest.mark.parametrize(
    "spec", [["x", "yolo", "a", "b"], ["x", "coco", "a"], [1, "coco", "a", "b"], "coco", ["x"]]
)
def test_another_form_is_refused(spec):
    with pytest.raises(UserError, match="cannot be registered; write"):
        register_datasets([spec])


def test_missing_files_are_named_when_loaded(coco_folder, voc_folder):
    json_file, root = coco_folder([])
    directory = voc_folder({"train": ["gone"]}, {})
    cases = {
        "no_json": (["coco", "gone.json", root], "'gone.json'"),
        "no_images": (["coco", json_file, "gone"], "'gone'"),
        "no_split": (["voc", directory, "val"], "val.txt"),
        "no_folder": (["voc", "gone", "val"], "Annotations"),
        "no_annotation": (["voc", directory, "train"], "gone.xml"),
    }
    for name, (source, message) in cases.items():
        register_datasets([[name, *source]])
        with pytest.raises(UserError, match=message):
            DatasetCatalog.get(name)
