#!/usr/bin/env python
"""Print the parameters and FLOPs of a model, in total and by part."""

import argparse
import sys
from typing import Any

from tabulate import tabulate

from clsloc import cli
from clsloc.engine import setup_cfg
from clsloc.errors import UserError
from clsloc.model_info import NUM_ROIS, model_info
from detectron2.config import CfgNode
from detectron2.modeling import build_model


def parser() -> argparse.ArgumentParser:
    result = cli.make_parser(
        f"{__doc__}\n\nFLOPs are multiply-adds of the inference on one image, with {NUM_ROIS} "
        "proposals in the RoI heads and\nlazy localisation off.",
        datasets=False,
    )
    result.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="size of the image as the model gets it; by default that of a 4:3 image at "
        "INPUT.MIN_SIZE_TEST, rounded up to a multiple of 32",
    )
    return result


def main(args: argparse.Namespace) -> None:
    """Build the model of a config and report on it."""
    cfg = setup_cfg(args, overrides=["CLSLOC.LAZY_LOCALISATION", False])
    size = tuple(args.size or _default_size(cfg))
    if min(size) < 1:
        raise UserError(
            f"--size {size[0]} {size[1]} is not the size of an image; give two lengths."
        )
    report = _report(cfg, size)
    print(_table(report))
    if args.json:
        cli.write_json(report, args.json)


def _report(cfg: CfgNode, size: tuple[int, int]) -> dict[str, Any]:
    model, usual = build_model(cfg), _default_size(cfg)
    try:
        return model_info(model, size)
    except (RuntimeError, ValueError) as error:
        if size == usual:
            raise
        model_info(model, usual)  # fails as well, unless the size is to blame
        first_line = str(error).strip().split("\n")[0]
        other = "larger" if min(size) < min(usual) else "smaller"
        raise UserError(
            f"The model cannot take --size {size[0]} {size[1]} ({first_line}); give a {other} "
            f"--size, such as {usual[0]} {usual[1]}."
        ) from error


def _default_size(cfg: CfgNode) -> tuple[int, int]:
    short = cfg.INPUT.MIN_SIZE_TEST or 800
    long = min(short * 4 / 3, cfg.INPUT.MAX_SIZE_TEST)
    return tuple(int(-(-side // 32) * 32) for side in (short, long))


def _table(report: dict[str, Any]) -> str:
    total = {"params": report["params_total"], "flops": report["flops"]}
    rows = [
        (name, f"{part['params']:,}", f"{part['flops'] / 1e9:.3f}")
        for name, part in {"total": total, **report["parts"]}.items()
    ]
    height, width = report["input_size"]
    return (
        tabulate(rows, headers=["part", "parameters", "GFLOPs"], colalign=["left"] + ["right"] * 2)
        + f"\n\n{report['params_trainable']:,} parameters are trainable; "
        + f"FLOPs at {height}x{width} with {report['num_rois']} RoIs."
    )


if __name__ == "__main__":
    sys.exit(cli.run(main, parser()))
