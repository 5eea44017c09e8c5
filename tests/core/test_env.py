"""``python -m clsloc.env``."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import clsloc
import detectron2
from clsloc import env


def run_env(*args: str, **environment: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))
    variables = os.environ | {"PYTHONPATH": paths} | environment
    command = [sys.executable, "-m", "clsloc.env", *args]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def test_report_tells_what_is_imported_here() -> None:
    report = env.environment()
    used = report["detectron2"]
    assert used["version"] == detectron2.__version__
    assert used["path"] == os.path.dirname(detectron2.__file__)
    assert used["kind"] == ("embedded" if "detectron2_lite" in detectron2.__file__ else "real")
    assert used["error"] is None
    assert report["clsloc"] == clsloc.__version__
    assert report["torch"] == torch.__version__
    assert report["numpy"] == np.__version__
    assert report["python"] == ".".join(map(str, sys.version_info[:3]))
    assert len(report["gpus"]) == torch.cuda.device_count()
    assert "cannot be imported" not in report["pycocotools"]


def test_command_prints_and_writes_the_same() -> None:
    done = run_env("--json", "env.json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(Path("env.json").read_text())
    assert report["detectron2"] == env.detectron2_in_use()
    assert report["detectron2"]["path"] in done.stdout
    assert report["torch"] in done.stdout


def test_a_real_one_is_told_from_the_embedded_one() -> None:
    expected = 0 if env.kind_of_detectron2() == "real" else 1
    assert run_env("--is-real").returncode == expected


def test_a_broken_detectron2_is_named_with_the_remedy(tmp_path: Path) -> None:
    package = tmp_path / "broken" / "detectron2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '0.7'\nimport no_such_package\n")
    paths = [str(package.parent), *filter(None, map(os.path.abspath, sys.path))]
    done = run_env(PYTHONPATH=os.pathsep.join(paths))
    assert done.returncode == 2
    assert str(package) not in done.stderr
    assert "no_such_package" in done.stderr
    assert "dev-real" in done.stderr
    assert "Traceback" not in done.stderr
    assert torch.__version__ in done.stdout


def test_a_package_that_is_missing_has_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert env.environment()["cv2"].startswith("cannot be imported")
