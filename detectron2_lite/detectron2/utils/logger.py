"""Set-up of the console and file log, log calls that are rate-limited, and small tables."""

import atexit
import functools
import logging
import os
import sys
import time
from collections import Counter
from typing import Any, TextIO

from tabulate import tabulate
from termcolor import colored

from detectron2.utils.file_io import PathManager

__all__ = ["setup_logger", "log_first_n", "log_every_n", "log_every_n_seconds"]

D2_LOG_BUFFER_SIZE_KEY = "D2_LOG_BUFFER_SIZE"
"""Environment variable: bytes buffered before a log on remote storage is written."""
DEFAULT_LOG_BUFFER_SIZE = 1024 * 1024

_DATE_FORMAT = "%m/%d %H:%M:%S"
_WARNING_STYLES = {
    logging.WARNING: ("WARNING", ["blink"]),
    logging.ERROR: ("ERROR", ["blink", "underline"]),
    logging.CRITICAL: ("ERROR", ["blink", "underline"]),
}


class _ColorfulFormatter(logging.Formatter):
    """Abbreviates the logger's name and marks warnings and errors in red."""

    def __init__(self, *args: Any, root_name: str, abbrev_name: str, **kwargs: Any) -> None:
        self._root = root_name + "."
        self._abbreviation = abbrev_name + "." if abbrev_name else ""
        super().__init__(*args, **kwargs)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.name = record.name.replace(self._root, self._abbreviation)
        line = super().formatMessage(record)
        if record.levelno not in _WARNING_STYLES:
            return line
        word, attributes = _WARNING_STYLES[record.levelno]
        return colored(word, "red", attrs=attributes) + " " + line


@functools.lru_cache  # a second call must not add the handlers, hence every line, twice
def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Make the logger ``name`` write debug messages and above to the console and to a file.

    Args:
        output: a file (ending in ``.txt`` or ``.log``) or a folder, which then gets ``log.txt``;
            ranks above 0 write to the same name plus ``.rankN``. ``None``: no file.
        distributed_rank: rank of this process; only rank 0 writes to the console.
        color: colour the console's prefix.
        name: the root of the loggers configured.
        abbrev_name: what the console shows for ``name``; by default ``d2`` for ``detectron2``.
        enable_propagation: hand messages on to the parent loggers.
        configure_stdout: write to the console at all.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    if abbrev_name is None:
        abbrev_name = "d2" if name == "detectron2" else name

    plain = logging.Formatter(
        "[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt=_DATE_FORMAT
    )
    if configure_stdout and distributed_rank == 0:
        formatter = plain
        if color:
            formatter = _ColorfulFormatter(
                colored("[%(asctime)s %(name)s]: ", "green") + "%(message)s",
                datefmt=_DATE_FORMAT,
                root_name=name,
                abbrev_name=str(abbrev_name),
            )
        _add_handler(logger, sys.stdout, formatter)
    if output is not None:
        filename = output
        if not output.endswith((".txt", ".log")):
            filename = os.path.join(output, "log.txt")
        if distributed_rank > 0:
            filename += f".rank{distributed_rank}"
        PathManager.mkdirs(os.path.dirname(filename))
        _add_handler(logger, _cached_log_stream(filename), plain)
    return logger


def _add_handler(logger: logging.Logger, stream: TextIO, formatter: logging.Formatter) -> None:
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(formatter)
    logger.addHandler(handler)


@functools.lru_cache  # several loggers may share a file, which is open once
def _cached_log_stream(filename: str) -> TextIO:
    stream = PathManager.open(filename, "a", buffering=_get_log_stream_buffer_size(filename))
    atexit.register(stream.close)
    return stream


def _get_log_stream_buffer_size(filename: str) -> int:
    """Remote storage is written in large pieces, a local file by the default rule."""
    if "://" not in filename:
        return -1
    return int(os.environ.get(D2_LOG_BUFFER_SIZE_KEY, DEFAULT_LOG_BUFFER_SIZE))


_LOG_COUNTER: Counter = Counter()
_LOG_TIMER: dict[tuple, float] = {}


def _find_caller() -> tuple[str, tuple[str, int, str]]:
    """Logger name and (file, line, function) of the closest frame outside this module."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    module = frame.f_globals.get("__name__", "__main__")
    if module == "__main__":
        module = "detectron2"
    return module, (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def log_first_n(
    lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | tuple = "caller"
) -> None:
    """Log only the first ``n`` calls of a kind.

    Args:
        lvl: the logging level.
        msg: the message.
        n: how many calls are let through.
        name: the logger; by default the caller's module.
        key: what makes two calls the same kind: ``"caller"`` (the line of code), ``"message"``,
            or a tuple of both.
    """
    module, caller = _find_caller()
    keys = (key,) if isinstance(key, str) else key
    kind = ()
    if "caller" in keys:
        kind += caller
    if "message" in keys:
        kind += (msg,)
    _LOG_COUNTER[kind] += 1
    if _LOG_COUNTER[kind] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log the first and then every ``n``-th call from the same line of code."""
    module, caller = _find_caller()
    _LOG_COUNTER[caller] += 1
    if n == 1 or _LOG_COUNTER[caller] % n == 1:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n_seconds(lvl: int, msg: str, n: float = 1, *, name: str | None = None) -> None:
    """Log a call unless the same line of code logged less than ``n`` seconds ago."""
    module, caller = _find_caller()
    now = time.time()
    if caller not in _LOG_TIMER or now - _LOG_TIMER[caller] >= n:
        logging.getLogger(name or module).log(lvl, msg)
        _LOG_TIMER[caller] = now


def create_small_table(small_dict: dict[str, Any]) -> str:
    """A table of one row with the dict's keys as its header, for a handful of results."""
    return tabulate(
        [list(small_dict.values())],
        headers=list(small_dict),
        tablefmt="pipe",
        floatfmt=".3f",
        stralign="center",
        numalign="center",
    )
