"""Evaluation of one model with several sources of scores and boxes, from one pass (Figure 8)."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from clsloc.engine import Trainer
from clsloc.errors import UserError
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from double_head.plan import MODES, HeadPlan, resolve_test_sources

__all__ = [
    "ROWS",
    "available_rows",
    "check_comparable",
    "check_towers",
    "detect_in_rows",
    "evaluate_rows",
]

# The modes of Figure 8, and Table 3's fusions; "split" is without fusion, "fused" complementary.
ROWS = {**MODES, "max": ("max", "conv"), "average": ("average", "conv")}


def check_towers(cfg: CfgNode) -> None:
    """
    Raises:
        UserError: the config is of another detector, or has no dataset to look at its towers with.
    """
    if cfg.MODEL.ROI_HEADS.NAME != "DoubleHeadROIHeads":
        raise UserError(
            "The config has none of the towers of Double-Head: MODEL.ROI_HEADS.NAME is "
            f"{cfg.MODEL.ROI_HEADS.NAME!r}, not 'DoubleHeadROIHeads'."
        )
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty; name the datasets to evaluate on.")


def check_comparable(cfg: CfgNode) -> None:
    """
    Raises:
        UserError: as of `check_towers`, or a dataset is not scored by box AP.
    """
    check_towers(cfg)
    for name in cfg.DATASETS.TEST:
        if MetadataCatalog.get(name).get("evaluator_type") == "wider_face":
            raise UserError(
                f"The modes are compared in box AP, and the dataset {name!r} has the measure of "
                "WIDER FACE alone; name another one in DATASETS.TEST."
            )


def available_rows(plan: HeadPlan) -> dict[str, tuple[str, str]]:
    """Those of `ROWS` whose predictors are trained: name to (score, box)."""
    rows = {}
    for name, sources in ROWS.items():
        try:
            rows[name] = resolve_test_sources(plan.loss_weights, *sources)
        except UserError:
            continue
    return rows


def evaluate_rows(
    cfg: CfgNode, model: torch.nn.Module, rows: Mapping[str, tuple[str, str]]
) -> dict[str, dict[str, Any]]:
    """
    Evaluate a detector once for each row, with one pass over each dataset of `DATASETS.TEST`.

    Args:
        cfg: the detector's; predictions are written to `inference/<dataset>/<row>` in OUTPUT_DIR.
        model: a `GeneralizedRCNN` with `DoubleHeadROIHeads`.
        rows: name to (score, box).

    Returns:
        Per row and dataset, what its evaluator returns.
    """
    results: dict[str, dict[str, Any]] = {name: {} for name in rows}
    model.eval()
    for dataset in cfg.DATASETS.TEST:
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset)
        evaluators = {
            name: Trainer.build_evaluator(cfg, dataset, os.path.join(folder, name)) for name in rows
        }
        for evaluator in evaluators.values():
            evaluator.reset()
        for inputs in Trainer.build_test_loader(cfg, dataset):
            for name, outputs in detect_in_rows(model, inputs, rows).items():
                evaluators[name].process(inputs, outputs)
        for name, evaluator in evaluators.items():
            results[name][dataset] = evaluator.evaluate()
    return results


@torch.no_grad()
def detect_in_rows(
    model: torch.nn.Module,
    inputs: list[dict[str, Any]],
    rows: Mapping[str, tuple[str, str]],
) -> dict[str, list[dict[str, Instances]]]:
    """For each row, what the model returns for a batch when its config asks for these sources."""
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    proposals, _ = model.proposal_generator(images, features, None)
    predictions = model.roi_heads.raw_outputs(features, proposals).predictions
    return {
        name: [
            {
                "instances": detector_postprocess(
                    found, item.get("height", size[0]), item.get("width", size[1])
                )
            }
            for found, item, size in zip(
                model.roi_heads.detect(predictions, proposals, *sources),
                inputs,
                images.image_sizes,
                strict=True,
            )
        ]
        for name, sources in rows.items()
    }
