"""What a run wrote while it was training."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

History = dict[str, dict[int, float]]
"""Value by iteration of each metric."""


def read_history(path: Path) -> History:
    """The numbers of a ``metrics.json``; empty if there is no such file.

    A run that was broken off and resumed may have written an iteration twice, and its last line
    may be cut: the later value counts, and what is no line is passed over.
    """
    history: History = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            values = json.loads(line)
            iteration = values.pop("iteration")
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                history.setdefault(name, {})[iteration] = value
    return history


def mean_history(histories: Sequence[History], name: str) -> dict[int, float]:
    """The mean of a metric over runs at each iteration that all runs with this metric have."""
    curves = [history[name] for history in histories if name in history]
    shared = set.intersection(*map(set, curves)) if curves else set()
    return {iteration: mean(c[iteration] for c in curves) for iteration in sorted(shared)}
