"""Square crops with a centre inside, colours, and the samples that come out of both."""

import numpy as np
import pytest
from PIL import Image

from clsloc.data.augmentations import build_train_augmentations
from clsloc.data.color import ColorDistortion, ColorTransform
from clsloc.data.square_crop import CentreMapper, RandomSquareCrop
from clsloc.data.train_data import _default_mapper
from clsloc.engine import setup_cfg
from clsloc.errors import UserError
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

IMAGE = np.arange(60 * 80 * 3, dtype=np.uint8).reshape(60, 80, 3)


@pytest.fixture(autouse=True)
def seeded():
    np.random.seed(0)


def config(**keys):
    items = [item for key, value in keys.items() for item in (key.replace("__", "."), value)]
    return setup_cfg(overrides=items)


def crops(boxes, shares=(0.3, 0.5, 1.0), count=300):
    boxes = None if boxes is None else np.array(boxes, dtype=float).reshape(-1, 4)
    crop = RandomSquareCrop(shares)
    found = []
    for _ in range(count):
        done = crop.get_transform(IMAGE, boxes)
        assert done.w == done.h == done.apply_image(IMAGE).shape[0]
        assert 0 <= done.x0 <= 80 - done.w and 0 <= done.y0 <= 60 - done.h
        found.append((done.x0, done.y0, done.w))
    return np.array(found)


def test_a_square_of_each_share_holds_a_centre():
    x, y, side = crops([[10, 10, 20, 30], [60, 40, 70, 44]]).T
    assert set(side) == {18, 30, 60}
    held = [(x < a) & (a < x + side) & (y < b) & (b < y + side) for a, b in ((15, 20), (65, 42))]
    assert (held[0] | held[1]).all()
    assert all(0.2 < each.mean() < 1 for each in held)
    assert min((x[side == 18].min(), y[side == 18].min())) < 10 and x.max() > 40


@pytest.mark.parametrize("boxes", [None, []])
def test_without_objects_it_may_lie_anywhere(boxes):
    x, y, side = crops(boxes, shares=(0.5,)).T
    assert (side == 30).all()
    assert (x.min(), x.max(), y.min(), y.max()) == (0, 50, 0, 30)


@pytest.mark.parametrize("centre", [(0.5, 0.5), (79.5, 59.5), (40.2, 30.7), (40, 30)])
def test_a_square_is_found_around_a_single_point(centre, monkeypatch):
    """Chance alone would hardly find it."""
    monkeypatch.setattr(RandomSquareCrop, "ATTEMPTS", 1)
    x, y, side = crops([[*centre, *centre]], shares=(0.05,)).T
    assert (side == 3).all()
    assert ((x < centre[0]) & (centre[0] < x + 3) & (y < centre[1]) & (centre[1] < y + 3)).all()
    assert len(set(x)) > 1 or centre[0] in (0.5, 79.5)


@pytest.fixture
def sample(tmp_path):
    file = tmp_path / "image.png"
    Image.fromarray(IMAGE).save(file)
    boxes = {0: [10, 10, 10, 20], 1: [25, 0, 12, 10], 2: [60, 40, 10, 4]}
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": kind, "iscrowd": 0}
        for kind, box in boxes.items()
    ]
    annotations.append({**annotations[0], "bbox": [0, 0, 80, 60], "iscrowd": 1})
    return {"file_name": str(file), "height": 60, "width": 80, "annotations": annotations}


def test_objects_stay_whose_centre_is_inside_and_are_clipped(sample, monkeypatch):
    """Of a crop from (0, 0) to (30, 30), twice as large: the first is whole; the centre (31, 5) of
    the second is outside, though a part of it is not."""
    monkeypatch.setattr(RandomSquareCrop, "get_transform", lambda *_: T.CropTransform(0, 0, 30, 30))
    keys = {"CLSLOC__INPUT__SQUARE_CROP__SHARES": (0.5,), "INPUT__RANDOM_FLIP": "none"}
    mapper = _default_mapper(config(**keys, CLSLOC__INPUT__SQUARE_CROP__SIZE=60))
    assert isinstance(mapper, CentreMapper)
    mapped = mapper(sample)
    assert mapped["image"].shape == (3, 60, 60)
    assert mapped["instances"].gt_boxes.tensor.tolist() == [[20, 20, 40, 60]]
    assert mapped["instances"].gt_classes.tolist() == [0]
    assert mapped["crowd_boxes"].tolist() == [[0, 0, 60, 60]]
    monkeypatch.setattr(
        RandomSquareCrop, "get_transform", lambda *_: T.CropTransform(14, 0, 30, 30)
    )
    mapped = mapper(sample)
    assert mapped["instances"].gt_classes.tolist() == [0, 1]
    assert mapped["instances"].gt_boxes.tensor.tolist() == [[0, 20, 12, 60], [22, 0, 46, 20]]
    assert len(sample["annotations"]) == 4


