"""Checkpoints that load without running code, are written whole or not at all, and report."""

from .checkpointer import Checkpointer
from .digest import LoadDigest
from .safe_load import load_file

__all__ = ["Checkpointer", "LoadDigest", "load_file"]
