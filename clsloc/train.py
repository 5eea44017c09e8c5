"""``python -m clsloc.train``: trains or evaluates any config of the core and of all projects.

The ``train_net.py`` of a project does the same; this one needs no project.
"""

import sys

from clsloc.engine import argument_parser, run

if __name__ == "__main__":
    sys.exit(run(argument_parser().parse_args()))
