"""``python -m clsloc.train``: trains or evaluates any config of the core and of all projects.

The ``train_net.py`` of a project does the same; this one needs no project.
"""

import sys

from clsloc.engine import argument_parser, run

EXAMPLES = """
Examples:
  %(prog)s --config-file digits/faster_rcnn_R_18_FPN.yaml
  %(prog)s --config-file F --num-gpus 8 OUTPUT_DIR output/mine
  %(prog)s --config-file F --resume OUTPUT_DIR output/mine
  %(prog)s --config-file output/mine/config.yaml --eval-only \\
    MODEL.WEIGHTS output/mine/model_final.pth OUTPUT_DIR output/mine_eval
"""

if __name__ == "__main__":
    parser = argument_parser(EXAMPLES)
    parser.prog = "python -m clsloc.train"
    sys.exit(run(parser.parse_args()))
