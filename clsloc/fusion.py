"""
Fusion of the class probabilities of two classifiers that see the same RoIs.

All rules act elementwise on probabilities. Logits must go through softmax or sigmoid first: on
logits none of the properties below holds.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["FUSIONS", "fuse_scores"]

FUSIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda p, q: p,
    "max": torch.maximum,
    "average": lambda p, q: (p + q) / 2,
    # 1 - (1 - p)(1 - q): the chance that at least one of two independent classifiers fires.
    # Written as an increment on p, so that q = 0 gives back p without rounding.
    "complementary": lambda p, q: p + q * (1 - p),
}


def fuse_scores(p: Tensor, q: Tensor, method: str) -> Tensor:
    """
    Fuse two sets of class probabilities (Double-Head, CVPR 2020, section 4.2, Eq. 4 and Table 3).

    "none" returns `p`; "max", "average" and "complementary" are symmetric, stay in [0, 1], and the
    complementary rule is never below the maximum. Fused rows need not sum to 1: they are
    independent scores per class, and are not renormalised.

    Args:
        p, q: probabilities of equal shape, usually (R, K+1); may have no rows.
        method: a key of `FUSIONS`.

    Raises:
        ValueError: for an unknown method.
    """
    if method not in FUSIONS:
        raise ValueError(f"Unknown score fusion {method!r}: choose one of {', '.join(FUSIONS)}.")
    return FUSIONS[method](p, q)
