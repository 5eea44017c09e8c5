"""From runs to a table; broken off and continued."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clsloc.cli import run
from clsloc.gauges.comparison import hardware, markdown_table, summarise

TOOL = Path(__file__).resolve().parents[2] / "tools" / "compare.py"
TINY = """
_BASE_: "digits/faster_rcnn_R_18_FPN.yaml"
MODEL:
  FPN: {OUT_CHANNELS: 8, NORM: ""}
  RPN: {PRE_NMS_TOPK_TRAIN: 50, PRE_NMS_TOPK_TEST: 20, POST_NMS_TOPK_TEST: 10}
  ROI_BOX_HEAD: {FC_DIM: 16}
  DEVICE: cpu
INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 2, CHECKPOINT_PERIOD: 1}
"""


def test_mean_and_spread_by_hand():
    runs = {
        "a": [
            {"bbox/AP": 40.0, "bbox/APl": None, "params_millions": 1.5},
            {"bbox/AP": 42.0, "bbox/APl": math.nan, "params_millions": 1.5},
        ],
        "b": [{"bbox/AP": 50.0}],
    }
    a, b = summarise(runs)
    assert (a["method"], a["runs"], a["mean"]["AP"]) == ("a", 2, 41.0)
    assert a["std"]["AP"] == pytest.approx(math.sqrt(2))  # sample standard deviation
    assert a["mean"]["APl"] is None and b["std"]["AP"] is None
    lines = markdown_table([a, b]).splitlines()
    assert lines[0].startswith("| method | AP | AP50 | AP60 | AP70 | AP75 | AP80 | AP90 | APs |")
    assert lines[2].startswith("| a | 41.0 ± 1.4 | - |") and "| 1.50 |" in lines[2]
    assert lines[3].startswith("| b | 50.0 | - |")


def test_the_hardware_is_told():
    assert "cores" in hardware()


@pytest.fixture
def command(tiny_digits, tmp_path):
    spec = importlib.util.spec_from_file_location("compare", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "a.yaml").write_text(TINY)
    (tmp_path / "b.yaml").write_text(TINY.replace("FC_DIM: 16", "FC_DIM: 8"))
    common = ["--output", str(tmp_path / "out"), "--configs"]
    common += [str(tmp_path / name) for name in ("a.yaml", "b.yaml")]

    def command(*words):
        return run(module.main, module.parser(), [*common, *words])

    return command


def test_a_comparison_goes_on_where_it_was_stopped(command, tmp_path, capsys):
    assert command() == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| a |" in table and "| b |" in table and "1 seed(s)" in table
    report = json.loads((tmp_path / "out" / "table.json").read_text())
    assert report["rows"][0]["mean"]["s/image"] > 0
    assert report["rows"][0]["mean"]["params (M)"] > report["rows"][1]["mean"]["params (M)"]

    # One run was killed after its first checkpoint.
    broken = tmp_path / "out" / "b" / "seed0"
    (broken / "results.json").unlink()
    (broken / "last_checkpoint").write_text("model_0000000.pth")
    capsys.readouterr()
    assert command("--no-timing") == 0
    out = capsys.readouterr().out
    assert "Resuming" in out and "Training" not in out
    again = json.loads((tmp_path / "out" / "table.json").read_text())
    assert again["rows"][1]["mean"]["AP"] == report["rows"][1]["mean"]["AP"]


def test_ctrl_c_waits_until_the_run_has_saved(command, tmp_path):
    paths = os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))
    words = [TOOL, "--configs", "a.yaml", "--output", "out", "SOLVER.MAX_ITER", 9999,
             "SOLVER.CHECKPOINT_PERIOD", 9999]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=tmp_path, start_new_session=True, text=True,
        stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths},
        # What starts in the background ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    folder = tmp_path / "out" / "a" / "seed0"
    end = time.monotonic() + 200
    while "iter: 19" not in (text := read(folder / "console.txt")) and time.monotonic() < end:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=100)
    assert (process.returncode, error.splitlines()[-1]) == (130, "compare.py: interrupted"), text
    assert "Traceback" not in error
    assert "Interrupted after iteration" in read(folder / "console.txt")
    assert (folder / read(folder / "last_checkpoint")).exists()


def read(path):
    return path.read_text() if path.exists() else ""


def test_a_mistake_shows_before_the_first_run(command, tmp_path, capsys):
    assert command("--names", "one") == 2
    (tmp_path / "b.yaml").write_text("NO_SUCH_KEY: 1\n")
    assert command() == 2
    assert "NO_SUCH_KEY" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_failing_run_is_a_sentence(command, capsys):
    assert command("DATASETS.TRAIN", "('nowhere',)") == 2
    assert "console.txt" in capsys.readouterr().err
