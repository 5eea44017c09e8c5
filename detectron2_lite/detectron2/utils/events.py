"""What happens during training, as named scalars, images and histograms, and their writers.

Model and hooks put values into the current :class:`EventStorage`; writers read it from time to
time. A value belongs to the iteration in which it was put.
"""

import datetime
import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from fvcore.common.history_buffer import HistoryBuffer

from detectron2.utils.file_io import PathManager

__all__ = [
    "get_event_storage",
    "has_event_storage",
    "JSONWriter",
    "TensorboardXWriter",
    "CommonMetricPrinter",
    "EventStorage",
]

_CURRENT_STORAGE_STACK: list["EventStorage"] = []


def get_event_storage() -> "EventStorage":
    """The storage of the innermost ``with EventStorage(...)`` block; it is an error without one."""
    assert _CURRENT_STORAGE_STACK, (
        "get_event_storage() needs a surrounding 'with EventStorage(start_iter) as storage:'."
    )
    return _CURRENT_STORAGE_STACK[-1]


def has_event_storage() -> bool:
    """Whether :func:`get_event_storage` would find one."""
    return bool(_CURRENT_STORAGE_STACK)


class EventStorage:
    """Histories of named scalars, and the images and histograms not yet written.

    Args:
        start_iter: the first iteration.
    """

    def __init__(self, start_iter: int = 0) -> None:
        self._history: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest_scalars: dict[str, tuple[float, int]] = {}
        self._iter = start_iter
        self._current_prefix = ""
        self._vis_data: list[tuple[str, torch.Tensor, int]] = []
        self._histograms: list[dict[str, Any]] = []

    def put_image(self, img_name: str, img_tensor: torch.Tensor) -> None:
        """Add an image for the writers.

        Args:
            img_name: its name.
            img_tensor: (3, H, W) RGB, uint8 in [0, 255] or float in [0, 1].
        """
        self._vis_data.append((img_name, img_tensor, self._iter))

    def put_scalar(
        self,
        name: str,
        value: float | torch.Tensor,
        smoothing_hint: bool = True,
        cur_iter: int | None = None,
    ) -> None:
        """Add a value to the history of ``name``, below the current :meth:`name_scope`.

        Args:
            name: the scalar's name, for example ``"loss_rpn_cls"``.
            value: a number; tensors of one element are moved to the CPU.
            smoothing_hint: whether writers should show a median over a window rather than this
                value (losses: yes; learning rate, accuracies: no). Fixed at the first call.
            cur_iter: the iteration it belongs to; by default the current one.
        """
        name = self._current_prefix + name
        cur_iter = self._iter if cur_iter is None else cur_iter
        value = float(value)
        known_hint = self._smoothing_hints.setdefault(name, smoothing_hint)
        assert known_hint == smoothing_hint, (
            f"Scalar {name} was first put with smoothing_hint={known_hint}, now with "
            f"{smoothing_hint}; use one of them throughout."
        )
        self._history[name].update(value, cur_iter)
        self._latest_scalars[name] = (value, cur_iter)

    def put_scalars(
        self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: float
    ) -> None:
        """:meth:`put_scalar` for each keyword argument."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_histogram(self, hist_name: str, hist_tensor: torch.Tensor, bins: int = 1000) -> None:
        """Add the histogram of a tensor's elements over ``bins`` equal intervals."""
        low, high = hist_tensor.min().item(), hist_tensor.max().item()
        edges = torch.linspace(low, high, bins + 1, dtype=torch.float32)
        self._histograms.append(
            {
                "tag": hist_name,
                "min": low,
                "max": high,
                "num": len(hist_tensor),
                "sum": float(hist_tensor.sum()),
                "sum_squares": float((hist_tensor**2).sum()),
                "bucket_limits": edges[1:].tolist(),
                "bucket_counts": torch.histc(hist_tensor, bins=bins).tolist(),
                "global_step": self._iter,
            }
        )

    def history(self, name: str) -> HistoryBuffer:
        """The history of one scalar; KeyError if it was never put."""
        if name not in self._history:
            raise KeyError(f"No scalar named {name!r} was put; there are {sorted(self._history)}.")
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """The histories of all scalars by name."""
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """The last value of each scalar and the iteration it belongs to."""
        return self._latest_scalars

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Like :meth:`latest`, with the median over the last ``window_size`` iterations for the
        scalars put with ``smoothing_hint=True``."""
        result = {}
        # A copy, here and in the printer: a trainer may put scalars in a thread meanwhile.
        for name, (value, iteration) in list(self._latest_scalars.items()):
            if self._smoothing_hints[name]:
                value = self._history[name].median(self.count_samples(name, window_size))
            result[name] = (value, iteration)
        return result

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """How many values of ``name`` lie in the last ``window_size`` iterations before its own
        latest one. Scalars that are put more rarely have fewer."""
        values = self._history[name].values()
        newest = values[-1][1]
        return sum(newest - window_size < iteration <= newest for _, iteration in values)

    def smoothing_hints(self) -> dict[str, bool]:
        """The smoothing hint of each scalar."""
        return self._smoothing_hints

    def step(self) -> None:
        """Go on to the next iteration."""
        self._iter += 1

    @property
    def iter(self) -> int:
        """The current iteration."""
        return self._iter

    @iter.setter
    def iter(self, value: int) -> None:
        self._iter = int(value)

    @property
    def iteration(self) -> int:
        """The current iteration; older name of :attr:`iter`."""
        return self._iter

    def __enter__(self) -> "EventStorage":
        _CURRENT_STORAGE_STACK.append(self)
        return self

    def __exit__(self, *exc_info: Any) -> None:
        assert _CURRENT_STORAGE_STACK[-1] is self, "EventStorage blocks must be left in order."
        _CURRENT_STORAGE_STACK.pop()

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Prefix the names of all scalars put inside the block with ``name/``."""
        outer = self._current_prefix
        self._current_prefix = name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._current_prefix = outer

    def clear_images(self) -> None:
        """Forget the images; for the writer that has written them."""
        self._vis_data = []

    def clear_histograms(self) -> None:
        """Forget the histograms; for the writer that has written them."""
        self._histograms = []


