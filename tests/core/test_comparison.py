"""From runs to a table; broken off and continued."""

import contextlib
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from clsloc.cli import run
from clsloc.engine import argument_parser, setup_cfg
from clsloc.engine.interrupt import InterruptGuard
from clsloc.engine.same_config import differences
from clsloc.gauges import plots
from clsloc.gauges.comparison import difference_cells, markdown, summarise, table_cells
from clsloc.origin import hardware
from detectron2.engine import default_setup

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
            {"bbox/AP": 40.0, "bbox/AP55": 50.0, "bbox/APl": None, "params_millions": 1.5},
            {"bbox/AP": 42.0, "bbox/AP55": 54.0, "bbox/APl": math.nan},
        ],
        "none": [],
        "b": [{"bbox/AP": 50.0, "bbox/AP50": 70.0}] * 2,
    }
    a, b = summarise(runs)
    assert (a["method"], a["runs"], a["mean"]["AP"]) == ("a", 2, 41.0)
    assert a["std"]["AP"] == pytest.approx(math.sqrt(2))  # sample standard deviation
    assert a["mean"]["APl"] is None and a["std"]["params (M)"] is None
    assert a["ap_by_iou"] == {"0.55": {"mean": 52.0, "std": pytest.approx(math.sqrt(8))}}
    lines = markdown(table_cells([a, b])).splitlines()
    titles = "| method | seeds | AP | ΔAP | AP50 | AP60 | AP70 | AP75 | AP80 | AP90 | APs |"
    assert lines[0].startswith(titles)
    assert lines[2].startswith("| a | 2 | 41.0 ± 1.4 | - | - |") and "| 1.50 |" in lines[2]
    assert lines[3].startswith("| b | 2 | 50.0 ± 0.0 | - | 70.0 ± 0.0 |")  # a spread of 0 is one
    assert "ΔAP" not in table_cells([a])[0]


def test_faces_have_columns_of_their_own():
    def run(easy, **more):
        return {"seed": 0, "face/easy": easy, "face/medium": 70.0, "face/hard": None, **more}

    rows = summarise({"a": [run(80.0)], "b": [run(83.0)]})
    titles, a, b = table_cells(rows)
    assert (
        titles[:6] == ["method", "seeds", "easy", "Δeasy", "medium", "hard"] and "AP" not in titles
    )
    assert a[:6] == ["a", "1", "80.0", "-", "70.0", "-"]
    assert b[:6] == ["b", "1", "83.0", "+3.0", "70.0", "-"]
    assert difference_cells(rows)[0] == ["method", "pairs", "Δeasy", "Δmedium", "Δhard"]

    both = table_cells(summarise({"a": [run(80.0, **{"bbox/AP": 30.0})]}))[0]
    assert both[2] == "AP" and both.index("easy") > both.index("APl")


def test_differences_are_paired_by_seed():
    def run(seed, ap, ap50):
        return {"seed": seed, "bbox/AP": ap, "bbox/AP50": ap50}

    runs = {
        "first": [run(0, 10.0, 20.0), run(1, 30.0, None)],
        "b": [run(1, 33.0, 50.0), run(2, 99.0, 99.0), run(0, 11.0, 19.0)],
        "c": [run(5, 1.0, 1.0)],
    }
    first, b, c = summarise(runs)
    assert first["difference"] is None and c["difference"]["seeds"] == []
    assert b["difference"]["seeds"] == [1, 0]
    assert b["difference"]["mean"]["AP"] == 2.0  # of 3 and 1; the means of all differ by 27.7
    assert b["difference"]["std"]["AP"] == pytest.approx(math.sqrt(2))
    assert b["difference"]["mean"]["AP50"] == -1.0 and b["difference"]["std"]["AP50"] is None
    titles, *lines = difference_cells([first, b, c])
    assert titles[:4] == ["method", "pairs", "ΔAP", "ΔAP50"]
    assert [line[:4] for line in lines] == [["b", "2", "+2.0 ± 1.4", "-1.0"]]
    assert [line[3] for line in table_cells([first, b, c])[1:]] == ["-", "+2.0 ± 1.4", "-"]


