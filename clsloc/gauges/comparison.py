"""From the results of many runs to one table."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from clsloc.evaluation.coco import AP_BY_IOU, METRICS
from clsloc.evaluation.wider_face_truth import SUBSETS

# Metric: key in a run's figures, by task.
TASKS = {
    "bbox": {metric: f"bbox/{metric}" for metric in METRICS},
    "face": {subset: f"face/{subset}" for subset in SUBSETS},
}
METRIC_KEYS = {metric: key for task in TASKS.values() for metric, key in task.items()}
# Column: key in a run's figures, digits.
COLUMNS = {
    **{metric: (key, 1) for metric, key in METRIC_KEYS.items()},
    "params (M)": ("params_millions", 2),
    "s/iteration": ("seconds_per_iteration", 3),
    "s/image": ("seconds_per_image", 4),
}
EMPTY = "-"

Figures = Mapping[str, float | None]
Row = Mapping[str, Any]


def summarise(runs: Mapping[str, Sequence[Figures]]) -> list[dict[str, Any]]:
    """One row for each method: the mean of every column and its spread over the runs.

    Args:
        runs: the figures of each run by method; a figure may be missing or None. Methods without
            a run are passed over.

    Returns:
        ``{"method", "runs", "mean", "std", "ap_by_iou", "difference"}``. ``mean`` and ``std`` are
        ``{column: value}``, where a column without a figure is None, and so is the sample standard
        deviation of a single one. ``ap_by_iou`` is ``{threshold: {"mean", "std"}}`` of the
        thresholds that were measured. ``difference`` is that to the first method, see
        :func:`paired_difference`; None in its own row.
    """
    first = next(iter(runs.values()), ())
    rows = []
    for method, figures in runs.items():
        if not figures:
            continue
        columns = {column: _values(figures, key) for column, (key, _) in COLUMNS.items()}
        curve = {iou: _values(figures, f"bbox/{metric}") for iou, metric in AP_BY_IOU.items()}
        rows.append(
            {
                "method": method,
                "runs": len(figures),
                "mean": {column: _mean(values) for column, values in columns.items()},
                "std": {column: _std(values) for column, values in columns.items()},
                "ap_by_iou": {
                    f"{iou:.2f}": {"mean": _mean(values), "std": _std(values)}
                    for iou, values in curve.items()
                    if values
                },
                "difference": None if figures is first else paired_difference(figures, first),
            }
        )
    return rows


def paired_difference(figures: Sequence[Figures], first: Sequence[Figures]) -> dict[str, Any]:
    """How much higher a method is than the first one, seed by seed: what one seed does to both
    (the order of the images, the sizes drawn for them) does not blur it.

    Args:
        figures, first: those of the runs of both; runs with equal ``seed`` are a pair.

    Returns:
        ``{"seeds", "mean": {metric: value}, "std": {metric: value}}``.
    """
    of_first = {run["seed"]: run for run in first if run.get("seed") is not None}
    pairs = [(run, of_first[run["seed"]]) for run in figures if run.get("seed") in of_first]
    differences = {
        metric: [
            run[key] - base[key]
            for run, base in pairs
            if _is_number(run.get(key)) and _is_number(base.get(key))
        ]
        for metric, key in METRIC_KEYS.items()
    }
    return {
        "seeds": [run["seed"] for run, _ in pairs],
        "mean": {metric: _mean(values) for metric, values in differences.items()},
        "std": {metric: _std(values) for metric, values in differences.items()},
    }


def _values(figures: Sequence[Figures], key: str) -> list[float]:
    return [run[key] for run in figures if _is_number(run.get(key))]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _mean(values: Sequence[float]) -> float | None:
    return mean(values) if values else None


def _std(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def table_cells(rows: Sequence[Row]) -> list[list[str]]:
    """The rows of :func:`summarise` as texts below a line of titles; ``42.3 ± 0.4`` is mean and
    standard deviation, ``ΔAP`` the paired difference to the first method. Tasks that nobody was
    evaluated on are left out."""
    metrics = _evaluated(rows)
    columns = [*metrics, *(column for column in COLUMNS if column not in METRIC_KEYS)]
    titles = ["method", "seeds", *columns]
    lines = [
        [row["method"], str(row["runs"])]
        + [_cell(row["mean"][c], row["std"][c], f".{COLUMNS[c][1]}f") for c in columns]
        for row in rows
    ]
    if len(rows) > 1 and metrics:
        where = titles.index(metrics[0]) + 1
        titles.insert(where, f"Δ{metrics[0]}")
        for line, row in zip(lines, rows):
            line.insert(where, _difference_cell(row, metrics[0]))
    return [titles, *lines]


def difference_cells(rows: Sequence[Row]) -> list[list[str]]:
    """The paired differences of all metrics, in the same form; only titles if there is none."""
    metrics = _evaluated(rows)
    lines = [
        [row["method"], str(len(row["difference"]["seeds"]))]
        + [_difference_cell(row, metric) for metric in metrics]
        for row in rows
        if row["difference"] and row["difference"]["seeds"]
    ]
    return [["method", "pairs", *(f"Δ{metric}" for metric in metrics)], *lines]


def _evaluated(rows: Sequence[Row]) -> list[str]:
    """The metrics of the tasks of which at least one row has a figure."""
    return [
        metric
        for task in TASKS.values()
        if any(row["mean"][metric] is not None for row in rows for metric in task)
        for metric in task
    ]


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """Texts below a line of titles as a Markdown table."""
    titles, *lines = cells
    ruler = ["---", *["---:"] * (len(titles) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [titles, ruler, *lines]) + "\n"


def _cell(value: float | None, spread: float | None, form: str) -> str:
    if value is None:
        return EMPTY
    text = f"{value:{form}}"
    return text if spread is None else f"{text} ± {spread:{form.removeprefix('+')}}"


def _difference_cell(row: Row, metric: str) -> str:
    difference = row["difference"]
    if not difference:
        return EMPTY
    return _cell(difference["mean"][metric], difference["std"][metric], "+.1f")
