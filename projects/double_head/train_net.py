"""Trains and evaluates Double-Head and its baselines: `train_net.py --help` says how."""

import sys

from clsloc.engine import argument_parser, run
from double_head import add_double_head_config

if __name__ == "__main__":
    sys.exit(run(argument_parser().parse_args(), [add_double_head_config]))
