"""Datasets: the built-in digits, WIDER FACE, and any COCO JSON or VOC folder by name."""

from clsloc.data.digits import make_digits, register_digits
from clsloc.data.registration import register_builtin_wider_face, register_datasets

__all__ = ["make_digits", "register_builtin_wider_face", "register_datasets", "register_digits"]
