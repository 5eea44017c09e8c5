"""Trains and evaluates DDOD and its baselines: `train_net.py --help` says how."""

import sys

from clsloc.engine import argument_parser, run
from ddod import add_ddod_config

if __name__ == "__main__":
    sys.exit(run(argument_parser().parse_args(), [add_ddod_config]))
