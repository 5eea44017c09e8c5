"""Random seeds and the one-time set-up of the process."""

import importlib.util
import logging
import os
import random
import sys
from datetime import datetime
from types import ModuleType

import numpy as np
import torch

__all__ = ["seed_all_rng"]

TORCH_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
"""Major and minor version of PyTorch, for comparisons."""

_ENV_SETUP_DONE = False


def seed_all_rng(seed: int | None = None) -> None:
    """Seed Python's, numpy's and PyTorch's generators.

    Args:
        seed: ``None`` makes one from the process id, the clock and the system's entropy, and
            logs it.
    """
    if seed is None:
        clock = int(datetime.now().strftime("%S%f"))
        seed = os.getpid() + clock + int.from_bytes(os.urandom(2), "big")
        logging.getLogger(__name__).info(f"Using a generated random seed {seed}")
    np.random.seed(seed)
    torch.manual_seed(seed)
    random.seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)


def setup_environment() -> None:
    """Prepare the process once, at the first import of the package.

    Users add their own preparations through the variable ``DETECTRON2_ENV_MODULE``, which names
    a Python file or module with a function ``setup_environment()``.
    """
    global _ENV_SETUP_DONE
    if _ENV_SETUP_DONE:
        return
    _ENV_SETUP_DONE = True
    # OpenCV's OpenCL start-up costs seconds and does not survive forked data workers. The
    # variable is enough and, unlike cv2.ocl, needs no import of OpenCV.
    os.environ["OPENCV_OPENCL_RUNTIME"] = "disabled"
    custom_module = os.environ.get("DETECTRON2_ENV_MODULE")
    if custom_module:
        setup_custom_environment(custom_module)


def setup_custom_environment(custom_module: str) -> None:
    """Import ``custom_module`` (a ``.py`` path or a module name), call its setup_environment()."""
    if custom_module.endswith(".py"):
        module = _import_file("detectron2.utils.env.custom_module", custom_module)
    else:
        module = importlib.import_module(custom_module)
    setup = getattr(module, "setup_environment", None)
    assert callable(setup), (
        f"The module {custom_module} named by DETECTRON2_ENV_MODULE needs a function "
        "setup_environment()."
    )
    setup()


def _import_file(module_name: str, file_path: str, make_importable: bool = False) -> ModuleType:
    """Run the Python file at ``file_path`` as a module called ``module_name``."""
    spec = importlib.util.spec_from_file_location(module_name, file_path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if make_importable:
        sys.modules[module_name] = module
    return module
