"""Printing results, and checking them against expected values."""

import logging
import pprint
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from detectron2.config import CfgNode

logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log results as comma-separated lines marked "copypaste:"; per-class metrics are left out.

    Args:
        results: metrics by task.
    """
    assert isinstance(results, Mapping), f"Results are a dict of metrics by task, got {results!r}."
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            logger.info(f"copypaste: {task}={metrics}")
            continue
        main = {name: value for name, value in metrics.items() if "-" not in name}
        logger.info(f"copypaste: Task: {task}")
        logger.info("copypaste: " + ",".join(main))
        logger.info("copypaste: " + ",".join(f"{value:.4f}" for value in main.values()))


def verify_results(cfg: CfgNode, results: Mapping[str, Mapping[str, float]]) -> bool:
    """Compare results with ``cfg.TEST.EXPECTED_RESULTS``; exit the program where they differ.

    Args:
        cfg: its expectations are lists of task, metric, value and tolerance.
        results: metrics by task.

    Returns:
        True.
    """
    expected = cfg.TEST.EXPECTED_RESULTS
    if not len(expected):
        return True
    for task, metric, value, tolerance in expected:
        actual = results[task].get(metric)
        if actual is None or not np.isfinite(actual) or abs(actual - value) > tolerance:
            logger.error(
                f"{metric} of {task} is {actual}, expected {value} with a tolerance of {tolerance}."
                f"\nAll expectations: {expected}\nAll results:\n{pprint.pformat(results)}"
            )
            sys.exit(1)
    logger.info("All results are as expected.")
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Nested results in one dict, keys joined by slashes: ``{"bbox/AP50": 80.0}``."""
    flat = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{k}": v for k, v in flatten_results_dict(value).items()})
        else:
            flat[key] = value
    return flat
