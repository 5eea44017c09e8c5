"""Two processes on CPUs, through the same command as GPUs."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from clsloc.cli import INTERRUPTED_STATUS
from clsloc.engine.interrupt import InterruptGuard, end_together

PROGRAM = """
import sys
from clsloc.engine import argument_parser, run

if __name__ == "__main__":
    sys.exit(run(argument_parser().parse_args()))
"""

TINY = """
_BASE_: "Base-Digits-RCNN-FPN.yaml"
MODEL:
  FPN: {OUT_CHANNELS: 8, NORM: ""}
  RPN: {PRE_NMS_TOPK_TRAIN: 50, PRE_NMS_TOPK_TEST: 20, POST_NMS_TOPK_TEST: 10}
  ROI_HEADS: {NUM_CLASSES: 2}
  ROI_BOX_HEAD: {FC_DIM: 16}
  DEVICE: cpu
DATASETS: {TRAIN: ["pets"], TEST: ["pets"]}
INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 2}
"""


# Every region is sampled and each image has as many, so that the losses of one process are the
# means of those of two; no layer has batch statistics.
EXHAUSTIVE = """
MODEL.RESNETS.NORM GN MODEL.RPN.BATCH_SIZE_PER_IMAGE 4096 MODEL.RPN.POSITIVE_FRACTION 1.0
MODEL.RPN.POST_NMS_TOPK_TRAIN 10 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 64
MODEL.ROI_HEADS.POSITIVE_FRACTION 1.0 SOLVER.MAX_ITER 3 SEED 2
INPUT.RANDOM_FLIP horizontal DATASETS.TEST ()
""".split()


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def launch(tmp_path, *flags, processes=2):
    (tmp_path / "train.py").write_text(PROGRAM)
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = [sys.executable, "train.py", "--num-gpus", str(processes)]
    command += ["--config-file", "tiny.yaml", *flags]
    return subprocess.run(
        [*command, "OUTPUT_DIR", f"out{processes}"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )


def test_two_processes_train_and_evaluate(tmp_path, coco_folder):
    """Each of them registers the data of the flag and trains on its half of the batch."""
    coco_folder(*[[(3, (10, 10, 90, 90)), (7, (60, 20, 80, 80))]] * 3)
    done = launch(tmp_path, "--coco", "pets", "instances.json", ".")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out2" / "results.json").read_text())
    assert "bbox/AP90" in results["metrics"]
    predictions = json.loads(
        (tmp_path / "out2" / "inference" / "coco_instances_results.json").read_text()
    )
    assert {item["image_id"] for item in predictions} == {0, 1, 2}
    assert (tmp_path / "out2" / "log.txt.rank1").is_file()


def test_two_processes_lose_what_one_loses(tmp_path, coco_folder):
    coco_folder(*[[(3, (10, 10, 90, 90)), (7, (60, 20, 80, 80))]] * 4)
    losses, weights = [], []
    for processes in (1, 2):
        flags = ("--coco", "pets", "instances.json", ".", *EXHAUSTIVE)
        done = launch(tmp_path, *flags, processes=processes)
        assert done.returncode == 0, done.stderr
        folder = tmp_path / f"out{processes}"
        last = json.loads((folder / "metrics.json").read_text().splitlines()[-1])
        losses.append({name: value for name, value in last.items() if "loss" in name})
        checkpoint = torch.load(folder / "model_final.pth", weights_only=True)
        weights.append(checkpoint["model"])
    assert len(losses[0]) == 5
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_an_error_of_all_processes_appears_once(tmp_path):
    done = launch(tmp_path, "SOLVER.NO_SUCH_KEY", "1")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("SOLVER.NO_SUCH_KEY") == 2  # in one sentence: given, and at fault
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "number, workers", [(signal.SIGINT, "0"), (signal.SIGTERM, "1")], ids=["ctrl_c", "term"]
)
def test_a_signal_ends_all_processes_at_once(number, workers, tmp_path, coco_folder):
    coco_folder(*[[(3, (10, 10, 90, 90))]] * 4)
    (tmp_path / "tiny.yaml").write_text(TINY)
    words = ["--num-gpus", "2", "--config-file", "tiny.yaml", "--coco", "pets", "instances.json",
             ".", "SOLVER.MAX_ITER", "99999", "SOLVER.CHECKPOINT_PERIOD", "1",
             "DATALOADER.NUM_WORKERS", workers, "OUTPUT_DIR", "out"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "clsloc.train", *words], cwd=tmp_path, start_new_session=True,
        text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment(),
        # What starts in the background ignores Ctrl-C; it has to end all the same.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    try:
        end = time.monotonic() + 200
        while not (tmp_path / "out" / "last_checkpoint").exists() and time.monotonic() < end:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.2)
        if number == signal.SIGINT:  # a terminal sends it to all
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        # Until nobody holds the other end of the pipe: no process, no worker of a loader.
        _, error = process.communicate(timeout=30)
        assert process.returncode == INTERRUPTED_STATUS, error
        # A loader's worker that was just handing over a batch may say that nobody takes it.
        assert all("resource_sharer" in part for part in error.split("Traceback")[1:]), error
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_guard_of_one_of_several_processes_leaves_the_signals_alone():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with InterruptGuard(active=False) as guard:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert not guard.requested


def test_the_others_end_with_the_process_that_started_them():
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(100,))
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), end_together():
        other.start()
        signal.raise_signal(signal.SIGTERM)
    other.join(10)
    assert other.exitcode == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is handler
