"""Where figures come from: the machine and the state of the source tree."""

import os
import platform
import subprocess
from pathlib import Path

import torch


def hardware() -> str:
    """The processor with its cores, and the GPUs."""
    parts = [f"{_cpu_name()}, {os.cpu_count()} cores"]
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(parts + names)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the source tree, with ``+`` if files were changed since; None elsewhere."""
    file = Path(__file__).resolve()

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=file.parent, capture_output=True, text=True)
        return done.stdout.strip()

    try:
        if not git("ls-files", file.name):  # installed, maybe inside of somebody's repository
            return None
        revision = git("rev-parse", "--short", "HEAD")
        return revision + "+" * bool(git("status", "--porcelain", "-uno"))
    except OSError:
        return None
