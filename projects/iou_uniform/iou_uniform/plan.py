"""
What an IoU-uniform R-CNN consists of, resolved from the config.

An output is named after what it predicts: "cls" classes, "reg" boxes, "iou" the IoU. A tower is one
of the two branches of a RoI: "cls" or "loc".
"""

import json
import math
from dataclasses import dataclass

from clsloc.config import check_choice
from clsloc.errors import UserError
from clsloc.samplers import IoUUniformSampler
from detectron2.config import CfgNode
from iou_uniform.config import add_iou_uniform_config

__all__ = ["HeadPlan", "sampler_from_config", "stage_samplers_from_config"]

SAMPLER_KEYS = ("INTERVALS", "OFFSETS", "SCALES", "SAMPLES_PER_GT")


@dataclass(frozen=True)
class HeadPlan:
    """
    Which outputs exist, which tower each of them reads, and which boxes it trains on.

    Attributes:
        towers: name of the tower that each output reads.
        samples: for "reg" and "iou", "uniform" or "rpn".
        efo: whether the IoU is predicted at the refined box, rather than at the proposal.
        match_factor: as many uniform samples in an image as this times its foreground samples;
            None: all that were drawn.
        max_samples: uniform samples in an image at most.
    """

    towers: dict[str, str]
    samples: dict[str, str]
    efo: bool
    match_factor: float | None
    max_samples: int

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "HeadPlan":
        """
        Raises:
            UserError: if the keys of `MODEL.IOU_UNIFORM` contradict each other.
        """
        node = cfg.MODEL.IOU_UNIFORM
        check_choice(
            "MODEL.IOU_UNIFORM.REG_BRANCH", node.REG_BRANCH, ("separate", "shared_with_cls")
        )
        check_choice("MODEL.IOU_UNIFORM.REG_SAMPLES", node.REG_SAMPLES, ("uniform", "rpn"))
        check_choice("MODEL.IOU_UNIFORM.IOU_SAMPLES", node.IOU_SAMPLES, ("uniform", "rpn"))
        check_choice("MODEL.IOU_UNIFORM.NUM_MODE", node.NUM_MODE, ("per_gt", "match_rpn"))
        if node.EFO and not node.WITH_IOU:
            raise UserError(
                "MODEL.IOU_UNIFORM.EFO updates predicted IoUs, and WITH_IOU False predicts none: "
                "set EFO to False."
            )
        shared = node.REG_BRANCH == "shared_with_cls"
        if shared and node.REG_SAMPLES != "rpn":
            raise UserError(
                "MODEL.IOU_UNIFORM.REG_BRANCH 'shared_with_cls' trains on the samples of the "
                f"classifier: set REG_SAMPLES to 'rpn', not {node.REG_SAMPLES!r}."
            )
        if not 0 < node.MATCH_FACTOR < math.inf:
            raise UserError(
                f"MODEL.IOU_UNIFORM.MATCH_FACTOR must be larger than 0, got {node.MATCH_FACTOR}."
            )
        if node.MAX_SAMPLES_PER_IMAGE < 1:
            raise UserError(
                "MODEL.IOU_UNIFORM.MAX_SAMPLES_PER_IMAGE must be at least 1, got "
                f"{node.MAX_SAMPLES_PER_IMAGE}."
            )
        towers = {"cls": "cls", "reg": "cls" if shared else "loc"}
        samples = {"reg": node.REG_SAMPLES}
        if node.WITH_IOU:
            towers["iou"], samples["iou"] = "loc", node.IOU_SAMPLES
        factor = node.MATCH_FACTOR if node.NUM_MODE == "match_rpn" else None
        return cls(towers, samples, node.EFO, factor, node.MAX_SAMPLES_PER_IMAGE)

    @property
    def with_iou(self) -> bool:
        """Whether the IoU is predicted."""
        return "iou" in self.towers

    @property
    def tower_names(self) -> tuple[str, ...]:
        """Names of the towers to build, each once."""
        return tuple(dict.fromkeys(self.towers.values()))

    def outputs_of(self, tower: str) -> list[str]:
        """The outputs that read a tower."""
        return [output for output, name in self.towers.items() if name == tower]

    def trained_on(self, source: str) -> list[str]:
        """The outputs that train on "uniform" or "rpn" samples."""
        return [output for output, samples in self.samples.items() if samples == source]


def sampler_from_config(cfg: CfgNode) -> IoUUniformSampler:
    """The sampler of `MODEL.IOU_UNIFORM`."""
    return _build_sampler(cfg.MODEL.IOU_UNIFORM, "MODEL.IOU_UNIFORM")


def stage_samplers_from_config(cfg: CfgNode) -> list[IoUUniformSampler]:
    """
    The samplers of the stages of `MODEL.IOU_UNIFORM.CASCADE`.

    Raises:
        UserError: if a stage has no entry there, or the keys of a single stage are set.
    """
    cascade, num_stages = cfg.MODEL.IOU_UNIFORM.CASCADE, len(cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS)
    add_iou_uniform_config(untouched := CfgNode({"MODEL": CfgNode()}))
    for key in SAMPLER_KEYS:
        value = cfg.MODEL.IOU_UNIFORM[key]
        # As text, since what is read from a file has lists in place of tuples.
        if json.dumps(value) != json.dumps(untouched.MODEL.IOU_UNIFORM[key]):
            raise UserError(
                f"MODEL.IOU_UNIFORM.{key} {value} is for a detector of one stage: set "
                f"MODEL.IOU_UNIFORM.CASCADE.{key}, which has an entry for each."
            )
    for key in (*SAMPLER_KEYS, "STAGE_LOSS_WEIGHTS"):
        if len(cascade[key]) != num_stages:
            raise UserError(
                f"MODEL.IOU_UNIFORM.CASCADE.{key} needs an entry for each of the {num_stages} "
                f"stages of MODEL.ROI_BOX_CASCADE_HEAD.IOUS, got {len(cascade[key])}."
            )
    return [
        _build_sampler(cfg.MODEL.IOU_UNIFORM, "MODEL.IOU_UNIFORM.CASCADE", stage)
        for stage in range(num_stages)
    ]


def _build_sampler(node: CfgNode, where: str, stage: int | None = None) -> IoUUniformSampler:
    own = {key: node[key] if stage is None else node.CASCADE[key][stage] for key in SAMPLER_KEYS}
    try:
        return IoUUniformSampler(
            intervals=own["INTERVALS"],
            offsets=own["OFFSETS"],
            scales=own["SCALES"],
            samples_per_gt=own["SAMPLES_PER_GT"],
            attempts=node.ATTEMPTS,
            max_rounds=node.MAX_ROUNDS,
            require_own_gt=node.REQUIRE_OWN_GT,
        )
    except ValueError as error:
        raise UserError(f"{where} describes no sampler: {error}") from error
