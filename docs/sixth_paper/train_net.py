"""Trains and evaluates the KL loss and its baselines: `train_net.py --help` says how."""

import sys

from clsloc.engine import argument_parser, run
from kl_loss import add_kl_loss_config

if __name__ == "__main__":
    sys.exit(run(argument_parser().parse_args(), [add_kl_loss_config]))
