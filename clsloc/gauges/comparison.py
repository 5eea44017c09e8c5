"""From the results of many runs to one table."""

import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from clsloc.evaluation.coco import METRICS

# Column: key in a run's figures, digits.
_COLUMNS = {
    **{metric: (f"bbox/{metric}", 1) for metric in METRICS},
    "params (M)": ("params_millions", 2),
    "s/iteration": ("seconds_per_iteration", 3),
    "s/image": ("seconds_per_image", 4),
}
_EMPTY = "-"

Figures = Mapping[str, float | None]


def summarise(runs: Mapping[str, Sequence[Figures]]) -> list[dict[str, Any]]:
    """One row for each method: the mean of every column and its spread over the runs.

    Args:
        runs: the figures of each run by method; a figure may be missing or None.

    Returns:
        ``{"method", "runs", "mean": {column: value}, "std": {column: value}}``, where a column
        without a figure is None, and so is the sample standard deviation of a single one.
    """
    rows = []
    for method, figures in runs.items():
        values = {
            column: [run[key] for run in figures if _is_number(run.get(key))]
            for column, (key, _) in _COLUMNS.items()
        }
        rows.append(
            {
                "method": method,
                "runs": len(figures),
                "mean": {column: mean(v) if v else None for column, v in values.items()},
                "std": {column: stdev(v) if len(v) > 1 else None for column, v in values.items()},
            }
        )
    return rows


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of :func:`summarise` as a table; ``42.3 ± 0.4`` is mean and standard deviation."""
    lines = [["method", *_COLUMNS], ["---"] + ["---:"] * len(_COLUMNS)]
    lines += [
        [row["method"], *(_cell(row["mean"][c], row["std"][c], _COLUMNS[c][1]) for c in _COLUMNS)]
        for row in rows
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cell(value: float | None, spread: float | None, digits: int) -> str:
    if value is None:
        return _EMPTY
    text = f"{value:.{digits}f}"
    return text if not spread else f"{text} ± {spread:.{digits}f}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def hardware() -> str:
    """The processor with its cores, and the GPUs."""
    parts = [f"{_cpu_name()}, {os.cpu_count()} cores"]
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(parts + names)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the source tree, with ``+`` if files were changed since; None elsewhere."""
    folder = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
        return done.stdout.strip()

    try:
        revision = git("rev-parse", "--short", "HEAD")
        return revision + "+" * bool(git("status", "--porcelain", "-uno")) if revision else None
    except OSError:
        return None
