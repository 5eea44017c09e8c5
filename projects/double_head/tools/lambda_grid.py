#!/usr/bin/env python
"""Train Double-Head-Ext on a grid of (lambda_fc, lambda_conv); evaluate each in Figure 8's modes.

  lambda_grid.py --config-file F --output DIR --lambda-fc 0.7 1.0 --lambda-conv 0.8 1.0

Each pair gets a folder below DIR. A pair that is finished is not trained again, one that was
broken off is resumed. By default these are 36 trainings.
"""

import argparse
import json
import subprocess
import sys
from itertools import product
from pathlib import Path

from tabulate import tabulate

from clsloc.cli import make_parser, run, write_json
from clsloc.engine import setup_cfg
from clsloc.errors import UserError
from double_head import MODES, add_double_head_config
from double_head.mode_evaluation import check_comparable

PROJECT = Path(__file__).resolve().parents[1]
STEPS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def parser() -> argparse.ArgumentParser:
    result = make_parser(__doc__)
    add = result.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder of all runs")
    values = "values (default " + " ".join(map(str, STEPS)) + ")"
    add("--lambda-fc", type=float, nargs="+", default=STEPS, metavar="L", help=values)
    add("--lambda-conv", type=float, nargs="+", default=STEPS, metavar="L", help=values)
    add("--num-gpus", type=int, default=1, metavar="N", help="processes of a training (default 1)")
    add("--metric", default="AP", help="metric in the printed tables (default AP)")
    return result


def main(args: argparse.Namespace) -> None:
    check_comparable(setup_cfg(args, config_functions=[add_double_head_config]))
    pairs = list(product(args.lambda_fc, args.lambda_conv))
    reports = {pair: run_pair(args, *pair) for pair in pairs}
    if args.json:
        pairs_report = [
            {"lambda_fc": fc, "lambda_conv": conv, "modes": reports[fc, conv]} for fc, conv in pairs
        ]
        write_json(pairs_report, args.json)
    for mode in MODES:
        print(f"\n{args.metric}, mode {mode}; rows lambda_conv, columns lambda_fc")
        table = [
            [conv, *(metric_of(reports[fc, conv], mode, args.metric) for fc in args.lambda_fc)]
            for conv in sorted(args.lambda_conv, reverse=True)
        ]
        print(tabulate(table, headers=["", *map(str, args.lambda_fc)], floatfmt=".1f"))


def run_pair(args: argparse.Namespace, lambda_fc: float, lambda_conv: float) -> dict:
    """Train and evaluate one pair unless that was done; returns the report of evaluate_modes."""
    folder = args.output / f"fc_{lambda_fc}_conv_{lambda_conv}"
    report = folder / "modes.json"
    overrides = [
        *args.opts,
        *("MODEL.DOUBLE_HEAD.LAMBDA_FC", str(lambda_fc)),
        *("MODEL.DOUBLE_HEAD.LAMBDA_CONV", str(lambda_conv)),
        *("MODEL.DOUBLE_HEAD.LOSS_WEIGHTS", "[]"),  # or it would replace the lambdas
        *("OUTPUT_DIR", str(folder)),
    ]
    if not (folder / "results.json").exists():
        resume = ["--resume"] if (folder / "last_checkpoint").exists() else []
        gpus = ["--num-gpus", str(args.num_gpus)]
        call(args, "train_net.py", [*gpus, *resume], overrides)
    if not report.exists():
        weights = ["MODEL.WEIGHTS", str(folder / "model_final.pth")]
        call(args, "tools/evaluate_modes.py", ["--json", str(report)], [*overrides, *weights])
    return json.loads(report.read_text(encoding="utf-8"))


def call(args: argparse.Namespace, program: str, flags: list[str], overrides: list[str]) -> None:
    for flag in ("coco", "voc", "wider_face"):
        for dataset in getattr(args, flag) or ():
            flags = [*flags, f"--{flag.replace('_', '-')}", *dataset]
    command = [sys.executable, str(PROJECT / program), "--config-file", args.config_file]
    status = subprocess.run([*command, *flags, *overrides], check=False).returncode
    if status:
        raise UserError(f"{program} ended with status {status}; the grid was not finished.")


def metric_of(report: dict, mode: str, metric: str) -> float | None:
    """The metric on the first dataset; None where the mode does not exist."""
    if mode not in report:
        return None
    figures = next(iter(report[mode].values()))["bbox"]
    if metric not in figures:
        raise UserError(
            f"--metric {metric} was not measured: choose one of {', '.join(figures)}; what is "
            "trained is kept, so the same command with another metric only prints."
        )
    return figures[metric]


if __name__ == "__main__":
    sys.exit(run(main, parser()))
