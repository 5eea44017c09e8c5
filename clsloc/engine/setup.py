"""From a config file, flags and overrides to the config that every tool works with."""

import argparse
import ast
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from clsloc.config import add_core_config
from clsloc.data import register_builtin_wider_face, register_datasets, register_digits
from clsloc.engine.checks import check_registry_names, check_values
from clsloc.engine.config_file import load_config_file, resolve_config_file
from clsloc.engine.projects import ConfigFunction, add_project_configs
from clsloc.errors import UserError
from detectron2.config import CfgNode, get_cfg

logger = logging.getLogger(__name__)


def setup_cfg(
    args: argparse.Namespace | None = None,
    *,
    config_file: str = "",
    overrides: Sequence[str] = (),
    config_functions: Iterable[ConfigFunction] = (),
    freeze: bool = True,
) -> CfgNode:
    """The config of a run; the datasets that it names are registered on the way.

    Later sources win: Detectron2's defaults, the nodes of the core and of all projects, the
    config file, the overrides.

    Args:
        args: what :func:`clsloc.engine.argument_parser` parsed; its ``config_file``, ``opts``,
            ``coco``, ``voc`` and ``wider_face`` are read where present.
        config_file: a path or a model-zoo name, used when ``args`` names none; the defaults
            alone when empty.
        overrides: ``[key, value, key, value, ...]``, merged after those of ``args``.
        config_functions: see :func:`clsloc.engine.projects.add_project_configs`.
        freeze: make the config immutable.

    Raises:
        UserError: a file or key does not exist, a value has the wrong type or cannot be, or, with
            ``args``, the config names a part that is not registered.
    """
    cfg = get_cfg()
    add_core_config(cfg)
    add_project_configs(cfg, config_functions)
    config_file = getattr(args, "config_file", "") or config_file
    if config_file:
        _merge_file(cfg, resolve_config_file(config_file))
    _merge_overrides(cfg, [*(getattr(args, "opts", None) or ()), *overrides])
    _add_dataset_flags(cfg, args)
    check_values(cfg)
    _check_device(cfg.MODEL.DEVICE)
    _fall_back_to_cpu(cfg)
    register_digits()
    register_builtin_wider_face()
    register_datasets(cfg.CLSLOC.DATASETS)
    if args is not None:  # of a program, whose parts are all registered by now
        check_registry_names(cfg)
    if freeze:
        cfg.freeze()
    return cfg


def _merge_file(cfg: CfgNode, path: str) -> None:
    content = load_config_file(path)
    version = content.get("VERSION", cfg.VERSION)
    if version != cfg.VERSION:
        raise UserError(
            f"The config file {path!r} has VERSION {version}; rewrite it for {cfg.VERSION}."
        )
    try:
        _check_not_empty(content, cfg)
        cfg.merge_from_other_cfg(CfgNode(content))
    except (KeyError, ValueError, AssertionError) as error:
        raise UserError(f"The config file {path!r} does not fit: {_sentence(error)}") from error


def _check_not_empty(content: dict[str, Any], cfg: CfgNode, where: str = "") -> None:
    """A key without a value would replace one, of any type, by None."""
    for key, value in content.items():
        default = cfg.get(key)
        if not isinstance(key, str):
            raise ValueError(f"the key {where}{key} is no text")
        if value is None and default is not None:
            raise ValueError(f"{where}{key} has no value; give it one or remove it")
        if isinstance(value, dict) and isinstance(default, CfgNode):
            _check_not_empty(value, default, f"{where}{key}.")


def _merge_overrides(cfg: CfgNode, overrides: list[str]) -> None:
    if len(overrides) % 2:
        raise UserError(f"Overrides come as KEY VALUE pairs, but {overrides[-1]!r} stands alone.")
    for key, value in zip(overrides[::2], overrides[1::2]):
        try:
            cfg.merge_from_list([key, _fitted(cfg, key, value)])
        except (KeyError, ValueError, AssertionError) as error:
            given = f"{key} {value}"
            raise UserError(f"The override {given!r} does not fit: {_sentence(error)}") from error


def _fitted(cfg: CfgNode, key: str, value: Any) -> Any:
    """``value`` for ``key``, with a whole number as a float where the config has one.

    Raises:
        KeyError: there is no such key.
        ValueError: the config has a list there, and this is none.
    """
    present: Any = cfg
    for part in key.split("."):
        if not isinstance(present, CfgNode) or part not in present:
            if cfg.key_is_deprecated(key) or cfg.key_is_renamed(key):
                return value  # has its own treatment
            raise KeyError(f"Non-existent key: {key}")
        present = present[part]
    decoded = _decoded(value)
    if isinstance(present, float) and type(decoded) is int:
        return float(decoded)
    if isinstance(present, (list, tuple)) and isinstance(decoded, (str, int, float)):
        raise ValueError(f"{key} is a list; {_as_list(present, decoded)}")
    return value


def _decoded(value: Any) -> Any:
    """What yacs makes of a word of the command line."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        return value


def _as_list(present: Sequence[Any], value: str | float) -> str:
    """The remedy where one value was given for a list."""
    texts = all(isinstance(item, str) for item in present)
    if isinstance(value, str) and (not texts or not value.strip("()[] ")):
        return f"write it as {tuple(present)}"
    if isinstance(value, str):
        value = tuple(word.strip(" '\"") for word in value.strip("()[], ").split(","))
    return f'write "{value if isinstance(value, tuple) else (value,)}"'


def _sentence(error: Exception) -> str:
    return str(error.args[0] if error.args else error).rstrip(".") + "."


def _add_dataset_flags(cfg: CfgNode, args: argparse.Namespace | None) -> None:
    # The stored config has to name these datasets too, so that evaluation and prediction find
    # them again.
    for layout in ("coco", "voc", "wider_face"):
        for name, *where in getattr(args, layout, None) or ():
            cfg.CLSLOC.DATASETS.append([name, layout, *where])


def _check_device(name: str | None) -> None:
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UserError(
            f"MODEL.DEVICE {name!r} is no device; choose cpu, cuda, or cuda:N for the GPU number N."
        ) from error
    if device.type != "cuda" or device.index is None or not torch.cuda.is_available():
        return
    present = torch.cuda.device_count()
    if device.index >= present:
        raise UserError(
            f"MODEL.DEVICE {name!r} does not exist: this machine has {present} GPU(s), numbered "
            "from 0; choose one of them, or cpu."
        )


def _fall_back_to_cpu(cfg: CfgNode) -> None:
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
        logger.info("No CUDA device is available: MODEL.DEVICE is now cpu.")
    if cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.AMP.ENABLED:
        cfg.SOLVER.AMP.ENABLED = False
        logger.info("Mixed precision needs CUDA: SOLVER.AMP.ENABLED is now False.")
