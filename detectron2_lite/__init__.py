"""Lets ``import detectron2`` fall back on the embedded runtime when no real Detectron2 is there.

The runtime is the package ``detectron2`` inside this folder. It is never on ``sys.path``: the
finder below, which a ``.pth`` file installs at interpreter start, is what makes it importable.
Python reads this file at every start, so it stays small and imports next to nothing.
"""

import os
import sys

_NAME = "detectron2"
RUNTIME = os.path.join(os.path.dirname(os.path.abspath(__file__)), _NAME)


class RuntimeFinder:
    """Finds a real ``detectron2`` wherever any other finder knows one, else the embedded one.

    It stands first on ``sys.meta_path`` and asks everybody else before it answers itself. Had it
    been appended instead, the path finder would have answered first, and any plain folder called
    ``detectron2`` in the working directory would hide both the runtime and an editable install.
    """

    def find_spec(self, name, path=None, target=None):
        """The spec of the package ``detectron2``; None for every other name."""
        if name != _NAME:
            return None
        for finder in list(sys.meta_path):
            if _is_runtime_finder(finder) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            # A spec without a loader is a namespace: a folder of that name, no package.
            if spec is not None and spec.loader is not None:
                return spec

        from importlib.util import spec_from_file_location

        return spec_from_file_location(
            _NAME, os.path.join(RUNTIME, "__init__.py"), submodule_search_locations=[RUNTIME]
        )


def _is_runtime_finder(finder):
    # By name, so that a second copy of this module cannot ask the first one for ever.
    return type(finder).__qualname__ == RuntimeFinder.__qualname__


def install():
    """Put the finder first on ``sys.meta_path``, unless one is there already."""
    if not any(_is_runtime_finder(finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, RuntimeFinder())
