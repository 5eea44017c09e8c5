"""The environment a program runs in, as a table for logs and bug reports."""

import importlib
import os
import sys
from collections import Counter

import numpy as np
import torch
from tabulate import tabulate

import detectron2

__all__ = ["collect_env_info"]

_NOT_FOUND = "not found"


def get_env_module() -> tuple[str, str]:
    """The variable that names the user's set-up module, and its value."""
    name = "DETECTRON2_ENV_MODULE"
    return name, os.environ.get(name, "<not set>")


def collect_env_info() -> str:
    """Versions and places of the packages in use, and the GPUs, as a table; then how PyTorch was
    built."""
    package = os.path.dirname(detectron2.__file__)
    rows = [
        ("sys.platform", sys.platform),
        ("Python", sys.version.replace("\n", "")),
        ("numpy", np.__version__),
        ("detectron2", f"{detectron2.__version__}, embedded runtime @{package}"),
        get_env_module(),
        ("PyTorch", _version("torch", with_path=True)),
        ("PyTorch debug build", torch.version.debug),
        *_gpu_rows(),
        ("Pillow", _version("PIL")),
        ("torchvision", _version("torchvision", with_path=True)),
        ("fvcore", _version("fvcore")),
        ("iopath", _version("iopath")),
        ("cv2", _version("cv2")),
    ]
    return f"{tabulate(rows)}\n{torch.__config__.show()}"


def _version(module: str, with_path: bool = False) -> str:
    try:
        package = importlib.import_module(module)
    except ImportError:
        return _NOT_FOUND
    version = str(getattr(package, "__version__", "unknown version"))
    return f"{version} @{os.path.dirname(package.__file__)}" if with_path else version


def _gpu_rows() -> list[tuple[str, str]]:
    if not torch.cuda.is_available():
        return [("GPU available", "No: torch.cuda.is_available() == False")]
    names = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        names.append(f"{torch.cuda.get_device_name(index)} (arch={major}.{minor})")
    counts = Counter(names)
    return [
        ("GPU available", "Yes"),
        *((f"GPU x{count}", name) for name, count in counts.items()),
        ("CUDA of PyTorch", str(torch.version.cuda)),
    ]
