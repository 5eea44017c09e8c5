"""Two processes on CPUs, through the same command as GPUs."""

import json
import os
import subprocess
import sys

import pytest
import torch

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


def launch(tmp_path, *flags, processes=2):
    (tmp_path / "train.py").write_text(PROGRAM)
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = [sys.executable, "train.py", "--num-gpus", str(processes)]
    command += ["--config-file", "tiny.yaml", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, "OUTPUT_DIR", f"out{processes}"],
        cwd=tmp_path,
        env=environment,
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
