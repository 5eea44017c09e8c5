"""Paired timing: what is compared is run in turn, and the ratio is taken pair by pair.

The load of a machine changes over seconds; within a pair both sides see nearly the same.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

Measure = Callable[[], float]
"""Runs something once and returns the seconds it took."""


@dataclass(frozen=True)
class PairedTimes:
    """Seconds of A and B, pair by pair."""

    a: tuple[float, ...]
    b: tuple[float, ...]

    def summary(self) -> dict[str, float | list[float]]:
        """Medians, the median ratio A / B and its 95 % interval."""
        ratios = [a / b for a, b in zip(self.a, self.b)]
        return {
            "a_s": median(self.a),
            "b_s": median(self.b),
            "ratio": median(ratios),
            "ratio_interval": list(median_interval(ratios)),
        }


def time_pairs(a: Measure, b: Measure, *, pairs: int, warmup: int = 2) -> PairedTimes:
    """Run A and B ``warmup`` times unmeasured, then ``pairs`` times; who is first alternates."""
    for _ in range(warmup):
        a(), b()
    times: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            times[side].append((a, b)[side]())
    return PairedTimes(tuple(times[0]), tuple(times[1]))


def median_interval(values: list[float], confidence: float = 0.95) -> tuple[float, float]:
    """A confidence interval of the median that assumes nothing about the distribution.

    The k-th smallest and the k-th largest of n values enclose the median unless fewer than k of
    them fall on one side of it, which is a coin tossed n times. With few values (n < 6 for 95 %)
    no such interval exists, and the range of all values is returned.
    """
    ordered = sorted(values)
    n = len(ordered)
    outside, k = 0.0, 0
    while True:
        outside += 2 * math.comb(n, k) / 2**n
        if outside > 1 - confidence:
            break
        k += 1
    k = max(k, 1)
    return ordered[k - 1], ordered[n - k]
