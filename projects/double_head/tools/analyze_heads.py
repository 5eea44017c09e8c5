#!/usr/bin/env python
"""Measure how scores and boxes of a trained Double-Head follow the overlap with an object.

  analyze_heads.py --config-file F --output DIR --images 100 MODEL.WEIGHTS model_final.pth

For each object of the first dataset of DATASETS.TEST some 14,000 windows around it are scored and
regressed by every tower (section 3 of the paper). In DIR then are

  analysis.json   mean and spread of score and of the IoU after regression in 20 bins of the IoU
                  before, for all, small, medium and large objects; Pearson's coefficient of IoU and
                  score for windows, proposals and detections; how alike the cells of the towers are
  windows.png     Figure 2: score and IoU after regression against the IoU before
  cells.png       Figure 4: cosine similarities of the cells, 7x7 tiles of 7x7

One tower alone is analysed with its own config, such as table1_single_fc. On a CPU, where
all windows take long, --windows 500 draws some of those of an object.
"""

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from clsloc.analysis import tile
from clsloc.checkpoint import Checkpointer
from clsloc.cli import make_parser, run, write_json
from clsloc.engine import setup_cfg
from clsloc.errors import UserError
from clsloc.gauges.plots import check_matplotlib
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.detection_utils import build_augmentation
from detectron2.modeling import build_model
from double_head import add_double_head_config
from double_head.analysis import HeadAnalysis, difficulty_of_classes
from double_head.mode_evaluation import check_towers


def parser() -> argparse.ArgumentParser:
    result = make_parser(__doc__)
    add = result.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the results")
    add("--images", type=int, metavar="N", help="images, drawn by --seed (default: all)")
    add("--windows", type=int, metavar="N", help="windows of an object, drawn (default: 14,175)")
    add("--seed", type=int, default=0, metavar="N", help="of what is drawn (default 0)")
    add("--class-ap", type=Path, metavar="FILE", help="JSON, class name to AP of a baseline: adds "
        "the groups of easy and hard classes")  # fmt: skip
    return result


def main(args: argparse.Namespace) -> None:
    for name in ("images", "windows"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name} {value} is too few; give at least 1.")
    check_matplotlib()
    cfg = setup_cfg(args, config_functions=[add_double_head_config])
    check_towers(cfg)
    items = open_items(cfg, args)
    model = build_model(cfg).eval()
    Checkpointer(model, complete=True).load(cfg.MODEL.WEIGHTS)
    difficulties = read_difficulties(args.class_ap, cfg.DATASETS.TEST[0]) if args.class_ap else None
    analysis = HeadAnalysis(model, difficulties=difficulties, windows=args.windows, seed=args.seed)
    for number, item in enumerate(items, start=1):
        analysis.add(item)
        print(f"\r{number} of {len(items)} images", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    report = {"dataset": cfg.DATASETS.TEST[0], "images": len(items), **analysis.report()}
    if not report["groups"]:
        raise UserError(f"The dataset {report['dataset']!r} has no objects in these images.")
    for path in filter(None, (args.output / "analysis.json", args.json)):
        write_json(report, path)
    draw_windows(report, args.output / "windows.png")
    draw_cells(report, args.output / "cells.png")
    print(tables(report))


class Items:
    """Images with their objects, read one by one."""

    def __init__(self, records: list[dict[str, Any]], mapper: DatasetMapper) -> None:
        self._records, self._mapper = records, mapper

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._mapper(self._records[index])


def open_items(cfg: CfgNode, args: argparse.Namespace) -> Items:
    records = get_detection_dataset_dicts(cfg.DATASETS.TEST[0], filter_empty=False)
    if args.images is not None and args.images < len(records):
        records = random.Random(args.seed).sample(records, args.images)
    # As in a test, with the objects; crowds are none.
    mapper = DatasetMapper(
        cfg, is_train=True, augmentations=build_augmentation(cfg, is_train=False)
    )
    return Items(records, mapper)


def read_difficulties(path: Path, dataset: str) -> dict[int, str]:
    names = MetadataCatalog.get(dataset).thing_classes
    try:
        aps = json.loads(path.read_text(encoding="utf-8"))
        return difficulty_of_classes({i: float(aps[name]) for i, name in enumerate(names)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{str(path)!r} is no JSON file with an AP for each class of {dataset!r}: {error!r}."
        ) from error


def tables(report: dict[str, Any]) -> str:
    groups = report["groups"]
    everything = groups["all"]
    series = {
        f"{what}, {kind}": by_bin["mean"]
        for what in ("score", "iou")
        for kind, by_bin in everything[what].items()
    }
    rows = zip(report["bins"], everything["count"], *series.values())
    by_bin = tabulate(rows, headers=["IoU from", "windows", *series], floatfmt=".3f")
    pearson = [[f"windows, {name}", *group["pcc"].values()] for name, group in groups.items()]
    pearson.append(["proposals", *report["proposals"].values()])
    by_group = tabulate(pearson, headers=["IoU and score", *everything["pcc"]], floatfmt=".3f")
    return f"{by_bin}\n\n{by_group}\ndetections: {report['detections']:.3f}"


def draw_windows(report: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((9, 3.6), layout="constrained")
    centres = [low + 0.5 / len(report["bins"]) for low in report["bins"]]
    titles = {"score": "score of the class", "iou": "IoU after regression"}
    for axes, (what, title) in zip(figure.subplots(1, 2), titles.items()):
        for kind, by_bin in report["groups"]["all"][what].items():
            axes.errorbar(centres, by_bin["mean"], yerr=by_bin["std"], label=kind, capsize=2)
        axes.set(xlabel="IoU of the window", ylabel=title, xlim=(0, 1), ylim=(0, 1.05))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)


def draw_cells(report: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((4 * len(report["cells"]), 4), layout="constrained")
    (all_axes,) = figure.subplots(1, len(report["cells"]), squeeze=False)
    for axes, (name, similarity) in zip(all_axes, report["cells"].items()):
        side = round(len(similarity) ** 0.5)
        picture = axes.imshow(tile(torch.tensor(similarity), side, side).numpy(), vmin=0, vmax=1)
        axes.set(title=name, xticks=[], yticks=[])
    figure.colorbar(picture, ax=list(all_axes))
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(run(main, parser()))
