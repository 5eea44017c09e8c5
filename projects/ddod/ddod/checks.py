"""Values of ``MODEL.DDOD`` that no model can be built with, or none that learns."""

from collections.abc import Collection

from clsloc.engine.checks import get_value
from clsloc.errors import UserError
from detectron2.config import CfgNode
from detectron2.layers import get_norm

__all__ = ["check_values"]

# What a key may be, as a test and in words. Choices of names are checked where they are used.
_RULES = {
    "NUM_CLASSES": (lambda v: v >= 1, "at least 1"),
    "NUM_CONVS": (lambda v: v >= 0, "at least 0"),
    "CONV_DIM": (lambda v: v >= 1, "at least 1"),
    "PRIOR_PROB": (lambda v: 0 < v < 1, "a probability above 0 and below 1"),
    "BBOX_REG_WEIGHTS": (lambda v: len(v) == 4 and min(v) > 0, "four numbers above 0"),
    "ASSIGN.TOPK": (lambda v: v >= 1, "at least 1"),
    "ASSIGN.IGNORE_IOF_THR": (lambda v: v < 1, "a share below 1, or below 0 for none"),
    "LOSS.FOCAL_ALPHA": (lambda v: v <= 1, "at most 1, or below 0 for none"),
    "LOSS.FOCAL_GAMMA": (lambda v: v >= 0, "at least 0"),
    "LOSS.SMOOTH_L1_BETA": (lambda v: v >= 0, "at least 0"),
    "TEST.SCORE_THRESH": (lambda v: 0 <= v < 1, "a probability below 1"),
    "TEST.TOPK_CANDIDATES": (lambda v: v >= 1, "at least 1"),
    "TEST.NMS_THRESH": (lambda v: 0 <= v <= 1, "an IoU between 0 and 1"),
    "TEST.SOFT_NMS_SIGMA": (lambda v: v > 0, "above 0"),
    "TEST.SOFT_NMS_MIN_SCORE": (lambda v: 0 <= v < 1, "a score below 1"),
    "TEST.SCORE_POWERS": (lambda v: len(v) == 2 and min(v) >= 0, "two exponents of at least 0"),
    "TEST.MIN_HEIGHT": (lambda v: v >= 0, "at least 0"),
}


def check_values(node: CfgNode, feature_names: Collection[str]) -> None:
    """
    Args:
        node: ``MODEL.DDOD``.
        feature_names: maps that the backbone gives.

    Raises:
        UserError: for the first value that cannot be.
    """
    for key, (is_valid, words) in _RULES.items():
        value = get_value(node, key)
        if not is_valid(value):
            raise UserError(f"MODEL.DDOD.{key} is {words}, got {value}.")
    unknown = [name for name in node.IN_FEATURES if name not in feature_names]
    if unknown or not node.IN_FEATURES:
        raise UserError(
            f"MODEL.DDOD.IN_FEATURES are maps of the backbone, {', '.join(feature_names)}, got "
            f"{list(node.IN_FEATURES)}."
        )
    try:
        get_norm(node.NORM, node.CONV_DIM)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"MODEL.DDOD.NORM {node.NORM!r} is no norm of Detectron2, or none for "
            f"MODEL.DDOD.CONV_DIM {node.CONV_DIM} (GN: a multiple of 32)."
        ) from error
