"""Trains and evaluates G-RCN, ResNet-det and their baselines: `train_net.py --help` says how."""

import sys

from clsloc.engine import argument_parser, run
from grcn import add_grcn_config

if __name__ == "__main__":
    sys.exit(run(argument_parser().parse_args(), [add_grcn_config]))
