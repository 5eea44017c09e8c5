"""Two processes on CPUs, through the same command as GPUs."""

import json
import os
import subprocess
import sys

PROGRAM = """
import sys
from clsloc.engine import argument_parser, run

if __name__ == "__main__":
    sys.exit(run(argument_parser().parse_args()))
"""

TINY = """
_BASE_: "Base-Digits-RCNN-FPN.yaml"
MODEL:
  FPN: {OUT_CHANNELS: 8}
  RPN: {PRE_NMS_TOPK_TRAIN: 50, PRE_NMS_TOPK_TEST: 20, POST_NMS_TOPK_TEST: 10}
  ROI_HEADS: {NUM_CLASSES: 2}
  ROI_BOX_HEAD: {FC_DIM: 16}
  DEVICE: cpu
DATASETS: {TRAIN: ["pets"], TEST: ["pets"]}
INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 2}
"""


def launch(tmp_path, *flags):
    (tmp_path / "train.py").write_text(PROGRAM)
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = [sys.executable, "train.py", "--num-gpus", "2", "--config-file", "tiny.yaml", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, "OUTPUT_DIR", "out"],
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
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "bbox/AP90" in results["metrics"]
    predictions = json.loads(
        (tmp_path / "out" / "inference" / "coco_instances_results.json").read_text()
    )
    assert {item["image_id"] for item in predictions} == {0, 1, 2}
    assert (tmp_path / "out" / "log.txt.rank1").is_file()


def test_an_error_of_all_processes_appears_once(tmp_path):
    done = launch(tmp_path, "SOLVER.NO_SUCH_KEY", "1")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("SOLVER.NO_SUCH_KEY") == 2  # in one sentence: given, and at fault
    assert "Traceback" not in done.stderr
