"""Augmentations of training images beyond Detectron2's."""

import numpy as np
import pytest
import torch
from PIL import Image

from clsloc.data.augmentations import (
    CutOut,
    CutOutTransform,
    ResizeWithinRandomLimit,
    build_train_augmentations,
)
from clsloc.data.crowd_mapper import CrowdMapper
from clsloc.engine import setup_cfg
from clsloc.errors import UserError
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

WHITE = np.full((60, 80, 3), 255, np.uint8)


@pytest.fixture(autouse=True)
def seeded():
    np.random.seed(0)


def augmentations(**keys):
    items = [item for key, value in keys.items() for item in (key.replace("__", "."), value)]
    return build_train_augmentations(setup_cfg(overrides=items))


def test_by_default_they_are_those_of_detectron2():
    kinds = [T.ResizeShortestEdge, T.RandomFlip]
    assert [type(aug) for aug in augmentations()] == kinds
    cropped = augmentations(INPUT__CROP__ENABLED=True)
    assert [type(aug) for aug in cropped] == [T.RandomCrop, *kinds]


def test_all_at_once_in_their_order():
    found = augmentations(
        INPUT__CROP__ENABLED=True,
        CLSLOC__INPUT__CROP_PROB=0.5,
        CLSLOC__INPUT__MAX_SIZE_RANGE=(750, 2100),
        CLSLOC__INPUT__CUTOUT__PROB=0.5,
    )
    kinds = [T.RandomApply, ResizeWithinRandomLimit, T.RandomFlip, T.RandomApply]
    assert [type(aug) for aug in found] == kinds
    assert isinstance(found[0].aug, T.RandomCrop) and found[0].prob == 0.5
    assert isinstance(found[3].aug, CutOut) and found[3].prob == 0.5


def test_the_limit_of_the_longer_edge_is_drawn():
    """Of 60x80, a shorter edge of 90 makes the longer 120, above all limits."""
    resize = ResizeWithinRandomLimit((90,), "choice", (40, 100))
    longer = [resize.get_transform(WHITE).new_w for _ in range(500)]
    assert min(longer) == 40 and max(longer) == 100
    assert np.mean(longer) == pytest.approx(70, abs=3)
    resize = ResizeWithinRandomLimit((30, 45), "range", (200, 300))
    shorter = {resize.get_transform(WHITE).new_h for _ in range(500)}
    assert shorter == set(range(30, 46))


def test_holes_are_black_and_as_many_and_large_as_they_say():
    cut_out = CutOut((2, 4), [(3, 5)])
    holes = [cut_out.get_transform(WHITE).holes for _ in range(500)]
    assert {len(h) for h in holes} == {2, 3, 4}
    holes = np.concatenate(holes)
    assert (holes[:, 2:] - holes[:, :2] == [3, 5]).all()
    assert holes[:, :2].min() == 0 and tuple(holes[:, :2].max(axis=0)) == (59, 79)
    image = CutOutTransform(np.array([[1, 2, 4, 7], [58, 78, 61, 83]])).apply_image(WHITE)
    assert (image[1:4, 2:7] == 0).all() and (image[58:, 78:] == 0).all()
    assert (image == 0).sum() == 3 * (3 * 5 + 2 * 2)
    assert (WHITE == 255).all()


def test_holes_leave_boxes_alone_and_can_be_undone():
    transform = CutOutTransform(np.array([[1, 2, 4, 7]]))
    box = np.array([[1.0, 2, 30, 40]])
    assert transform.apply_box(box).tolist() == box.tolist()
    assert transform.inverse().apply_box(box).tolist() == box.tolist()
    mask = np.ones((60, 80), np.uint8)
    assert transform.apply_segmentation(mask).all()


def test_the_share_of_images_that_are_cropped_and_cut(tmp_path):
    path = str(tmp_path / "white.png")
    Image.fromarray(WHITE).save(path)
    keys = {
        "INPUT.CROP.ENABLED": True,
        "INPUT.CROP.TYPE": "relative",
        "INPUT.CROP.SIZE": [0.75, 0.75],
        "INPUT.MIN_SIZE_TRAIN": (0,),
        "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
        "CLSLOC.INPUT.CROP_PROB": 0.5,
        "CLSLOC.INPUT.CUTOUT.PROB": 0.25,
    }
    cfg = setup_cfg(overrides=[item for pair in keys.items() for item in pair])
    mapper = CrowdMapper(cfg, is_train=True, augmentations=build_train_augmentations(cfg))
    box = {"bbox": [0, 0, 80, 60], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
    sample = {"file_name": path, "height": 60, "width": 80, "annotations": [box]}
    mapped = [mapper(sample) for _ in range(400)]
    sizes = [tuple(m["image"].shape[1:]) for m in mapped]
    assert set(sizes) == {(60, 80), (45, 60)}
    assert sizes.count((45, 60)) / 400 == pytest.approx(0.5, abs=0.08)
    assert np.mean([bool((m["image"] == 0).any()) for m in mapped]) == pytest.approx(0.25, abs=0.07)
    for m, (height, width) in zip(mapped, sizes, strict=True):
        expected = torch.tensor([[0.0, 0, width, height]])
        assert torch.equal(m["instances"].gt_boxes.tensor, expected)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("CROP_PROB", 1.5, "CROP_PROB is a probability, got 1.5"),
        ("CUTOUT.PROB", -0.5, "CUTOUT.PROB is a probability"),
        ("CUTOUT.HOLES", (5, 3), "two rising numbers"),
        ("CUTOUT.SIZES", (), "pairs of a height and a width"),
        ("CUTOUT.SIZES", ((0, 4),), "pairs of a height and a width"),
        ("MAX_SIZE_RANGE", (100,), "empty or two rising lengths"),
    ],
)
def test_values_that_cannot_be_are_refused(key, value, message):
    with pytest.raises(UserError, match=message):
        augmentations(**{f"CLSLOC__INPUT__{key.replace('.', '__')}": value})