class EventWriter:
    """Reads the current storage and puts what is new somewhere."""

    def write(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


def _new_scalars(window_size: int, last_write: int) -> Iterator[tuple[str, float, int]]:
    """(name, value, iteration) of the scalars of the storage that are newer than ``last_write``."""
    scalars = get_event_storage().latest_with_smoothing_hint(window_size)
    for name, (value, iteration) in scalars.items():
        if iteration > last_write:
            yield name, value, iteration


class JSONWriter(EventWriter):
    """Appends one JSON object per line: the scalars of an iteration, with ``"iteration"``.

    Args:
        json_file: the file; existing content is kept, so that a resumed run goes on in it.
        window_size: iterations over which scalars with a smoothing hint are reduced to a median.
    """

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        self._file_handle = PathManager.open(json_file, "a")
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        lines: dict[int, dict[str, float]] = defaultdict(dict)
        for name, value, iteration in _new_scalars(self._window_size, self._last_write):
            lines[iteration][name] = value
        if lines:
            self._last_write = max(lines)
        for iteration, scalars in lines.items():
            scalars["iteration"] = iteration
            self._file_handle.write(json.dumps(scalars, sort_keys=True) + "\n")
        self._file_handle.flush()

    def close(self) -> None:
        self._file_handle.close()


class TensorboardXWriter(EventWriter):
    """Writes scalars, images and histograms as a TensorBoard event file.

    The file appears at the first write.

    Args:
        log_dir: the folder for the event file.
        window_size: iterations over which scalars with a smoothing hint are reduced to a median.
        kwargs: passed to ``torch.utils.tensorboard.SummaryWriter``.
    """

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any) -> None:
        self._window_size = window_size
        self._writer_args = {"log_dir": log_dir, **kwargs}
        self._last_write = -1

    @cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(**self._writer_args)

    def write(self) -> None:
        storage = get_event_storage()
        newest = self._last_write
        for name, value, iteration in _new_scalars(self._window_size, self._last_write):
            self._writer.add_scalar(name, value, iteration)
            newest = max(newest, iteration)
        self._last_write = newest

        for name, image, iteration in storage._vis_data:
            self._writer.add_image(name, image, iteration)
        storage.clear_images()
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_histograms()

    def close(self) -> None:
        if "_writer" in self.__dict__:
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Logs progress as one line: time left, iteration, losses, ``[metric]`` scalars, seconds per
    iteration, learning rate, peak GPU memory.

    Args:
        max_iter: the run's last iteration plus one; ``None`` shows no time left.
        window_size: iterations over which losses are reduced to a median.
    """

    def __init__(self, max_iter: int | None = None, window_size: int = 20) -> None:
        self.logger = logging.getLogger("detectron2.utils.events")
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            # Called once more after training: what is in the storage then was reported before,
            # and evaluation results are printed elsewhere.
            return
        eta = self._get_eta(storage)
        self.logger.info(
            " {eta}iter: {iter}  {losses}  {metrics}  {times} lr: {lr}  {memory}".format(
                eta=f"eta: {eta}  " if eta else "",
                iter=storage.iter,
                losses=self._medians(storage, "loss"),
                metrics=self._medians(storage, "[metric]"),
                times=self._times(storage),
                lr=self._latest(storage, "lr"),
                memory=self._memory(),
            )
        )

    def _get_eta(self, storage: EventStorage) -> str | None:
        if self._max_iter is None:
            return None
        left = self._max_iter - storage.iter - 1
        if "time" in storage.histories():
            seconds = storage.history("time").median(1000) * left
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
            return _duration(seconds)
        # Without an IterationTimer: the wall time between two calls.
        previous, self._last_write = self._last_write, (storage.iter, time.perf_counter())
        if previous is None or previous[0] == storage.iter:
            return None
        iterations = self._last_write[0] - previous[0]
        return _duration((self._last_write[1] - previous[1]) / iterations * left)

    def _medians(self, storage: EventStorage, word: str) -> str:
        return "  ".join(
            f"{name}: {history.median(storage.count_samples(name, self._window_size)):.4g}"
            for name, history in list(storage.histories().items())
            if word in name
        )

    def _times(self, storage: EventStorage) -> str:
        histories = storage.histories()
        text = ""
        if "time" in histories:
            history = histories["time"]
            text += f"time: {history.global_avg():.4f}  last_time: {history.latest():.4f}  "
        if "data_time" in histories:
            history = histories["data_time"]
            mean = history.avg(storage.count_samples("data_time", self._window_size))
            text += f"data_time: {mean:.4f}  last_data_time: {history.latest():.4f}  "
        return text

    @staticmethod
    def _latest(storage: EventStorage, name: str) -> str:
        histories = storage.histories()
        return f"{histories[name].latest():.5g}" if name in histories else "N/A"

    @staticmethod
    def _memory() -> str:
        if not torch.cuda.is_available():
            return ""
        return f"max_mem: {torch.cuda.max_memory_allocated() / 1024**2:.0f}M"


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds)))
