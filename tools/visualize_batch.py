#!/usr/bin/env python
"""Draw what a detector trains on: for images of DATASETS.TRAIN, one PNG file each.

Images come as in training, resized and augmented. Beside the objects a picture shows what the
model's own samplers and assigners choose: anchors that the RPN trains on, proposals that the RoI
heads sample, boxes drawn around objects; of one-stage detectors the positive anchors of
classification and of localisation, with their levels.
Objects are blue; samples that stand for an object green, of classification alone yellow, of
localisation alone violet; background is thin and red. Of anchors only the positive ones are drawn,
with dots in their centres, the larger the coarser the level.

  visualize_batch.py --config-file F --output DIR --num-images 8
Proposals, and labels that depend on predictions, are those of the weights; without --weights, of
the ones that training starts from.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clsloc import cli
from clsloc.checkpoint import Checkpointer
from clsloc.data.train_data import build_train_loader
from clsloc.data.train_loader import seed_generators
from clsloc.engine import setup_cfg
from clsloc.engine.checks import check_config
from clsloc.errors import UserError
from clsloc.files import make_folder, save_picture
from clsloc.sample_pictures import as_rgb, draw_samples, sample_figures
from clsloc.sample_record import SampleGroup, recorded_samples
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

Batch = list[dict[str, Any]]


def parser() -> argparse.ArgumentParser:
    result = cli.make_parser(__doc__)
    result.add_argument("--output", metavar="DIR", required=True, help="folder for the pictures")
    result.add_argument(
        "--num-images", type=int, default=8, metavar="N", help="images to draw (default 8)"
    )
    result.add_argument(
        "--weights",
        metavar="FILE",
        help="of the whole detector; default: MODEL.WEIGHTS of the config",
    )
    result.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of images and samples (default 0)"
    )
    return result


def main(args: argparse.Namespace) -> None:
    cfg = prepare(args)
    folder = make_folder(args.output)
    if args.json:
        cli.check_json(args.json)
    seed_generators(args.seed)
    model = build_model(cfg).train()
    if cfg.MODEL.WEIGHTS:
        # Training may start from a part of the weights; those named here fill the whole model.
        Checkpointer(model, complete=bool(args.weights)).load(cfg.MODEL.WEIGHTS)
    class_names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", [])
    level_names = levels_of(cfg, model)
    figures: list[dict[str, Any]] = []
    for batch, groups in steps(cfg, model, args.seed, args.num_images):
        for index, item in enumerate(batch):
            path = folder / f"{len(figures):03d}_{Path(item['file_name']).stem}.png"
            truth = item["instances"].to("cpu")
            image = as_rgb(item["image"], cfg.INPUT.FORMAT)
            picture = draw_samples(image, truth, class_names, groups, index, level_names)
            save_picture(picture, path)
            found = {g.name: sample_figures(g, index, truth, level_names) for g in groups}
            figures.append(
                {
                    "file_name": item["file_name"],
                    "picture": str(path),
                    "objects": len(truth),
                    "samples": found,
                }
            )
            print(f"{path}: {len(truth)} objects; {counts(found)}")
    if args.json:
        cli.write_json({"weights": cfg.MODEL.WEIGHTS, "images": figures}, args.json)


def prepare(args: argparse.Namespace) -> CfgNode:
    """The config, with small batches that load in this process."""
    if args.num_images < 1:
        raise UserError(f"--num-images {args.num_images} is too few; give at least 1.")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed} is negative; give 0 or more.")
    weights = ["MODEL.WEIGHTS", args.weights] if args.weights else []
    cfg = setup_cfg(args, overrides=["DATALOADER.NUM_WORKERS", 0, *weights], freeze=False)
    cfg.SOLVER.IMS_PER_BATCH = min(cfg.SOLVER.IMS_PER_BATCH, args.num_images)
    cfg.freeze()
    if not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty; name a dataset in it.")
    check_config(cfg, cfg.DATASETS.TRAIN)
    return cfg


def steps(
    cfg: CfgNode, model: nn.Module, seed: int, num_images: int
) -> Iterator[tuple[Batch, list[SampleGroup]]]:
    """Batches with what the model chose to train on, for that many images in all."""
    for batch in build_train_loader(cfg, seed):
        batch = batch[:num_images]
        with torch.no_grad(), EventStorage(), recorded_samples(model) as groups:
            model(batch)
        if not groups:
            raise UserError(
                f"{type(model).__name__} does not tell what it samples; see record_samples in "
                "clsloc/sample_record.py."
            )
        yield batch, groups
        num_images -= len(batch)
        if num_images <= 0:
            return


def levels_of(cfg: CfgNode, model: nn.Module) -> list[str]:
    """The names of the levels that anchors stand on."""
    return list(getattr(model, "head_in_features", None) or cfg.MODEL.RPN.IN_FEATURES)


def counts(found: dict[str, dict[str, Any]]) -> str:
    return "; ".join(
        f"{name}: {group['positives']} positive"
        + (f", {group['negatives']} negative" if group["negatives"] else "")
        for name, group in found.items()
    )


if __name__ == "__main__":
    sys.exit(cli.run(main, parser()))
