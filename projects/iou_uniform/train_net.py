"""Trains and evaluates IoU-uniform R-CNN and its baselines: `train_net.py --help` says how."""

import sys

from clsloc.engine import argument_parser, run
from iou_uniform import add_iou_uniform_config

if __name__ == "__main__":
    sys.exit(run(argument_parser().parse_args(), [add_iou_uniform_config]))
