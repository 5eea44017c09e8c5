"""
One score out of two: of the class probabilities of two classifiers that see the same RoIs, or of a
class probability and a predicted quality of the box.

All rules act elementwise on probabilities. Logits must go through softmax or sigmoid first: on
logits none of the properties below holds.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["FUSIONS", "fuse_quality", "fuse_scores"]

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


def fuse_quality(p: Tensor, q: Tensor, powers: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """
    The score p^a q^b by which detections are ranked; powers of equal ratio rank alike.

    Args:
        p: class probabilities.
        q: predicted quality of their boxes, such as the IoU, of a shape that broadcasts.
        powers: a and b, at least 0; (1, 1) is the product itself, also for a q below 0.
    """
    a, b = powers
    return (p if a == 1 else p.pow(a)) * (q if b == 1 else q.pow(b))
