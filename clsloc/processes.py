"""Processes of one program that end well when it is told to end."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from types import FrameType
from typing import Any

from clsloc.cli import Terminated


class Processes:
    """Those that train, started from any thread. After SIGTERM no other begins."""

    def __init__(self) -> None:
        self.interrupted = False  # by Ctrl-C, which a terminal sends to all
        self._terminated = False
        self._running: set[subprocess.Popen] = set()
        # Of the kind that a thread can take twice: a second SIGTERM may come within the first.
        self._lock = RLock()

    def run(self, command: list[str], **options: Any) -> int:
        """As ``subprocess.call``.

        Raises:
            Terminated: SIGTERM came before, or ended it.
        """
        with self._lock:
            self.check()
            process = subprocess.Popen(command, **options)
            self._running.add(process)
        status = process.wait()
        self._running.discard(process)
        if status:
            self.check()
        return status

    def check(self) -> None:
        """
        Raises:
            Terminated: SIGTERM came.
        """
        if self._terminated:
            raise Terminated

    @contextmanager
    def end_on_sigterm(self) -> Iterator[None]:
        """Inside, SIGTERM is handed on as Ctrl-C; the block goes on, and ends with Terminated."""
        earlier = signal.signal(signal.SIGTERM, self._terminate)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, earlier)
            self.check()

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        with self._lock:
            if self._terminated:
                return
            self._terminated = True
            # A second signal of one kind would end them without saving; and what is started in
            # the background ignores Ctrl-C, as do the processes that it starts until they train.
            ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            told = signal.SIGTERM if self.interrupted or ignored else signal.SIGINT
            for process in list(self._running):
                process.send_signal(told)
