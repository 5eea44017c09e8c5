"""What a Decoupled R-CNN consists of, resolved from the config and checked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from clsloc.config import check_choice
from clsloc.errors import UserError
from clsloc.nms import SOFT_NMS_METHODS
from detectron2.config import CfgNode

__all__ = ["DecoupledPlan", "TestStages"]

SAMPLERS = ("positive", "random", "shared")
NORMS = ("batch", "positives")


@dataclass(frozen=True)
class TestStages:
    """
    Where boxes and scores come from at inference; stages count from 0.

    Attributes:
        reg: the regressor whose boxes are used.
        cls: the classifiers whose probabilities are averaged; rising, at least one.
    """

    reg: int
    cls: tuple[int, ...]

    @classmethod
    def from_config(cls, cfg: CfgNode, num_reg: int, num_cls: int) -> "TestStages":
        """
        Args:
            num_reg, num_cls: regressors and classifiers that exist.

        Raises:
            UserError: if the config asks for others.
        """
        reg, classifiers = cfg.MODEL.DECOUPLED.TEST_REG_STAGE, cfg.MODEL.DECOUPLED.TEST_CLS_STAGES
        if not -1 <= reg < num_reg:
            raise UserError(
                f"MODEL.DECOUPLED.TEST_REG_STAGE must be one of the {num_reg} regressors, counted "
                f"from 0, or -1 for the last, got {reg}."
            )
        if not all(stage in range(num_cls) for stage in classifiers):
            raise UserError(
                f"MODEL.DECOUPLED.TEST_CLS_STAGES must name some of the {num_cls} classifier(s), "
                f"counted from 0, or be () for all, got {tuple(classifiers)}."
            )
        chosen = tuple(sorted(set(classifiers))) or tuple(range(num_cls))
        return cls(num_reg - 1 if reg == -1 else reg, chosen)


@dataclass(frozen=True)
class DecoupledPlan:
    """
    The parts of a detector; every tuple has an entry for each regressor, or for each classifier.

    Attributes:
        reg_ious: IoU from which on a box is a positive of a regressor.
        reg_coder_weights: weights of the box deltas.
        reg_agnostic: whether all classes share one box.
        reg_loss_weights: weight of the loss, lambda times that of the stage.
        cls_ious: IoU at which the samples of a classifier are labelled.
        cls_loss_weights: weight of the loss.
        shared_fc: one head for the classifier and the regressor.
        sampler: see `MODEL.DECOUPLED.REG_SAMPLER`.
        normalise_by_positives: divide a box loss by its positives, not by the mini-batch.
        test: what inference uses.
    """

    reg_ious: tuple[float, ...]
    reg_coder_weights: tuple[tuple[float, float, float, float], ...]
    reg_agnostic: tuple[bool, ...]
    reg_loss_weights: tuple[float, ...]
    cls_ious: tuple[float, ...]
    cls_loss_weights: tuple[float, ...]
    shared_fc: bool
    sampler: str
    normalise_by_positives: bool
    test: TestStages

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "DecoupledPlan":
        """
        Raises:
            UserError: if `MODEL.DECOUPLED` describes no detector.
        """
        node = cfg.MODEL.DECOUPLED
        if node.NUM_REG_STAGES < 1:
            raise UserError(
                "MODEL.DECOUPLED.NUM_REG_STAGES must be at least 1, the one regressor of a plain "
                f"detector, got {node.NUM_REG_STAGES}."
            )
        check_choice("MODEL.DECOUPLED.REG_SAMPLER", node.REG_SAMPLER, SAMPLERS)
        if node.REG_SAMPLER == "shared" and node.REG_APPEND_GT:
            raise UserError(
                "MODEL.DECOUPLED.REG_SAMPLER 'shared' takes its positives from the samples of the "
                "classifier, so REG_APPEND_GT appends nothing: set it to False."
            )
        check_choice("MODEL.DECOUPLED.REG_LOSS_NORM", node.REG_LOSS_NORM, NORMS)
        check_choice("MODEL.DECOUPLED.SOFT_NMS_METHOD", node.SOFT_NMS_METHOD, SOFT_NMS_METHODS)
        _check_positive("REG_ROI_SCALE", node.REG_ROI_SCALE)
        _check_positive("SOFT_NMS_SIGMA", node.SOFT_NMS_SIGMA)
        agnostic = _per_stage(node, "CLS_AGNOSTIC")
        coder_weights = tuple(map(_coder_weights, _per_stage(node, "BBOX_REG_WEIGHTS")))
        _check_shared_fc(cfg)
        weights = _per_stage(node, "STAGE_LOSS_WEIGHTS")
        cls_ious, cls_weights = (cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[-1],), (1.0,)
        if node.CASCADE_CLS:
            cls_ious, cls_weights = _per_stage(node, "CLS_IOUS"), weights
            _check_cascade_cls(cfg, agnostic)
        return cls(
            reg_ious=_per_stage(node, "REG_IOUS"),
            reg_coder_weights=coder_weights,
            reg_agnostic=agnostic,
            reg_loss_weights=tuple(node.LOSS_LAMBDA * weight for weight in weights),
            cls_ious=cls_ious,
            cls_loss_weights=cls_weights,
            shared_fc=node.SHARED_FC,
            sampler=node.REG_SAMPLER,
            normalise_by_positives=node.REG_LOSS_NORM == "positives",
            test=TestStages.from_config(cfg, node.NUM_REG_STAGES, len(cls_ious)),
        )


def _per_stage(node: CfgNode, key: str) -> tuple:
    values = node[key]
    if len(values) < node.NUM_REG_STAGES:
        raise UserError(
            f"MODEL.DECOUPLED.{key} needs an entry for each of the {node.NUM_REG_STAGES} "
            f"regression stages, got {tuple(values)}."
        )
    return tuple(values[: node.NUM_REG_STAGES])


def _coder_weights(values: Sequence[float]) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or len(values) != 4:
        raise UserError(
            "Each entry of MODEL.DECOUPLED.BBOX_REG_WEIGHTS must be four numbers, for dx, dy, dw "
            f"and dh, got {values!r}."
        )
    return tuple(values)


def _check_positive(key: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise UserError(f"MODEL.DECOUPLED.{key} must be larger than 0, got {value}.")


def _check_shared_fc(cfg: CfgNode) -> None:
    node = cfg.MODEL.DECOUPLED
    if not node.SHARED_FC:
        return
    if node.NUM_REG_STAGES != 1:
        raise UserError(
            "MODEL.DECOUPLED.SHARED_FC shares layers between one classifier and one regressor, but "
            f"NUM_REG_STAGES is {node.NUM_REG_STAGES}: set it to 1."
        )
    if node.REG_HEAD != cfg.MODEL.ROI_BOX_HEAD.NAME:
        raise UserError(
            "MODEL.DECOUPLED.SHARED_FC needs equal heads for both tasks, but REG_HEAD is "
            f"{node.REG_HEAD!r} and MODEL.ROI_BOX_HEAD.NAME is {cfg.MODEL.ROI_BOX_HEAD.NAME!r}."
        )


def _check_cascade_cls(cfg: CfgNode, agnostic: tuple[bool, ...]) -> None:
    node, first = cfg.MODEL.DECOUPLED, cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS
    if not all(agnostic):
        raise UserError(
            "MODEL.DECOUPLED.CASCADE_CLS refines background too, which has no class to pick a box "
            f"by: set CLS_AGNOSTIC to True for all stages, not {agnostic}."
        )
    if list(first) != [node.CLS_IOUS[0]]:
        raise UserError(
            "The first classifier trains on the sampled proposals, so the first of "
            f"MODEL.DECOUPLED.CLS_IOUS {tuple(node.CLS_IOUS)} must be that of "
            f"MODEL.ROI_HEADS.IOU_THRESHOLDS {tuple(first)}."
        )
