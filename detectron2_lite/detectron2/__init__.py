"""The embedded runtime: the part of Detectron2's public API that box detection needs."""

from detectron2.utils.env import setup_environment

setup_environment()

__version__ = "0.6"
