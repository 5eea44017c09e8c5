"""Sizes of image files as they are read, and the errors of files that cannot be."""

import numpy as np
import pytest
from PIL import Image

from clsloc.data.augmentations import ResizeWithinRandomLimit
from clsloc.data.check import check_images
from clsloc.data.fix import fix_coco
from clsloc.data.images import IMAGE_ERRORS, upright_size
from clsloc.data.safe_mapper import SafeMapper
from clsloc.errors import UserError
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image


@pytest.fixture
def save(tmp_path):
    """Saves an image stored 30 wide and 40 high, with an orientation in its EXIF data."""

    def save(name, orientation=None, data=None):
        exif = Image.Exif()
        if orientation is not None:
            exif[0x0112] = orientation
        path = tmp_path / name
        Image.new("RGB", (30, 40)).save(path, exif=data or exif)
        return str(path)

    return save


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
@pytest.mark.parametrize("orientation", [None, *range(10)])
def test_the_size_is_that_of_the_image_as_it_is_read(save, name, orientation):
    path = save(name, orientation)
    assert upright_size(path) == ((40, 30) if orientation in (5, 6, 7, 8) else (30, 40))
    assert read_image(path, "RGB").shape[1::-1] == upright_size(path)


@pytest.mark.parametrize(("orientation", "size"), [(1, (30, 40)), (6, (40, 30))])
def test_a_tiff_file_is_not_turned_twice(save, tmp_path, orientation, size):
    path = save("a.tif", orientation)
    assert upright_size(path) == size
    image = {"id": 1, "file_name": "a.tif", "width": size[0], "height": size[1]}
    assert check_images({"images": [image]}, str(tmp_path)) == []


def test_broken_exif_data_are_none(save):
    path = save("a.jpg", data=b"Exif\x00\x00nonsense")
    assert upright_size(path) == (30, 40)
    assert read_image(path, "RGB").shape == (40, 30, 3)


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_no_pixel_is_decoded(save, name, monkeypatch):
    path = save(name, 6)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    assert upright_size(path) == (40, 30)


def test_an_image_larger_than_allowed_is_reported_everywhere(save, tmp_path, monkeypatch):
    path = save("a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(IMAGE_ERRORS):
        upright_size(path)
    images = [{"id": 1, "file_name": "a.png", "width": 30, "height": 40}]
    (finding,) = check_images({"images": images}, str(tmp_path))
    assert finding.kind == "unreadable_images"
    unknown = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": []}
    assert fix_coco(unknown, str(tmp_path)) == (unknown, {})
    error = SafeMapper(lambda sample: read_image(sample["file_name"], "BGR"))({"file_name": path})
    assert isinstance(error, UserError)
    assert "a.png' cannot be read" in str(error) and "; replace it or drop it" in str(error)


def test_a_mistake_of_a_mapper_is_not_the_image(save):
    def mapper(sample):
        return np.zeros(2) + np.zeros(3)

    with pytest.raises(ValueError, match="could not be broadcast"):
        SafeMapper(mapper)({"file_name": save("a.png")})


def test_an_image_in_a_form_that_cannot_be_read_is_a_sentence(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("Decompressed data too large")

    path = tmp_path / "a.png"
    Image.new("RGB", (30, 40)).save(path)
    monkeypatch.setattr(Image, "open", fail)
    error = SafeMapper(lambda sample: read_image(sample["file_name"]))({"file_name": str(path)})
    assert "cannot be read (Decompressed data too large)" in str(error)


SHORTEST = T.ResizeShortestEdge([64, 96], 1000, "range")
RANDOM = ResizeWithinRandomLimit([64], "choice", (1000, 2000))


@pytest.mark.parametrize(
    ("is_train", "augmentations", "key"),
    [
        (True, [SHORTEST], "INPUT.MAX_SIZE_TRAIN"),
        (False, [T.RandomFlip(), SHORTEST], "INPUT.MAX_SIZE_TEST"),
        (True, [RANDOM], "the start of CLSLOC.INPUT.MAX_SIZE_RANGE"),
    ],
)
@pytest.mark.parametrize("size", [(5000, 1), (1, 5000)])
@pytest.mark.parametrize("failure", [None, AssertionError, RuntimeError, ValueError])
def test_a_picture_too_thin_is_a_sentence(
    tmp_path, monkeypatch, is_train, augmentations, key, size, failure
):
    path = tmp_path / "thin.png"
    Image.new("RGB", size).save(path)
    mapper = DatasetMapper(is_train, augmentations=augmentations, image_format="RGB")
    if failure:  # what a resize to no pixel raises depends on the runtime

        def fail(*args, **kwargs):
            raise failure("no pixels")

        monkeypatch.setattr(T.ResizeTransform, "apply_image", fail)
    error = SafeMapper(mapper)({"file_name": str(path), "width": size[0], "height": size[1]})
    assert isinstance(error, UserError)
    assert f"thin.png' is too thin: {size[0]} pixels wide and {size[1]} high" in str(error)
    assert f"resized to 1000; leave it out or raise {key} to 2501." in str(error)


def test_another_failure_on_a_picture_that_is_not_too_thin_keeps_its_traceback(
    tmp_path, monkeypatch
):
    path = tmp_path / "wide.png"
    Image.new("RGB", (1900, 1)).save(path)
    mapper = SafeMapper(DatasetMapper(True, augmentations=[SHORTEST], image_format="RGB"))
    sample = {"file_name": str(path), "width": 1900, "height": 1}
    assert mapper(sample)["image"].shape == (3, 1, 1000)

    def fail(*args, **kwargs):
        raise RuntimeError("a defect")

    monkeypatch.setattr(T.ResizeTransform, "apply_image", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        mapper(sample)
