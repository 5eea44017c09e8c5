"""Formats of datasets, reading of images, annotations and the mapper, on either Detectron2."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, detection_utils
from detectron2.data import transforms as T
from detectron2.data.datasets import (
    load_coco_json,
    load_voc_instances,
    register_coco_instances,
    register_pascal_voc,
)
from detectron2.data.datasets.coco import convert_to_coco_dict, convert_to_coco_json
from detectron2.structures import BoxMode


@pytest.fixture
def name():
    """A name for a dataset, forgotten after the test."""
    name = "runtime_test"
    yield name
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


# Formats


def coco_dict() -> dict:
    def annotation(id_, image, category, **more):
        return {"id": id_, "image_id": image, "category_id": category, "bbox": [1, 2, 3, 4], **more}

    return {
        "categories": [{"id": 9, "name": "nine"}, {"id": 4, "name": "four"}],
        "images": [
            {"id": 5, "file_name": "b.jpg", "height": 10, "width": 20},
            {"id": 2, "file_name": "a.jpg", "height": 30, "width": 40},
        ],
        "annotations": [
            annotation(1, 5, 9, iscrowd=1),
            annotation(2, 5, 4, segmentation=[[0, 0, 4, 0, 4, 4], [1, 1]]),
            annotation(3, 5, 4, segmentation=[[1, 1]]),  # no valid polygon
        ],
    }


def write_json(path: Path, content: dict) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def test_load_coco_json(tmp_path: Path, name):
    path = write_json(tmp_path / "a.json", coco_dict())
    empty, sample = load_coco_json(path, "root", name)
    assert empty == {
        "file_name": "root/a.jpg",
        "height": 30,
        "width": 40,
        "image_id": 2,
        "annotations": [],
    }
    crowd, polygon = sample["annotations"]
    assert crowd == {
        "iscrowd": 1,
        "bbox": [1, 2, 3, 4],
        "category_id": 1,
        "bbox_mode": BoxMode.XYWH_ABS,
    }
    assert polygon["category_id"] == 0
    assert polygon["segmentation"] == [[0, 0, 4, 0, 4, 4]]
    meta = MetadataCatalog.get(name)
    assert meta.thing_classes == ["four", "nine"]
    assert meta.thing_dataset_id_to_contiguous_id == {4: 0, 9: 1}
    unmapped = load_coco_json(path, "root")[1]["annotations"]
    assert [ann["category_id"] for ann in unmapped] == [9, 4]


@pytest.mark.parametrize(
    "change, error",
    [
        ({"category_id": 7}, KeyError),
        ({"bbox": []}, ValueError),
        ({"ignore": 1}, AssertionError),
        ({"id": 2}, AssertionError),
    ],
)
def test_load_coco_json_refuses(tmp_path: Path, name, change, error):
    content = coco_dict()
    content["annotations"][0].update(change)
    with pytest.raises(error):
        load_coco_json(write_json(tmp_path / "a.json", content), "root", name)


def test_register_coco_instances_twice(tmp_path: Path, name):
    path = write_json(tmp_path / "a.json", coco_dict())
    for _ in range(2):
        register_coco_instances(name, {"more": 1}, path, "root")
    assert len(DatasetCatalog.get(name)) == 2
    meta = MetadataCatalog.get(name)
    assert (meta.json_file, meta.evaluator_type, meta.more) == (path, "coco", 1)


def test_conversion_to_coco_by_hand(name, tmp_path: Path):
    box = {"bbox": [1, 2, 4, 8], "bbox_mode": BoxMode.XYXY_ABS}
    sample = {
        "file_name": "a.jpg",
        "image_id": "x",
        "height": 10,
        "width": 20,
        "annotations": [
            {**box, "category_id": 1},
            {**box, "category_id": 0, "iscrowd": 1, "segmentation": [[0, 0, 4, 0, 4, 3]]},
        ],
    }
    DatasetCatalog.register(name, lambda: [sample])
    MetadataCatalog.get(name).set(
        thing_classes=["a", "b"], thing_dataset_id_to_contiguous_id={5: 0, 7: 1}
    )
    converted = convert_to_coco_dict(name)
    assert converted["images"] == [{"id": "x", "width": 20, "height": 10, "file_name": "a.jpg"}]
    assert converted["categories"] == [{"id": 5, "name": "a"}, {"id": 7, "name": "b"}]
    plain, crowd = converted["annotations"]
    assert plain == {
        "id": 1,
        "image_id": "x",
        "bbox": [1, 2, 3, 6],
        "area": 18,
        "iscrowd": 0,
        "category_id": 7,
    }
    assert (crowd["area"], crowd["iscrowd"], crowd["category_id"]) == (6, 1, 5)

    path = tmp_path / "sub" / "a.json"
    convert_to_coco_json(name, str(path))
    assert json.loads(path.read_text())["annotations"][0]["bbox"] == [1, 2, 3, 6]
    path.write_text("kept")
    convert_to_coco_json(name, str(path))
    assert path.read_text() == "kept"
    convert_to_coco_json(name, str(path), allow_cached=False)
    assert path.read_text() != "kept"


def write_voc(root: Path) -> str:
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    corners = "<xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax>"
    objects = f"<object><name>cat</name><bndbox>{corners}</bndbox></object>"
    for image_id, content in (("one", objects), ("two", "")):
        xml = f"<size><width>20</width><height>10</height></size>{content}"
        (root / f"Annotations/{image_id}.xml").write_text(f"<annotation>{xml}</annotation>")
    (root / "ImageSets/Main/val.txt").write_text("one\ntwo\n")
    return str(root)


def test_load_voc_instances_by_hand(tmp_path: Path, name):
    root = write_voc(tmp_path / "voc")
    one, two = load_voc_instances(root, "val", ["dog", "cat"])
    assert one["file_name"] == f"{root}/JPEGImages/one.jpg"
    assert (one["image_id"], one["height"], one["width"]) == ("one", 10, 20)
    assert one["annotations"] == [
        {"category_id": 1, "bbox": [0, 1, 9, 8], "bbox_mode": BoxMode.XYXY_ABS}
    ]
    assert two["annotations"] == []
    with pytest.raises(ValueError):
        load_voc_instances(root, "val", ["dog"])
    register_pascal_voc(name, root, "val", 2007, ["dog", "cat"])
    assert len(DatasetCatalog.get(name)) == 2
    meta = MetadataCatalog.get(name)
    assert (meta.thing_classes, meta.year, meta.split) == (["dog", "cat"], 2007, "val")


# Images and annotations


@pytest.fixture
def image_file(tmp_path: Path) -> str:
    """An image of 4x6: red, but blue in the left half."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[..., 0] = 200
    pixels[:, :3] = (0, 0, 100)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    return str(path)


