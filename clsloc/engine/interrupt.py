"""Ends a run when somebody asks for it: one process at the next step boundary, several at once.

Several processes cannot agree on a step while one of them waits for the others in a collective
call, so none of them waits for a step boundary.
"""

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptGuard:
    """Inside, the first Ctrl-C and the first SIGTERM only set :attr:`requested`, a second one of
    either ends the program at once: a batch system sends SIGTERM to all, and a parent that hears
    it may send Ctrl-C on. Does nothing outside of the main thread, where no handler can be set."""

    def __init__(self, active: bool = True) -> None:
        """
        Args:
            active: False for a guard that does nothing.
        """
        self.requested = False
        self._active = active
        self._earlier: dict[int, object] = {}

    def __enter__(self) -> "InterruptGuard":
        if self._active and threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._request) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if number in self._earlier:
            signal.signal(number, self._earlier.pop(number))

    def _restore(self) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}


@contextmanager
def end_together() -> Iterator[None]:
    """For the process that starts the others: inside, Ctrl-C and SIGTERM end these at once,
    whatever they wait for, and raise KeyboardInterrupt."""
    earlier = {number: signal.signal(number, signal.default_int_handler) for number in _SIGNALS}
    try:
        yield
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def end_at_once() -> None:
    """For one of several processes: Ctrl-C ends it even within a call that waits for the others,
    where Python would not get to raise KeyboardInterrupt. A process whose parent was killed gets
    the same signal."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
