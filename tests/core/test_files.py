"""Folders and pictures that are written, and the sentences where they cannot be."""

import pytest
from PIL import Image

from clsloc.errors import UserError
from clsloc.files import make_folder, save_picture


def test_a_folder_is_made_once(tmp_path):
    for _ in range(2):
        assert make_folder(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()


def test_a_picture_is_saved_with_the_options_of_its_format(tmp_path):
    noise = Image.effect_noise((64, 64), 50)
    for quality in (10, 95):
        save_picture(noise, tmp_path / f"{quality}.jpg", quality=quality)
    assert (tmp_path / "10.jpg").stat().st_size < (tmp_path / "95.jpg").stat().st_size
    assert Image.open(tmp_path / "95.jpg").size == (64, 64)


def test_a_file_in_the_way_is_a_sentence(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match=r"a/b' could not be written .*is a file; choose another"):
        make_folder(str(tmp_path / "a" / "b"))
    with pytest.raises(UserError, match=r"a/b\.png' could not be written .*is a file; choose"):
        save_picture(Image.new("L", (1, 1)), tmp_path / "a" / "b.png")
