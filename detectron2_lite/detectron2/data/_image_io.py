"""Reading images and converting them between formats."""

import numpy as np
import torch
from PIL import Image

from detectron2.utils.file_io import PathManager

# ITU-R BT.601, on RGB in 0-1.
_RGB_TO_YUV = np.array(
    [[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]]
)
_YUV_TO_RGB = np.array([[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.5806], [1.0, 2.03211, 0.0]])

_EXIF_ORIENTATION = 0x0112
# What undoes each orientation, by its number in EXIF; 1 is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class SizeMismatchError(ValueError):
    """An image does not have the width and height that its annotation states."""


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """A PIL image as an array; see :func:`read_image` for the formats."""
    if format is not None:
        image = image.convert("RGB" if format in ("BGR", "YUV-BT.601") else format)
    array = np.asarray(image)
    if format == "BGR":
        return array[:, :, ::-1]
    if format == "L":
        return array[:, :, None]
    if format == "YUV-BT.601":
        return np.dot(array / 255.0, _RGB_TO_YUV.T)
    return array


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """An image of shape (H, W, C) in the given format (see :func:`read_image`) as RGB in 0-255."""
    if isinstance(image, torch.Tensor):
        image = image.cpu().numpy()
    if format == "BGR":
        return image[:, :, [2, 1, 0]]
    if format == "YUV-BT.601":
        return np.dot(image, _YUV_TO_RGB.T) * 255.0
    if format == "L":
        image = image[:, :, 0]
    return np.asarray(Image.fromarray(image.astype(np.uint8), mode=format).convert("RGB"))


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an image, turned upright if its EXIF data say how it was taken.

    Args:
        file_name: path of the image.
        format: a mode of PIL such as "RGB" or "L", or "BGR" or "YUV-BT.601"; None for the file's.

    Returns:
        array of shape (H, W, C), uint8 in 0-255 in most formats; floats with Y in 0-1 for
        "YUV-BT.601". (H, W) for a file with one channel and no format.
    """
    with PathManager.open(file_name, "rb") as f:
        image = Image.open(f)
        image.load()
        return convert_PIL_to_numpy(_apply_exif_orientation(image), format)


def _apply_exif_orientation(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # broken EXIF data do not make an image unreadable
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def check_image_size(dataset_dict: dict, image: np.ndarray) -> None:
    """Raise :class:`SizeMismatchError` unless the image has the sample's "width" and "height".

    A sample that lacks them gets those of the image.
    """
    height, width = image.shape[:2]
    if "width" in dataset_dict or "height" in dataset_dict:
        stated = (dataset_dict["width"], dataset_dict["height"])
        if (width, height) != stated:
            raise SizeMismatchError(
                f"Image {dataset_dict.get('file_name', '(no file name)')} is {width}x{height} "
                f"(width x height), its annotation says {stated[0]}x{stated[1]}; correct "
                "the annotation."
            )
    dataset_dict.setdefault("width", width)
    dataset_dict.setdefault("height", height)
