#!/usr/bin/env python
"""Evaluate one trained Double-Head in every mode of Figure 8 and with every fusion of Table 3.

  evaluate_modes.py --config-file F MODEL.WEIGHTS model_final.pth

All rows come from one pass over the data. Rows that need a predictor that was not trained are
left out.
"""

import argparse
import sys

from tabulate import tabulate

from clsloc.checkpoint import Checkpointer
from clsloc.cli import make_parser, run, write_json
from clsloc.engine import setup_cfg
from clsloc.errors import UserError
from detectron2.modeling import build_model
from double_head import add_double_head_config
from double_head.mode_evaluation import available_rows, check_comparable, evaluate_rows

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def parser() -> argparse.ArgumentParser:
    return make_parser(__doc__)


def main(args: argparse.Namespace) -> None:
    cfg = setup_cfg(args, config_functions=[add_double_head_config])
    check_comparable(cfg)
    if not cfg.MODEL.WEIGHTS:
        raise UserError("There are no weights to evaluate: append MODEL.WEIGHTS FILE.")
    model = build_model(cfg)
    Checkpointer(model, complete=True).load(cfg.MODEL.WEIGHTS)
    rows = available_rows(model.roi_heads.box_predictor.plan)
    results = evaluate_rows(cfg, model, rows)
    for dataset in cfg.DATASETS.TEST:
        table = [
            [name, *rows[name], *(results[name][dataset]["bbox"][m] for m in METRICS)]
            for name in rows
        ]
        print(f"\n{dataset}")
        print(tabulate(table, headers=["row", "score", "box", *METRICS], floatfmt=".1f"))
    if args.json:
        write_json(results, args.json)


if __name__ == "__main__":
    sys.exit(run(main, parser()))
