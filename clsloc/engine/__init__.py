"""What every command needs: the config, the training loop and the entry function."""

from clsloc.engine.flags import add_dataset_flags, argument_parser
from clsloc.engine.main import main, run
from clsloc.engine.setup import setup_cfg
from clsloc.engine.trainer import Trainer

__all__ = ["Trainer", "add_dataset_flags", "argument_parser", "main", "run", "setup_cfg"]
