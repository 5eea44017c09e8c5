"""What every test gets: one thread, fixed seeds, an empty working directory, a data folder.

The data folder is one for the whole session and all its workers, so that what is made there, such
as the digits data, is made once; who writes there takes care of others who do the same at the
same time.
"""

import os
import random
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

REPO = Path(__file__).resolve().parents[1]
DATASETS = "DETECTRON2_DATASETS"


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # Started in the background of a script, whose programs ignore Ctrl-C; tests send it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
    if not _is_worker(config):
        # Detectron2 reads the variable when it is imported, workers inherit it.
        os.environ[DATASETS] = tempfile.mkdtemp(prefix="clsloc-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not _is_worker(config):
        shutil.rmtree(os.environ[DATASETS], ignore_errors=True)


@pytest.fixture(autouse=True)
def _reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal random numbers in every order of tests; no file lands in the repository."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the repository."""
    return REPO


@pytest.fixture
def forget_datasets():
    """Take away the datasets that a test registered."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
