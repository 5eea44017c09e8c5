"""What the command-line programs share: arguments, the JSON report, errors as one sentence.

A program is a function ``main(args)`` that returns its exit status (None means 0) and a parser
made by :func:`make_parser`; :func:`run` joins the two.
"""

import argparse
import errno
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from clsloc.errors import UserError
from clsloc.files import atomic_write, write_error

INTERRUPTED_STATUS = 130  # what shells tell of a program that Ctrl-C ended
TERMINATED_STATUS = 143  # and of one that SIGTERM ended

_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")
_OPTION = re.compile(r"--[\w-]+")  # without a value of its own, as in --name=value


class Terminated(KeyboardInterrupt):
    """The Ctrl-C of a program that takes SIGTERM as one."""


class OverridesParser(argparse.ArgumentParser):
    """An argument parser that takes trailing ``KEY VALUE`` pairs, whatever stands before them.

    They come out as ``args.opts``, the name under which Detectron2's programs keep them. Pairs
    are cut off before argparse sees the rest: an option with many values, such as ``--input``,
    would swallow them.
    """

    def parse_known_args(self, args=None, namespace=None):
        switches = {
            name for action in self._actions if action.nargs == 0 for name in action.option_strings
        }
        rest, overrides = split_overrides(sys.argv[1:] if args is None else args, switches)
        namespace, unknown = super().parse_known_args(rest, namespace)
        namespace.opts = overrides
        return namespace, unknown

    def format_usage(self) -> str:
        return super().format_usage().rstrip() + " [KEY VALUE ...]\n"


def split_overrides(
    args: Sequence[str], switches: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """Cut the trailing ``KEY VALUE`` pairs off a command line.

    A key is in capitals, such as ``MODEL.DEVICE``, and is neither a file nor the value that
    stands right behind an option. ``switches`` are the options without a value.

    >>> split_overrides(["--input", "a.jpg", "b.jpg", "MODEL.DEVICE", "cpu"])
    (['--input', 'a.jpg', 'b.jpg'], ['MODEL.DEVICE', 'cpu'])
    """
    start = len(args)
    while start >= 2 and _is_key(args[start - 2]) and not args[start - 1].startswith("--"):
        before = args[start - 3] if start > 2 else ""
        if _OPTION.fullmatch(before) and before not in switches:
            break
        start -= 2
    return list(args[:start]), list(args[start:])


def _is_key(text: str) -> bool:
    return _KEY.fullmatch(text) is not None and not os.path.exists(text)


def make_parser(
    description: str,
    *,
    config: bool = True,
    datasets: bool = True,
    overrides: bool = False,
    json_help: str = "write the figures to this file too",
) -> argparse.ArgumentParser:
    """A parser with the flags that all programs share.

    Args:
        description: the first lines of ``--help``.
        config: whether the program works with a config: adds ``--config-file`` and trailing
            ``KEY VALUE`` overrides.
        datasets: with ``config``, add the flags that register datasets.
        overrides: take the overrides also without ``config``.
        json_help: what ``--json`` writes.
    """
    kind = OverridesParser if config or overrides else argparse.ArgumentParser
    parser = kind(
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if config or overrides:
        parser.epilog = "Trailing KEY VALUE pairs override the config, e.g. MODEL.DEVICE cpu."
    if config:
        from clsloc.engine.flags import CONFIG_FILE_HELP, add_dataset_flags  # imports torch

        parser.add_argument("--config-file", metavar="FILE", required=True, help=CONFIG_FILE_HELP)
        if datasets:
            add_dataset_flags(parser)
    parser.add_argument("--json", metavar="FILE", help=json_help)
    return parser


def write_json(report: Any, path: str | os.PathLike) -> None:
    """Write ``report`` to ``path``, making its folder; see :func:`clsloc.files.atomic_write`.

    JSON has no NaN and no infinity: a number that is not finite, such as a metric without a
    value, becomes null.
    """
    text = json.dumps(_only_finite(report), indent=2, allow_nan=False)
    with atomic_write(path, "w") as file:
        file.write(f"{text}\n")


def check_json(path: str | os.PathLike) -> None:
    """Find out, before any work is done, whether :func:`write_json` can write to ``path``.

    Raises:
        UserError: it cannot; the folder of ``path`` is made if needed.
    """
    path = os.fspath(path)
    folder = os.path.dirname(path) or "."
    try:
        os.makedirs(folder, exist_ok=True)
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise write_error(path, error) from error


def _only_finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _only_finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_only_finite(item) for item in value]
    return value


def run(
    main: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    args: Sequence[str] | None = None,
) -> int:
    """Parse the command line and call ``main``; returns the exit status for ``sys.exit``.

    A :class:`~clsloc.errors.UserError` becomes its sentence on stderr and status 2, Ctrl-C a word
    and status 130, :class:`Terminated` one and status 143. Any other exception is a defect of the
    program and keeps its traceback.
    """
    try:
        return main(parser.parse_args(args)) or 0
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return UserError.EXIT_STATUS
    except Terminated:
        print(f"{parser.prog}: terminated", file=sys.stderr)
        return TERMINATED_STATUS
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return INTERRUPTED_STATUS
