"""Finds the installed projects and adds their config nodes, without knowing any by name.

A project announces itself in the entry-point group ``clsloc.projects`` with an entry
``<name> = <name>:add_<name>_config``. In a source tree that is not installed, the folders
``projects/<name>/<name>`` beside the core are found as well.
"""

import importlib
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from pathlib import Path

from detectron2.config import CfgNode

GROUP = "clsloc.projects"
IN_TREE = Path(__file__).resolve().parents[2] / "projects"

ConfigFunction = Callable[[CfgNode], None]


def find_projects() -> dict[str, ConfigFunction]:
    """Import every project; returns its config function by its name, in alphabetical order.

    An installed project wins over an in-tree folder of the same name.
    """
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    functions = {name: entry.load() for name, entry in found.items()}
    for package in IN_TREE.glob("*/*/__init__.py"):
        name = package.parent.name
        if name == package.parents[1].name and name not in functions:
            functions[name] = _load_in_tree(name, package.parents[1])
    return dict(sorted(functions.items()))


def _load_in_tree(name: str, folder: Path) -> ConfigFunction:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return getattr(importlib.import_module(name), f"add_{name}_config")


def add_project_configs(cfg: CfgNode, extra: Iterable[ConfigFunction] = ()) -> None:
    """Add the node below ``MODEL`` of every project to ``cfg``; nodes already there stay.

    Args:
        cfg: changed in place.
        extra: config functions ``add_<name>_config`` of projects that cannot be found, say a
            package of one's own that lies on ``sys.path`` and is not installed.
    """
    functions = {_project_name(function): function for function in extra} | find_projects()
    for add_config in functions.values():
        there = dict(cfg.MODEL)
        add_config(cfg)
        cfg.MODEL.update(there)


def _project_name(function: ConfigFunction) -> str:
    return function.__name__.removeprefix("add_").removesuffix("_config")
