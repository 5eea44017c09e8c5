"""A run that is broken off and resumed ends with the weights of an unbroken one."""

import contextlib
import multiprocessing
import os
import random
import signal
import time

import pytest
import torch

from clsloc.cli import INTERRUPTED_STATUS
from clsloc.engine import argument_parser, main, run

COMMON = """
INPUT: {MIN_SIZE_TRAIN: [48, 64], MIN_SIZE_TEST: 64, RANDOM_FLIP: horizontal}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 10, CHECKPOINT_PERIOD: 2, WARMUP_ITERS: 4}
TEST: {EVAL_PERIOD: 4}
CLSLOC: {BEST: {METRIC: bbox/AP}}
MODEL:
  DEVICE: cpu
  FPN: {OUT_CHANNELS: 8, NORM: ""}
"""
FASTER_RCNN = """
_BASE_: "digits/faster_rcnn_R_18_FPN.yaml"
SEED: 3
  RPN: {PRE_NMS_TOPK_TRAIN: 50, PRE_NMS_TOPK_TEST: 20, POST_NMS_TOPK_TEST: 10}
  ROI_BOX_HEAD: {FC_DIM: 16}
"""
RETINANET = """
_BASE_: "digits/faster_rcnn_R_18_FPN.yaml"
  META_ARCHITECTURE: RetinaNet
  BACKBONE: {NAME: build_retinanet_resnet_fpn_backbone}
  RESNETS: {OUT_FEATURES: [res3, res4, res5]}
  FPN: {OUT_CHANNELS: 8, NORM: "", IN_FEATURES: [res3, res4, res5]}
  RETINANET: {NUM_CLASSES: 10, NUM_CONVS: 1}
  ANCHOR_GENERATOR: {SIZES: [[16], [24], [32], [48], [64]]}
SEED: 3
"""


def config(model: str) -> str:
    """The model's own lines come right behind the common node MODEL."""
    base, _, rest = model.strip().partition("\n")
    top = [line for line in rest.split("\n") if not line.startswith(" ")]
    nested = [line for line in rest.split("\n") if line.startswith("  ")]
    keys = {line.split(":")[0] for line in nested}
    common = [line for line in COMMON.strip().split("\n") if line.split(":")[0] not in keys]
    return "\n".join([base, *top, *common, *nested]) + "\n"


@pytest.fixture
def start(tiny_digits, tmp_path):
    """Parsed arguments for a run into a folder."""

    def start(folder, *overrides, resume=False, model=FASTER_RCNN):
        file = tmp_path / "tiny.yaml"
        file.write_text(config(model))
        flags = ["--resume"] if resume else []
        output = ["OUTPUT_DIR", str(tmp_path / folder)]
        return argument_parser().parse_args(
            ["--config-file", str(file), *flags, *output, *map(str, overrides)]
        )

    return start


def final(folder) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def assert_equal(first, second) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


@pytest.mark.parametrize("model", [FASTER_RCNN, RETINANET], ids=["faster_rcnn", "retinanet"])
def test_stopped_at_a_checkpoint_and_resumed(start, tmp_path, model):
    main(start("whole", model=model))
    main(start("broken", "SOLVER.MAX_ITER", 10, "DATALOADER.NUM_WORKERS", 2, model=model))
    assert_equal(final(tmp_path / "whole"), final(tmp_path / "broken"))
    # As if the run had been killed after its 6th iteration, while it wrote the next checkpoint.
    (tmp_path / "broken" / "last_checkpoint").write_text("model_0000005.pth")
    (tmp_path / "broken" / "model_final.pth").unlink()
    (tmp_path / "broken" / ".model_0000007.pth.tmp").write_bytes(b"half")
    main(start("broken", resume=True, model=model))
    assert_equal(final(tmp_path / "whole"), final(tmp_path / "broken"))


def test_killed_between_the_last_two_checkpoints(start, tmp_path):
    main(start("run"))
    expected = final(tmp_path / "run")
    (tmp_path / "run" / "last_checkpoint").write_text("model_0000009.pth")
    (tmp_path / "run" / "model_final.pth").unlink()
    main(start("run", resume=True))
    assert_equal(expected, final(tmp_path / "run"))
    saved = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    assert saved["iteration"] == 9


def test_a_drawn_seed_is_kept(start, tmp_path):
    main(start("run", "SEED", -1))
    expected = final(tmp_path / "run")
    (tmp_path / "run" / "last_checkpoint").write_text("model_0000003.pth")
    main(start("run", "SEED", -1, resume=True))
    assert_equal(expected, final(tmp_path / "run"))


def test_another_seed_gives_other_weights(start, tmp_path):
    main(start("one"))
    main(start("two", "SEED", 4))
    one, two = final(tmp_path / "one"), final(tmp_path / "two")
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_the_first_ctrl_c_saves_and_ends_with_status_130(start, tmp_path, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    main(start("whole"))
    from clsloc.engine.trainer import Trainer

    step = Trainer.run_step

    def interrupted(self):
        step(self)
        if self.iter == 4:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_step", interrupted)
        assert run(start("broken")) == INTERRUPTED_STATUS
    assert (tmp_path / "broken" / "last_checkpoint").read_text() == "model_0000004.pth"
    assert signal.getsignal(signal.SIGINT) is handler
    main(start("broken", resume=True))
    assert_equal(final(tmp_path / "whole"), final(tmp_path / "broken"))


def test_killed_at_random_moments(start, tmp_path):
    kills = int(os.environ.get("CLSLOC_TEST_KILLS", "20"))
    rng = random.Random(int(os.environ.get("CLSLOC_TEST_KILL_SEED", "0")))
    begin = time.monotonic()
    _in_process(start("whole")).join()
    duration = time.monotonic() - begin
    whole = final(tmp_path / "whole")
    done, runs = 0, 0
    while done < kills:
        folder = tmp_path / f"run{runs}"
        while not (folder / "results.json").exists():
            resume = (folder / "last_checkpoint").exists()
            workers = ("DATALOADER.NUM_WORKERS", rng.choice([0, 1, 2]))
            process = _in_process(start(folder.name, *workers, resume=resume))
            process.join(rng.uniform(0.05, 0.8) * duration)
            if process.is_alive():
                _kill(process.pid)
                done += 1
            process.join()
        assert_equal(whole, final(folder))
        runs += 1


def _in_process(args) -> multiprocessing.Process:
    # Forked, so that no kill is spent on the import of torch.
    process = multiprocessing.get_context("fork").Process(target=_quiet_main, args=(args,))
    process.start()
    return process


def _kill(pid: int) -> None:
    # With its loader workers: one that loses its parent while it starts would wait for ever.
    with contextlib.suppress(ProcessLookupError):  # too young to lead a group
        os.killpg(pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)


def _quiet_main(args) -> None:
    os.setsid()
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        main(args)