def test_differences_to_a_method_without_runs_are_none():
    (b,) = summarise({"first": [], "b": [{"seed": 0, "bbox/AP": 1.0}]})
    assert b["difference"]["seeds"] == [] and difference_cells([b])[1:] == []


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("compare", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def command(tool, tiny_digits, tmp_path):
    (tmp_path / "a.yaml").write_text(TINY)
    (tmp_path / "b.yaml").write_text(TINY.replace("FC_DIM: 16", "FC_DIM: 8"))
    common = ["--output", str(tmp_path / "out"), "--configs"]
    common += [str(tmp_path / name) for name in ("a.yaml", "b.yaml")]

    def command(*words):
        return run(tool.main, tool.parser(), [*common, *words])

    return command


class Addresses(HTMLParser):
    """What a page would load."""

    def __init__(self, text):
        super().__init__()
        self.found, self.tags = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset")]


def test_a_comparison_goes_on_where_it_was_stopped(command, tmp_path, capsys):
    assert command() == 0
    out = tmp_path / "out"
    table = (out / "table.md").read_text()
    assert "| a |" in table and "| b |" in table and "1 seed(s)" in table
    assert "not finished" not in table
    report = json.loads((out / "table.json").read_text())
    assert report["rows"][0]["mean"]["s/image"] > 0
    assert report["rows"][0]["mean"]["params (M)"] > report["rows"][1]["mean"]["params (M)"]
    assert len(report["rows"][0]["ap_by_iou"]) == 10
    assert report["rows"][1]["difference"]["seeds"] == [0]
    assert report["made_with"]["torch"] and report["configs"]["a"].endswith("a.yaml")
    assert report["made_with"]["hardware"] == hardware()

    # One run was killed after its first checkpoint.
    broken = out / "b" / "seed0"
    (broken / "results.json").unlink()
    (broken / "last_checkpoint").write_text("model_0000000.pth")
    capsys.readouterr()
    assert command("--no-timing") == 0
    text = capsys.readouterr().out
    assert "Resuming" in text and "Training" not in text
    again = json.loads((out / "table.json").read_text())
    assert again["rows"][1]["mean"]["AP"] == report["rows"][1]["mean"]["AP"]
    assert again["rows"][1]["mean"]["s/image"] == report["rows"][1]["mean"]["s/image"]


def test_mixed_precision_may_differ_where_one_run_is_for_a_cpu():
    cfg = setup_cfg(freeze=False)
    cfg.SOLVER.AMP.ENABLED = False
    for device, stored, expected in (
        ("cuda", "cuda", {"SOLVER.AMP.ENABLED": (True, False)}),
        ("cuda", "cpu", {}),
        ("cpu", "cuda", {}),
    ):
        cfg.MODEL.DEVICE = device
        old = {"MODEL": {"DEVICE": stored}, "SOLVER": {"AMP": {"ENABLED": True}}}
        assert differences(old, cfg) == expected


@pytest.fixture
def finished(command, tmp_path):
    """Writes what a run of ``command()`` leaves behind."""

    def finished(name, seed, ap, **metrics):
        folder = tmp_path / "out" / name / f"seed{seed}"
        (folder / "inference").mkdir(parents=True)
        cfg = setup_cfg(config_file=str(tmp_path / f"{name}.yaml"), overrides=["SEED", str(seed)])
        (folder / "config.yaml").write_text(cfg.dump())
        found = [{"image_id": 1, "category_id": 1, "bbox": [9, 9, 50, 50], "score": 0.9}]
        (folder / "inference" / "coco_instances_results.json").write_text(json.dumps(found))
        values = {f"bbox/{metric}": value for metric, value in {"AP": ap, **metrics}.items()}
        lines = [{"iteration": i, "total_loss": 9 / i, "bbox/AP": i} for i in (20, 40)]
        (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
        content = {
            "metrics": values,
            "seconds_per_iteration": 0.5,
            "versions": {"python": "3", "torch": "2"},
        }
        (folder / "results.json").write_text(json.dumps(content))
        return folder

    return finished


def test_a_run_of_another_config_is_refused_before_any_training(
    command, finished, tmp_path, capsys
):
    folder = finished("b", 0, ap=30.0)
    # With a seed more than there was, and a key that came with a later version.
    stored = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(stored.replace("LAZY_LOCALISATION: true", "GONE: 1"))
    words = ("--seeds", "2", "SOLVER.MAX_ITER", "1100", "SOLVER.IMS_PER_BATCH", "4")
    more = ("TEST.DETECTIONS_PER_IMAGE", "7", "INPUT.MIN_SIZE_TRAIN", "(32, 64)")
    assert command(*words, *more) == 2
    error = capsys.readouterr().err
    assert f"The run in {str(folder)!r} was made with INPUT.MIN_SIZE_TRAIN [64], now " in error
    assert "now [32, 64], SOLVER.IMS_PER_BATCH 2, now 4, SOLVER.MAX_ITER 2, now 1100" in error
    assert "and 1 more key(s)" in error and "TEST." not in error and "GONE" not in error
    assert "another --output, or delete that folder to train it again." in error
    assert error.count("\n") == 1 and not (tmp_path / "out" / "a").exists()
    assert (folder / "results.json").exists()

    # So is one that was broken off; what has nothing to go on from begins anew in any case.
    (folder / "results.json").rename(folder / "last_checkpoint")
    assert command("SOLVER.MAX_ITER", "3") == 2
    assert "SOLVER.MAX_ITER 2, now 3;" in capsys.readouterr().err
    (folder / "last_checkpoint").rename(folder / "results.json")
    (folder / "config.yaml").write_text(stored)
    assert command("--report-only", "SOLVER.MAX_ITER", "3") == 0


@pytest.fixture
def quick_runs(tool, monkeypatch):
    """Runs write their config as ``clsloc.train`` does, and figures; the list of commands."""
    commands = []
    lock = threading.Lock()

    def quick(_, command, **options):
        commands.append(command)
        args = argument_parser().parse_args(command[command.index("--config-file") :])
        with lock, tool.only_here():
            cfg = setup_cfg(args)
            default_setup(cfg, args)
        content = {"metrics": {"bbox/AP": 1.0}, "versions": {"python": "3", "torch": "2"}}
        Path(cfg.OUTPUT_DIR, "results.json").write_text(json.dumps(content))
        return 0

    monkeypatch.setattr(tool.Processes, "run", quick)
    return commands


def test_the_same_command_is_never_refused(
    tool, command, quick_runs, coco_folder, tmp_path, monkeypatch
):
    coco_folder([(3, (10, 10, 90, 90))])
    (tmp_path / "w.pth").touch()
    gpus = ["--jobs", "2", "--seeds", "2", "--no-timing", "--gallery", "0"]
    data = ["--flag", "--coco mine instances.json ."]
    keys = [
        "DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine',)", "MODEL.DEVICE", "cuda",
        "SOLVER.REFERENCE_WORLD_SIZE", "1", "SOLVER.AMP.ENABLED", "True", "SOLVER.STEPS", "(1,)",
        "MODEL.ROI_HEADS.NUM_CLASSES", "2", "SOLVER.BASE_LR", "1e-5",
    ]  # fmt: skip

    def again(*words):
        with tool.only_here():  # as in a process of its own
            assert command(*words) == 0
        return len(quick_runs)

    weights = ["MODEL.WEIGHTS", "w.pth"]
    assert again(*gpus, *data, "--flag", "--num-gpus 2", *keys, *weights) == 4
    assert again(*gpus, *data, "--flag", "--num-gpus 2", *keys, *weights) == 4
    # Where there are GPUs, and with the same files by other names.
    weights = ["MODEL.WEIGHTS", str(tmp_path / "w.pth")]
    data = ["--flag", f"--coco mine {tmp_path}/instances.json ./"]
    keys += ["SOLVER.CHECKPOINT_PERIOD", "7", "DATALOADER.NUM_WORKERS", "0"]
    monkeypatch.setattr(tool.torch.cuda, "is_available", lambda: True)
    assert again(*gpus, *data, *keys, *weights) == 4
    (tmp_path / "other.json").write_text((tmp_path / "instances.json").read_text())
    other = ["--flag", "--coco mine other.json ."]
    with tool.only_here():
        assert command(*gpus, *other, *keys, *weights) == 2


def test_the_page_shows_it_all_and_loads_nothing(command, finished, tmp_path):
    out = tmp_path / "out"
    for seed in (0, 1):
        finished("a", seed, ap=20.0 + seed, AP50=40.0, AP55=38.0)
        finished("b", seed, ap=25.0 + seed, AP50=42.0, AP75=20.0)
    # Timed by an earlier report.
    runs = {name: [{"seconds_per_image": 0.1}, {}] for name in "ab"}
    (out / "table.json").write_text(json.dumps({"runs": runs}))
    assert command("--seeds", "2", "--no-timing", "--gallery", "2") == 0
    for name in ("ap_by_iou", "training_curves", "ap_by_latency"):
        assert Image.open(out / f"{name}.png").width > 500
    text = (out / "index.html").read_text()
    page = Addresses(text)
    assert {"table", "img", "style"} <= page.tags and not page.tags & {"script", "link", "iframe"}
    assert all(address.startswith("data:image/") for address in page.found)
    assert len(page.found) == 3 + 2 * (1 + 2)  # plots; of two images the truth and two methods
    assert "@import" not in text and "url(" not in text
    assert "<td>a</td>" in text and "ground truth" in text and "Difference to a" in text
    assert "<td>+5.0 ± 0.0</td>" in text and "<td>0.1000</td>" in text


def test_a_report_of_what_is_finished_trains_nothing(command, finished, tmp_path, capsys):
    assert command("--report-only") == 2
    assert "is finished; leave out --report-only" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    # As written before AP was told at each threshold, and without its predictions.
    folder = finished("b", 0, ap=30.0, AP50=50.0, AP75=25.0, APl=None)
    (folder / "inference" / "coco_instances_results.json").unlink()
    words = ("--report-only", "--seeds", "2", "--json", str(tmp_path / "copy.json"))
    assert command(*words) == 0
    assert "Training" not in capsys.readouterr().out
    assert not (tmp_path / "out" / "a").exists()
    report = json.loads((tmp_path / "copy.json").read_text())
    assert report == json.loads((tmp_path / "out" / "table.json").read_text())
    assert [row["method"] for row in report["rows"]] == ["b"]
    assert list(report["rows"][0]["ap_by_iou"]) == ["0.50", "0.75"]
    assert report["unfinished"] == ["a/seed0", "a/seed1", "b/seed1"]
    assert "not finished: 3." in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "ap_by_iou.png").exists()
    assert not (tmp_path / "out" / "ap_by_latency.png").exists()


def test_seeds_of_several_machines_are_put_together(command, finished, tmp_path):
    for seed in (1, 2):
        finished("a", seed, ap=20.0 + seed)
    assert command("--report-only", "--first-seed", "1", "--seeds", "2", "--gallery", "0") == 0
    report = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [run["seed"] for run in report["runs"]["a"]] == [1, 2]
    assert report["unfinished"] == ["b/seed1", "b/seed2"]


def test_no_gallery_where_the_data_is_not(command, finished, tmp_path, caplog):
    folder = finished("a", 0, ap=30.0)
    text = (folder / "config.yaml").read_text().replace("digits_val", "elsewhere_val")
    (folder / "config.yaml").write_text(text)
    assert command("--report-only") == 0
    assert "No gallery" in caplog.text and "elsewhere_val" in caplog.text
    assert "ground truth" not in (tmp_path / "out" / "index.html").read_text()


def test_without_matplotlib_a_sentence_comes_before_the_first_run(
    command, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert command() == 2
    assert "pip install matplotlib" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_to_draw_is_no_picture():
    rows = summarise({"a": [{"bbox/AP": None}], "b": [{}]})
    assert plots.ap_by_iou(rows) is None and plots.ap_by_latency(rows) is None
    assert plots.training_curves({"a": [{}], "b": []}) is None


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


STUB = """#!{python}
import os, signal, sys, time
from pathlib import Path

folder, got = Path(sys.argv[-1]), []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: got.append(signal.Signals(number).name))
(folder / "started").write_text(str(os.getpid()))
end = time.monotonic() + 60
while not got and time.monotonic() < end:
    time.sleep(0.05)
time.sleep(2)
(folder / "got").write_text(" ".join(got))
sys.exit(130)
"""
# compare.py with the stub in place of the Python that trains.
STUBBED = "import runpy, sys; sys.executable = './stub'; sys.argv[0] = {tool!r}; "
STUBBED += "runpy.run_path({tool!r}, run_name='__main__')"


@pytest.mark.parametrize(
    "background, signals, got",
    [
        (False, ["SIGTERM", "SIGTERM"], "SIGINT"),
        (True, ["SIGTERM"], "SIGTERM"),  # where Ctrl-C is ignored until the training begins
        (False, ["SIGINT"], "SIGINT"),  # a terminal sends it to all
        (False, ["SIGINT", "SIGTERM"], "SIGINT SIGTERM"),
    ],
)
def test_signals_reach_the_runs_once_and_no_other_begins(
    background, signals, got, tiny_digits, tmp_path
):
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(TINY)
    (tmp_path / "stub").write_text(STUB.format(python=sys.executable))
    (tmp_path / "stub").chmod(0o755)
    paths = os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))
    words = ["--configs", "a.yaml", "b.yaml", "--output", "out", "--seeds", "2", "--jobs", "2"]
    handler = signal.SIG_IGN if background else signal.default_int_handler
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBED.format(tool=str(TOOL)), *words], cwd=tmp_path, text=True,
        start_new_session=True, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths},
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
    )  # fmt: skip
    folders = [tmp_path / "out" / name / "seed0" for name in "ab"]
    try:
        end = time.monotonic() + 200
        while not all(read(folder / "started") for folder in folders):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        for name in signals:
            number = signal.Signals[name]
            os.killpg(process.pid, number) if name == "SIGINT" else process.send_signal(number)
            time.sleep(0.5)
        _, error = process.communicate(timeout=100)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    status, word = (143, "terminated") if "SIGTERM" in signals else (130, "interrupted")
    # Those that ran have come to their end before compare.py has.
    assert [read(folder / "got") for folder in folders] == [got, got]
    assert (process.returncode, error.splitlines()[-1]) == (status, f"compare.py: {word}")
    assert "Traceback" not in error
    assert sorted(tmp_path.glob("out/*/*")) == folders


