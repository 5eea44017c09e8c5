"""The file in which a run leaves its figures."""

import platform
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from clsloc.cli import write_json
from clsloc.origin import commit, hardware
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm


def write_results(path: str, results: Mapping[str, Any], *, seconds: float, **more: Any) -> None:
    """Write ``results.json``; only the main process does.

    Args:
        path: the file.
        results: metrics as ``Trainer.test`` returns them. They are written under the names that
            Detectron2 gives them in ``metrics.json``: ``bbox/AP50``, or
            ``<dataset>/bbox/AP50`` after an evaluation on several datasets. A metric without a
            value (NaN) becomes null.
        seconds: the wall-clock time of the whole run.
        more: further entries.
    """
    if not comm.is_main_process():
        return
    content = {
        "metrics": flatten_results_dict(results),
        "seconds": seconds,
        **more,
        "hardware": hardware(),
        "commit": commit(),
        "versions": versions(),
    }
    write_json(content, path)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages on which the figures depend."""
    packages = ("clsloc", "detectron2", "torch", "torchvision", "numpy")
    return {"python": platform.python_version()} | {
        name: import_module(name).__version__ for name in packages
    }
