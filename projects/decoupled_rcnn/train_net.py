"""Trains and evaluates Decoupled R-CNN and its baselines: `train_net.py --help` says how."""

import sys

from clsloc.engine import argument_parser, run
from decoupled_rcnn import add_decoupled_rcnn_config

if __name__ == "__main__":
    sys.exit(run(argument_parser().parse_args(), [add_decoupled_rcnn_config]))