def test_a_run_saves_that_is_told_by_a_batch_system_and_by_its_parent():
    with InterruptGuard() as guard:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert guard.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def read(path):
    return path.read_text() if path.exists() else ""


def test_a_mistake_shows_before_the_first_run(command, tmp_path, capsys):
    assert command("--names", "one") == 2
    assert command("--gallery", "-1") == 2
    assert command("--jobs", "0") == 2
    assert command("--first-seed", "-1") == 2
    assert "--first-seed -1 is too few; give at least 0." in capsys.readouterr().err
    assert command("DATASETS.TEST", "('digits_val', 'digits_train')") == 2
    assert "names 2" in capsys.readouterr().err
    (tmp_path / "b.yaml").write_text(TINY + "DATASETS: {TEST: [digits_train]}\n")
    assert command() == 2
    error = capsys.readouterr().err
    assert "a has 'digits_val' and b has 'digits_train';" in error and error.count("\n") == 1
    (tmp_path / "b.yaml").write_text("NO_SUCH_KEY: 1\n")
    assert command() == 2
    assert "NO_SUCH_KEY" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_failing_run_is_a_sentence(command, capsys):
    assert command("DATASETS.TRAIN", "('nowhere',)") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "2 runs failed, the first of them so: " in error
    assert "out/a/seed0' ended with status 2; its console.txt says why, and ends with " in error
    assert "nowhere" in error  # the sentence of the training


