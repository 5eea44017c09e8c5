"""Datasets: the built-in digits, and any COCO JSON or VOC folder by name."""

from clsloc.data.digits import make_digits, register_digits
from clsloc.data.registration import register_datasets

__all__ = ["make_digits", "register_datasets", "register_digits"]