def test_samples_of_face_detectors(sample):
    """Every sample is a square of the size of the config and holds an object."""
    shares = (0.3, 0.45, 0.6, 0.8, 1.0)
    keys = {"SHARES": shares, "SIZE": 64}
    cfg = config(**{f"CLSLOC__INPUT__SQUARE_CROP__{key}": value for key, value in keys.items()})
    mapper, seen = _default_mapper(cfg), set()
    for _ in range(100):
        mapped = mapper(sample)
        assert mapped["image"].shape == (3, 64, 64)
        boxes = mapped["instances"].gt_boxes.tensor
        assert len(boxes) and boxes.min() >= 0 and boxes.max() <= 64
        seen |= set(mapped["instances"].gt_classes.tolist())
    assert seen == {0, 1, 2}


def test_a_sample_without_annotations(sample):
    keys = {"CLSLOC__INPUT__SQUARE_CROP__SHARES": (0.5,)}
    del sample["annotations"]
    assert "instances" not in _default_mapper(config(**keys))(sample)


def test_the_order_of_augmentations():
    cfg = config(CLSLOC__INPUT__SQUARE_CROP__SHARES=(0.5,), CLSLOC__INPUT__COLOR__HUE=18.0)
    kinds = [RandomSquareCrop, ColorDistortion, T.Resize, T.RandomFlip]
    assert [type(each) for each in build_train_augmentations(cfg)] == kinds


def distort(color, image_format="RGB", **changes):
    plain = {"brightness": 0, "contrast": 1, "saturation": 1, "hue": 0, "contrast_first": True}
    change = ColorTransform(**{**plain, **changes}, image_format=image_format)
    image = change.apply_image(np.array([[color]], np.uint8))
    assert image.dtype == np.uint8
    return image[0, 0].tolist()


def test_colours_by_hand():
    assert distort([10, 100, 250]) == [10, 100, 250]
    assert distort([10, 100, 250], brightness=-20) == [0, 80, 230]
    assert distort([10, 100, 250], contrast=1.5) == [15, 150, 255]
    assert distort([10, 100, 250], brightness=10, contrast=0.5, contrast_first=False) == [
        10, 55, 130
    ]  # fmt: skip


def test_saturation_and_hue_by_hand():
    pytest.importorskip("cv2")
    # The largest value stays, the distance of the others from it halves.
    assert distort([200, 100, 0], saturation=0.5) == [200, 150, 100]
    assert distort([200, 0, 0], hue=120) == [0, 200, 0]
    assert distort([200, 0, 0], hue=120, image_format="BGR") == [0, 0, 200]
    assert distort([90, 90, 90], hue=50, saturation=0.5) == [90, 90, 90]


def test_draws_of_colours():
    draw = ColorDistortion(brightness=32, contrast=0.5, saturation=0.5, hue=18).get_transform
    drawn = [draw(IMAGE) for _ in range(2000)]
    for name, middle, most in (
        ("brightness", 0, 32), ("contrast", 1, 0.5), ("saturation", 1, 0.5), ("hue", 0, 18)
    ):  # fmt: skip
        values = np.array([getattr(each, name) for each in drawn]) - middle
        assert 0.95 * most < values.max() <= most and -most <= values.min() < -0.95 * most
        assert (values == 0).mean() == pytest.approx(0.5, abs=0.05)
    assert np.mean([each.contrast_first for each in drawn]) == pytest.approx(0.5, abs=0.05)
    done = drawn[0]
    assert done.apply_coords(np.ones((1, 2))).tolist() == [[1, 1]]
    assert isinstance(done.inverse(), T.NoOpTransform)
    assert done.apply_segmentation(IMAGE) is IMAGE


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("SQUARE_CROP__SHARES", (0.5, 1.5), "SHARES is shares above 0 and at most 1"),
        ("SQUARE_CROP__SIZE", 0, "SIZE is at least 1, got 0"),
        ("COLOR__BRIGHTNESS", -1.0, "BRIGHTNESS is at least 0"),
        ("COLOR__CONTRAST", 1.5, "CONTRAST is between 0 and 1"),
        ("COLOR__SATURATION", -0.5, "SATURATION is between 0 and 1"),
        ("COLOR__HUE", -1.0, "HUE is at least 0"),
    ],
)
def test_values_that_cannot_be_are_refused(key, value, message):
    with pytest.raises(UserError, match=message):
        build_train_augmentations(config(**{f"CLSLOC__INPUT__{key}": value}))


def test_colours_need_an_order_of_channels():
    with pytest.raises(UserError, match="RGB or BGR, got 'L'"):
        ColorDistortion(hue=1, image_format="L")
