"""A workload in a process of its own, stepped through a pipe.

Two implementations of Detectron2 cannot live in one process, and the peak memory of one model can
be told only where no other one is. The child takes a line of JSON with its settings on stdin,
then a line for each step, and answers each with a line on stdout.
"""

import json
import os
import subprocess
import sys
from typing import Any

from clsloc.errors import UserError


class RemoteWorkload:
    """A :class:`~clsloc.gauges.workload.Workload` in a child process; use it as a context."""

    def __init__(self, settings: dict[str, Any], python_path: str = "") -> None:
        """
        Args:
            settings: ``config_file``, ``overrides`` and the keyword arguments of ``Workload``.
            python_path: a folder that comes first on the child's path, such as a clone of
                Detectron2.

        Raises:
            UserError: the child could not build the model.
        """
        path = [python_path, *(entry for entry in sys.path if entry)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "clsloc.gauges.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        try:
            first = self._ask(settings)
        except BaseException:
            self._close()
            raise
        self.detectron2: str = first["detectron2"]
        self.precision: str = first["precision"]

    def __enter__(self) -> "RemoteWorkload":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def measure(self, kind: str) -> float:
        """Run one step in the child; returns its seconds as measured there."""
        return self._ask(kind)["seconds"]

    def measure_parts(self, kind: str) -> dict[str, float]:
        """Run one step in the child; returns the seconds of its parts."""
        return self._ask({"parts": kind})["seconds"]

    def peak_memory_mb(self) -> float:
        """The child's peak memory in MiB, above that of the process with all imports done."""
        return self._ask("memory")["mb"]

    def _close(self) -> None:
        self._process.communicate()  # closes both pipes, whether or not the child still lives

    def _ask(self, question: Any) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise UserError("A measuring process ended early; its own message stands above.")
        return json.loads(answer)


def serve() -> None:
    """The child's side."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print must not get between the answers
    settings = json.loads(sys.stdin.readline())

    from clsloc.engine.setup import setup_cfg
    from clsloc.env import kind_of_detectron2
    from clsloc.gauges.workload import Workload, resident_peak_mb

    cfg = setup_cfg(
        config_file=settings.pop("config_file"), overrides=settings.pop("overrides", ())
    )
    base = resident_peak_mb() if cfg.MODEL.DEVICE == "cpu" else 0.0
    workload = Workload(cfg, **settings)

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    answer(detectron2=kind_of_detectron2(), precision=workload.precision)
    for line in sys.stdin:
        question = json.loads(line)
        if question == "memory":
            answer(mb=workload.peak_memory_mb() - base)
        elif isinstance(question, dict):
            answer(seconds=workload.measure_parts(question["parts"]))
        else:
            answer(seconds=workload.measure(question))


if __name__ == "__main__":
    try:
        serve()
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(UserError.EXIT_STATUS)
