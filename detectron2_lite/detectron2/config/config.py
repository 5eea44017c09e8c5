"""``CfgNode``, the default config, and ``configurable``, which builds objects from either."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import IO, Any

from fvcore.common.config import CfgNode as _CfgNode

from detectron2.utils.file_io import PathManager

__all__ = ["CfgNode", "configurable", "get_cfg", "global_cfg", "set_global_cfg"]


class CfgNode(_CfgNode):
    """fvcore's config node, with files opened through ``PathManager`` and a format version.

    A file may name one base file or a list of them under ``_BASE_``, relative to itself; its own
    values win over theirs, and a later base wins over an earlier one.
    """

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        return PathManager.open(filename, "r")

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
        """Overwrite keys of this config, which must have the latest VERSION, by those of a YAML.

        Args:
            cfg_filename: anything that ``PathManager`` opens.
            allow_unsafe: whether a file with Python object tags may be loaded by
                ``yaml.unsafe_load``, which runs what the tags say: only for files you trust.
        """
        assert PathManager.isfile(cfg_filename), f"Config file '{cfg_filename}' does not exist."
        loaded = type(self)(self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe))

        # The default config is an instance of this class, so it can only be imported later.
        from detectron2.config import compat
        from detectron2.config.defaults import _C

        latest = _C.VERSION
        assert latest == self.VERSION, (
            f"Files can be merged only into a config of version {latest}, "
            f"but this one has VERSION {self.VERSION}."
        )
        version = loaded.get("VERSION")
        if version is None:
            version = compat.guess_version(loaded, cfg_filename)
        assert version <= latest, (
            f"Config file '{cfg_filename}' has VERSION {version}, "
            f"which is newer than {latest}, the latest known one."
        )
        if version < latest:
            loaded = compat.upgrade_config(loaded)
        self.merge_from_other_cfg(loaded)


global_cfg = CfgNode()


def get_cfg() -> CfgNode:
    """A copy of the default config, to be changed freely."""
    from detectron2.config.defaults import _C

    return _C.clone()


def set_global_cfg(cfg: CfgNode) -> None:
    """Let ``global_cfg`` hold what ``cfg`` holds, for code that cannot be handed a config.

    Sub-nodes are shared, not copied. Prefer passing arguments: global state hides what a
    function depends on.
    """
    global_cfg.clear()
    global_cfg.update(cfg)


def configurable(
    init_func: Callable | None = None, *, from_config: Callable[..., dict] | None = None
) -> Callable:
    """Let a class or a function be called with explicit arguments or with a config.

    On a class, decorate ``__init__`` and define the classmethod ``from_config(cls, cfg, ...)``,
    which returns the arguments of ``__init__`` as a dict::

        class Head(nn.Module):
            @configurable
            def __init__(self, *, in_channels: int, num_classes: int = 80): ...

            @classmethod
            def from_config(cls, cfg, in_channels):
                return {"in_channels": in_channels, "num_classes": cfg.MODEL.NUM_CLASSES}

        Head(in_channels=256)                    # explicit
        Head(cfg, in_channels=256)               # through from_config
        Head(cfg, in_channels=256, num_classes=3)  # explicit arguments win over the config

    On a function, give ``from_config`` to the decorator::

        @configurable(from_config=lambda cfg, width: {"width": width, "depth": cfg.DEPTH})
        def build(width, depth): ...

    A call goes through ``from_config`` when its first positional argument or its keyword ``cfg``
    is a config. Keywords that ``from_config`` does not name go to the decorated callable.
    """
    if init_func is not None:
        assert from_config is None, "@configurable takes either a method or from_config, not both."
        assert inspect.isfunction(init_func) and init_func.__name__ == "__init__", (
            f"@configurable without arguments decorates an __init__ method, not {init_func!r}."
        )
        return _configurable_init(init_func)
    if from_config is None:
        return configurable
    assert inspect.isfunction(from_config), (
        f"from_config of @configurable must be a function, not {from_config!r}."
    )
    return functools.partial(_configurable_function, from_config=from_config)


def _configurable_init(init_func: Callable) -> Callable:
    @functools.wraps(init_func)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        # Looked up on every call: subclasses may override from_config.
        from_config = getattr(cls, "from_config", None)
        if from_config is None:
            raise AttributeError(
                f"{cls.__name__} has an __init__ with @configurable and so needs a classmethod "
                "'from_config'."
            )
        if not inspect.ismethod(from_config):
            raise TypeError(f"{cls.__name__}.from_config must be a classmethod.")
        if _called_with_cfg(args, kwargs):
            init_func(self, **_arguments_from_config(from_config, args, kwargs))
        else:
            init_func(self, *args, **kwargs)

    return wrapped


def _configurable_function(function: Callable, from_config: Callable[..., dict]) -> Callable:
    assert inspect.isfunction(function), (
        f"@configurable(from_config=...) decorates a function, not {function!r}."
    )

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if _called_with_cfg(args, kwargs):
            return function(**_arguments_from_config(from_config, args, kwargs))
        return function(*args, **kwargs)

    wrapped.from_config = from_config
    return wrapped


def _called_with_cfg(args: tuple, kwargs: dict[str, Any]) -> bool:
    # OmegaConf is optional: a value can be of its type only if somebody imported it.
    omegaconf = sys.modules.get("omegaconf")
    config_types = (_CfgNode,) if omegaconf is None else (_CfgNode, omegaconf.DictConfig)
    return isinstance(args[0] if args else None, config_types) or isinstance(
        kwargs.get("cfg"), config_types
    )


def _arguments_from_config(
    from_config: Callable[..., dict], args: tuple, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """What the decorated callable receives: the result of ``from_config``, then leftovers."""
    parameters = inspect.signature(from_config).parameters
    if next(iter(parameters), None) != "cfg":
        owner = getattr(from_config, "__self__", None)
        name = from_config.__name__ if owner is None else f"{owner.__name__}.from_config"
        raise TypeError(f"{name} must take 'cfg' as its first argument.")

    kinds = {p.kind for p in parameters.values()}
    if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        # It sees every keyword and decides what becomes of it.
        return from_config(*args, **kwargs)
    leftovers = {k: v for k, v in kwargs.items() if k not in parameters}
    known = {k: v for k, v in kwargs.items() if k in parameters}
    return {**from_config(*args, **known), **leftovers}
