"""The embedded runtime: the part of Detectron2's public API that box detection needs."""

__version__ = "0.6"
