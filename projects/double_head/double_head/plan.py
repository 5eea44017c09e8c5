"""
What a Double-Head detector consists of, resolved from the config.

A predictor is named after its tower and its task: "fc_cls", "fc_reg", "conv_cls", "conv_reg".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from clsloc.config import check_choice
from clsloc.errors import UserError
from clsloc.fusion import FUSIONS
from detectron2.config import CfgNode

__all__ = ["MODES", "PREDICTORS", "HeadPlan", "effective_weights"]

PREDICTORS = ("fc_cls", "fc_reg", "conv_cls", "conv_reg")
KINDS = ("fc", "conv")
NORMS = ("BN", "SyncBN", "FrozenBN", "GN")
FUSED = tuple(method for method in FUSIONS if method != "none")

# Evaluation modes of Figure 8: (source of the scores, source of the boxes).
MODES = {
    "conv": ("conv", "conv"),
    "fc": ("fc", "fc"),
    "split": ("fc", "conv"),
    "fused": ("complementary", "conv"),
}


def effective_weights(
    omega_fc: float, omega_conv: float, lambda_fc: float, lambda_conv: float
) -> tuple[float, float, float, float]:
    """
    Loss weights in the order of `PREDICTORS`, from Eq. 1-3 of the paper.

    >>> effective_weights(2.0, 2.5, 1.0, 1.0)
    (2.0, 0.0, 0.0, 2.5)
    """
    return (
        omega_fc * lambda_fc,
        omega_fc * (1 - lambda_fc),
        omega_conv * (1 - lambda_conv),
        omega_conv * lambda_conv,
    )


@dataclass(frozen=True)
class HeadPlan:
    """
    Which predictors exist, which tower each of them reads, and what is used at inference.

    Attributes:
        loss_weights: weight of each predictor that is trained, in the order of `PREDICTORS`;
            exactly these predictors are built.
        separate_towers: each predictor reads a tower of its own.
        roi_scales: factor on the proposals before pooling, for towers of each kind.
        score: source of class scores at inference: "fc", "conv" or a fusion of both.
        box: source of boxes at inference: "fc" or "conv".
    """

    loss_weights: dict[str, float]
    separate_towers: bool
    roi_scales: dict[str, float]
    score: str
    box: str

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "HeadPlan":
        """
        Raises:
            UserError: if `MODEL.DOUBLE_HEAD` describes no detector, or asks at inference for
                what is not trained.
        """
        node = cfg.MODEL.DOUBLE_HEAD
        check_choice("MODEL.DOUBLE_HEAD.NORM", node.NORM, NORMS)
        weights = dict(zip(PREDICTORS, _weights_from_config(node), strict=True))
        trained = {name: weight for name, weight in weights.items() if weight > 0}
        _check_trained(trained, node)
        score, box = resolve_test_sources(trained, node.TEST_SCORE, node.TEST_BOX)
        scales = {kind: _scale_from_config(node, kind) for kind in KINDS}
        return cls(trained, node.SEPARATE_TOWERS, scales, score, box)

    @property
    def towers(self) -> tuple[str, ...]:
        """Names of the towers to build, each once."""
        return tuple(dict.fromkeys(self.tower_of(name) for name in self.loss_weights))

    def tower_of(self, predictor: str) -> str:
        """The tower that a predictor reads: "fc", "conv", or of its own name when separate."""
        return predictor if self.separate_towers else kind_of(predictor)

    def scale_of(self, tower: str) -> float:
        """The scale at which a tower looks at proposals: it belongs to the kind, not the task."""
        return self.roi_scales[kind_of(tower)]

    @property
    def classifiers(self) -> list[str]:
        """The predictors that scores come from at inference."""
        return classifiers_of(self.score)

    @property
    def regressor(self) -> str:
        """The predictor that boxes come from at inference."""
        return f"{self.box}_reg"

    def tower_only_regresses(self, predictor: str) -> bool:
        """Whether `predictor` regresses boxes and has its tower to itself."""
        readers = [o for o in self.loss_weights if self.tower_of(o) == self.tower_of(predictor)]
        return predictor.endswith("_reg") and readers == [predictor]

    @property
    def scores_without_box_tower(self) -> bool:
        """Whether scores are known before the tower runs that boxes come from."""
        return self.tower_of(self.regressor) not in map(self.tower_of, self.classifiers)


def kind_of(name: str) -> str:
    """ "fc" or "conv", of a predictor or tower."""
    return name.split("_")[0]


def classifiers_of(score: str) -> list[str]:
    """Names of the classifiers that a source of scores reads."""
    return [f"{kind}_cls" for kind in (KINDS if score in FUSED else (score,))]


def resolve_test_sources(trained: Sequence[str], score: str, box: str) -> tuple[str, str]:
    """
    Resolve "auto" and check that everything asked for is trained.

    Args:
        trained: names of the predictors that are trained, at least one of each task.
        score: "auto", "fc", "conv" or a fusion.
        box: "auto", "fc" or "conv".

    Raises:
        UserError: if not.
    """
    check_choice("MODEL.DOUBLE_HEAD.TEST_SCORE", score, ("auto", *KINDS, *FUSED))
    check_choice("MODEL.DOUBLE_HEAD.TEST_BOX", box, ("auto", *KINDS))
    if score == "auto":
        available = [kind for kind in KINDS if f"{kind}_cls" in trained]
        score = "complementary" if len(available) == 2 else available[0]
    if box == "auto":
        box = "conv" if "conv_reg" in trained else "fc"
    for name in classifiers_of(score):
        if name not in trained:
            raise _not_trained("TEST_SCORE", score, name)
    if f"{box}_reg" not in trained:
        raise _not_trained("TEST_BOX", box, f"{box}_reg")
    return score, box


def _weights_from_config(node: CfgNode) -> Sequence[float]:
    for key in ("LAMBDA_FC", "LAMBDA_CONV"):
        if not 0 <= node[key] <= 1:
            raise UserError(f"MODEL.DOUBLE_HEAD.{key} must lie in [0, 1], got {node[key]}.")
    given = list(node.LOSS_WEIGHTS)
    if not given:
        if node.NUM_BLOCKS == 0:
            return 1.0, 1.0, 0.0, 0.0
        return effective_weights(node.OMEGA_FC, node.OMEGA_CONV, node.LAMBDA_FC, node.LAMBDA_CONV)
    if len(given) != 4 or not all(_is_weight(value) for value in given):
        raise UserError(
            "MODEL.DOUBLE_HEAD.LOSS_WEIGHTS must be four numbers of at least 0 "
            f"({', '.join(PREDICTORS)}) or empty, got {given}."
        )
    return given


def _scale_from_config(node: CfgNode, kind: str) -> float:
    key = f"{kind.upper()}_ROI_SCALE"
    if not 0 < node[key] < math.inf:
        raise UserError(f"MODEL.DOUBLE_HEAD.{key} must be larger than 0, got {node[key]}.")
    return node[key]


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf


def _check_trained(trained: dict[str, float], node: CfgNode) -> None:
    for task, what in (("cls", "classifies"), ("reg", "regresses boxes")):
        if not any(name.endswith(task) for name in trained):
            raise UserError(
                f"No tower of Double-Head {what}, because both {task} losses have weight 0: "
                "change the OMEGA, LAMBDA or LOSS_WEIGHTS of MODEL.DOUBLE_HEAD."
            )
    kinds = {kind_of(name) for name in trained}
    if "conv" in kinds and node.NUM_BLOCKS == 0:
        raise UserError(
            "MODEL.DOUBLE_HEAD.NUM_BLOCKS is 0, which leaves no conv tower for the losses of "
            f"{', '.join(name for name in trained if kind_of(name) == 'conv')}: set it to at "
            "least 1, or their LOSS_WEIGHTS to 0."
        )
    if node.SEPARATE_TOWERS and len(kinds) == 2:
        raise UserError(
            "MODEL.DOUBLE_HEAD.SEPARATE_TOWERS needs both tasks in towers of one kind, but "
            f"{', '.join(trained)} have loss weights: set LOSS_WEIGHTS for fc or conv alone."
        )


def _not_trained(key: str, value: str, predictor: str) -> UserError:
    return UserError(
        f"MODEL.DOUBLE_HEAD.{key} {value!r} needs {predictor}, which is not trained because its "
        "loss weight is 0: choose another source, or give it weight by LAMBDA or LOSS_WEIGHTS."
    )
