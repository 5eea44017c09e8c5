"""Name-to-object registries, and conversion between objects and their dotted import paths."""

import importlib
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["Registry", "locate"]


def _convert_target_to_string(t: Any) -> str:
    """The shortest dotted path that imports the class or function ``t``.

    Packages re-export their members, so leading parts of the module path are tried first:
    ``torch.nn.modules.linear.Linear`` becomes ``torch.nn.Linear``.
    """
    module, name = t.__module__, t.__qualname__
    parts = module.split(".")
    for length in range(1, len(parts)):
        candidate = ".".join([*parts[:length], name])
        try:
            if locate(candidate) is t:
                return candidate
        except ImportError:
            continue
    return f"{module}.{name}"


def locate(name: str) -> Any:
    """The object behind a dotted path such as ``"torch.nn.Linear"`` or ``"logging.Logger.info"``.

    The longest importable prefix is taken as the module, the rest as attributes.

    Raises:
        ImportError: no prefix of ``name`` can be imported, or an attribute is missing.
    """
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        try:
            target = importlib.import_module(module)
        except ModuleNotFoundError as error:
            # A module that exists but misses one of its own imports must not be mistaken for
            # a path that goes on with attributes.
            if error.name is not None and not _is_prefix(error.name, module):
                raise
            continue
        try:
            for attribute in parts[length:]:
                target = getattr(target, attribute)
        except AttributeError as error:
            raise ImportError(f"Cannot find {name!r}: {error}.") from error
        return target
    raise ImportError(f"Cannot find {name!r}: there is no module named {parts[0]!r}.")


def _is_prefix(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")