def test_read_image_formats(image_file):
    assert detection_utils.read_image(image_file, "RGB")[0, 0].tolist() == [0, 0, 100]
    assert detection_utils.read_image(image_file, "BGR")[0, 0].tolist() == [100, 0, 0]
    assert detection_utils.read_image(image_file, "L").shape == (4, 6, 1)
    yuv = detection_utils.read_image(image_file, "YUV-BT.601")
    np.testing.assert_allclose(yuv[0, 5, 0], 0.299 * 200 / 255)
    rgb = detection_utils.convert_image_to_rgb(yuv, "YUV-BT.601")
    np.testing.assert_allclose(rgb[0, 5], [200, 0, 0], atol=0.05)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_image_turns_it_upright(tmp_path: Path, orientation):
    upright = np.random.randint(0, 255, (4, 6, 3), np.uint8)
    # What a camera stores for each orientation, from the definition in the EXIF standard.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    np.testing.assert_array_equal(detection_utils.read_image(str(path), "RGB"), upright)


def test_check_image_size():
    image = np.zeros((4, 6, 3))
    sample = {}
    detection_utils.check_image_size(sample, image)
    assert sample == {"width": 6, "height": 4}
    with pytest.raises(detection_utils.SizeMismatchError, match=r"a\.jpg"):
        detection_utils.check_image_size({"width": 4, "height": 6, "file_name": "a.jpg"}, image)


def annotation(box: list[float], **more) -> dict:
    return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2, **more}


def test_transform_instance_annotations_by_hand():
    ann = annotation([1.0, 2.0, 3.0, 9.0], segmentation=[[1.0, 2.0, 4.0, 2.0, 4.0, 5.0]])
    result = detection_utils.transform_instance_annotations(ann, [T.HFlipTransform(10)], (8, 10))
    np.testing.assert_allclose(result["bbox"], [6, 2, 9, 8])  # clipped to the height
    assert result["bbox_mode"] == BoxMode.XYXY_ABS
    np.testing.assert_allclose(result["segmentation"][0], [9, 2, 6, 2, 6, 5])


def test_annotations_to_instances():
    instances = detection_utils.annotations_to_instances(
        [annotation([1, 2, 3, 4]), annotation([0, 0, 0, 5])], (8, 10)
    )
    assert instances.image_size == (8, 10)
    np.testing.assert_allclose(instances.gt_boxes.tensor, [[1, 2, 4, 6], [0, 0, 0, 5]])
    assert instances.gt_classes.tolist() == [2, 2] and instances.gt_classes.dtype == torch.int64
    assert len(detection_utils.filter_empty_instances(instances)) == 1
    kept, mask = detection_utils.filter_empty_instances(instances, return_mask=True)
    assert mask.tolist() == [True, False] and len(kept) == 1
    empty = detection_utils.annotations_to_instances([], (8, 10))
    assert empty.gt_boxes.tensor.shape == (0, 4) and len(empty.gt_classes) == 0


