"""The flags of the training programs: Detectron2's, and those that register datasets."""

import argparse

from detectron2.engine import default_argument_parser

DESCRIPTION = (
    "Train the detector of a config and evaluate it, or evaluate it alone with --eval-only.\n"
    "OUTPUT_DIR gets log.txt, metrics.json, checkpoints, config.yaml and results.json."
)
CONFIG_FILE_HELP = "YAML file, or a name in clsloc/configs or in Detectron2's model zoo"
# Of flags that Detectron2 explains otherwise than they are here.
HELP = {
    "config_file": CONFIG_FILE_HELP,
    "resume": "go on from the last checkpoint in OUTPUT_DIR; there has to be one",
    "num_gpus": "GPUs of this machine, or processes where it has none",
}


def argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Detectron2's parser with ``--coco``, ``--voc`` and ``--wider-face``, and a free port as
    default for ``--dist-url`` so that two runs of one user never collide."""
    parser = default_argument_parser(epilog)
    parser.description = DESCRIPTION
    parser.set_defaults(dist_url="auto")
    for action in parser._actions:  # argparse offers no other way
        action.help = HELP.get(action.dest, action.help)
    add_dataset_flags(parser)
    return parser


def add_dataset_flags(parser: argparse.ArgumentParser) -> None:
    """Add the repeatable flags that register a dataset; :func:`setup_cfg` reads them."""
    parser.add_argument(
        "--coco",
        nargs=3,
        action="append",
        metavar=("NAME", "JSON", "IMAGES"),
        help="register a COCO JSON file and its folder of images as NAME (repeatable)",
    )
    parser.add_argument(
        "--voc",
        nargs=3,
        action="append",
        metavar=("NAME", "DIR", "SPLIT"),
        help="register a split of a folder in the layout of PASCAL VOC as NAME (repeatable)",
    )
    parser.add_argument(
        "--wider-face",
        nargs=3,
        action="append",
        metavar=("NAME", "ROOT", "SPLIT"),
        help="register a split (train, val, test) of WIDER FACE in the folder ROOT as NAME "
        "(repeatable); those in $DETECTRON2_DATASETS/wider_face are wider_face_<split>",
    )