def test_where_a_run_fails_the_others_go_on(command, tmp_path, capsys):
    text = (tmp_path / "a.yaml").read_text()
    (tmp_path / "a.yaml").write_text(f"{text}\nDATASETS: {{TRAIN: [nowhere]}}\n")
    assert command("--jobs", "2", "--seeds", "2", "--no-timing") == 2
    out, error = capsys.readouterr()
    last = error.splitlines()[-1]  # loggers of earlier tests may write, too
    assert "2 runs failed" in last and "out/a/seed" in last
    assert "| b |" in out and all(f"out/a/seed{seed}' ended with" in out for seed in (0, 1))
    report = json.loads((tmp_path / "out" / "table.json").read_text())
    assert report["unfinished"] == ["a/seed0", "a/seed1"]
    assert [row["method"] for row in report["rows"]] == ["b"]

    (tmp_path / "a.yaml").write_text(text)
    assert command("--jobs", "2", "--seeds", "2", "--no-timing") == 0
    assert "out/b" not in capsys.readouterr().out.split("| method")[0]
    report = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [row["runs"] for row in report["rows"]] == [2, 2] and not report["unfinished"]


def test_runs_at_a_time_share_cores_and_gpus(tool, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert tool.share(0, jobs=1) == dict(os.environ)
    monkeypatch.setattr(tool.torch.cuda, "device_count", lambda: 0)
    assert tool.share(2, jobs=3) == {**os.environ, "OMP_NUM_THREADS": "2"}
    assert tool.share(2, jobs=99)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setattr(tool.torch.cuda, "device_count", lambda: 2)
    assert [tool.share(i, jobs=3)["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert tool.share(1, jobs=2) == {**os.environ, "CUDA_VISIBLE_DEVICES": "7"}
