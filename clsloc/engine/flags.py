"""The flags of the training programs: Detectron2's, and those that register datasets."""

import argparse

from detectron2.engine import default_argument_parser


def argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Detectron2's parser with ``--coco``, ``--voc`` and ``--wider-face``, and a free port as
    default for ``--dist-url`` so that two runs of one user never collide."""
    parser = default_argument_parser(epilog)
    parser.set_defaults(dist_url="auto")
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