def test_transform_proposals_by_hand():
    sample = {
        "proposal_boxes": np.array([[0, 0, 5, 5], [9, 1, 9.5, 6], [2, 2, 4, 4.0]]),
        "proposal_objectness_logits": np.array([3, 2, 1]),
        "proposal_bbox_mode": BoxMode.XYXY_ABS,
    }
    tfm = T.TransformList([T.HFlipTransform(10)])
    detection_utils.transform_proposals(sample, (8, 10), tfm, proposal_topk=2, min_box_size=1)
    assert list(sample) == ["proposals"]
    proposals = sample["proposals"]
    np.testing.assert_allclose(proposals.proposal_boxes.tensor, [[5, 0, 10, 5], [6, 2, 8, 4]])
    assert proposals.objectness_logits.tolist() == [3, 1]


def test_crop_contains_the_center_of_the_instance():
    for _ in range(50):
        crop = detection_utils.gen_crop_transform_with_instance(
            (10, 10), (40, 40), annotation([20, 5, 10, 10])
        )
        assert crop.x0 <= 25 <= crop.x0 + 10 <= 40
        assert crop.y0 <= 10 <= crop.y0 + 10
    with pytest.raises(AssertionError):
        detection_utils.gen_crop_transform_with_instance(
            (10, 10), (20, 20), annotation([30, 30, 4, 4])
        )


def test_keypoints_are_mirrored(name):
    MetadataCatalog.get(name).set(
        keypoint_names=["nose", "left", "right"], keypoint_flip_map=[("left", "right")]
    )
    order = detection_utils.create_keypoint_hflip_indices([name])
    assert order == [0, 2, 1]
    ann = annotation([0, 0, 9, 9], keypoints=[1, 1, 2, 3, 1, 2, 20, 1, 2])
    result = detection_utils.transform_instance_annotations(
        ann, [T.HFlipTransform(10)], (10, 10), keypoint_hflip_indices=order
    )
    np.testing.assert_allclose(result["keypoints"], [[9, 1, 2], [0, 0, 0], [7, 1, 2]])


# The mapper


def sample_of(image_file: str, **more) -> dict:
    anns = [annotation([0, 1, 2, 2]), annotation([0, 0, 6, 4], iscrowd=1)]
    anns[0]["segmentation"] = [[0, 1, 2, 1, 2, 3]]
    anns[0]["keypoints"] = [1, 1, 2]
    return {"file_name": image_file, "image_id": 3, "annotations": anns, **more}


def test_mapper_in_training(image_file):
    mapper = DatasetMapper(
        True, augmentations=[T.HFlipTransform(6), T.Resize((8, 12))], image_format="BGR"
    )
    sample = sample_of(image_file)
    result = mapper(sample)
    assert result["image"].shape == (3, 8, 12) and result["image"].dtype == torch.uint8
    assert result["image"][:, 0, 0].tolist() == [0, 0, 200]  # red comes from the right
    assert (result["image_id"], result["width"], result["height"]) == (3, 6, 4)
    instances = result["instances"]
    np.testing.assert_allclose(instances.gt_boxes.tensor, [[8, 2, 12, 6]])  # without the crowd
    assert set(instances.get_fields()) == {"gt_boxes", "gt_classes"}
    assert "annotations" not in result and "annotations" in sample  # the sample is untouched
    assert "segmentation" in sample["annotations"][0]


def test_mapper_at_inference(image_file):
    mapper = DatasetMapper(False, augmentations=[], image_format="RGB")
    result = mapper(sample_of(image_file))
    assert result["image"][:, 0, 0].tolist() == [0, 0, 100]
    assert "instances" not in result and "annotations" not in result


def test_mapper_of_an_image_without_objects(image_file):
    mapper = DatasetMapper(True, augmentations=[], image_format="RGB")
    result = mapper(sample_of(image_file) | {"annotations": []})
    assert result["instances"].gt_boxes.tensor.shape == (0, 4)


def test_mapper_refuses_a_wrong_size(image_file):
    mapper = DatasetMapper(False, augmentations=[], image_format="RGB")
    with pytest.raises(detection_utils.SizeMismatchError):
        mapper(sample_of(image_file, width=4, height=6))


def test_mapper_from_a_config(image_file):
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN = (8,)
    cfg.INPUT.MIN_SIZE_TEST = 12
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [2, 3]
    training, inference = (DatasetMapper(cfg, is_train) for is_train in (True, False))
    assert training(sample_of(image_file))["image"].shape == (3, 8, 12)
    assert inference(sample_of(image_file))["image"].shape == (3, 12, 18)
    assert [type(aug).__name__ for aug in training.augmentations.augs] == [
        "RandomCrop",
        "ResizeShortestEdge",
        "RandomFlip",
    ]
