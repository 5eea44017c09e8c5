"""The size of an image file as it is read: upright; and what can be wrong with the file."""

import os

from PIL import Image

IMAGE_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What PIL raises for a file that is no image, is damaged (a PNG file: SyntaxError) or is larger
than PIL allows."""

_ORIENTATION = 0x0112
_ON_THEIR_SIDE = {5, 6, 7, 8}


def upright_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height) of an image that is turned as its EXIF data say; no pixel is decoded.

    Raises:
        IMAGE_ERRORS: the file is missing or is no image.
    """
    with Image.open(path) as image:
        return image.size[::-1] if swaps_sides(image) else image.size


def swaps_sides(image: Image.Image) -> bool:
    """Whether width and height change places when the image is turned as its EXIF data say."""
    if image.format == "TIFF":  # PIL turns these itself and gives the upright size
        return False
    try:
        # Not image.getexif(), which decodes a PNG file to look behind the pixels.
        return Image.Image.getexif(image).get(_ORIENTATION) in _ON_THEIR_SIDE
    except Exception:  # as when it is read, broken EXIF data are none
        return False
