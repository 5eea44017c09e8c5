"""The best checkpoint and early stopping."""

from types import SimpleNamespace

import pytest
import torch

from clsloc.engine import argument_parser, main
from clsloc.engine.best import BestModel
from clsloc.errors import UserError


class Run:
    """Ten iterations whose evaluations, each second one, give the values in turn."""

    def __init__(self, values, *, patience=0, start=0, state=None):
        self.values, self.saved, self.now = values, [], []
        self.hook = BestModel(
            2, self._evaluate, lambda: {"bbox": {"AP": self.now[-1]}}, self._save,
            metric="bbox/AP", patience=patience,
        )  # fmt: skip
        self.hook.trainer = SimpleNamespace(start_iter=start, iter=start, max_iter=10)
        if state:
            self.hook.load_state_dict(state)

    def _evaluate(self):
        self.now.append(self.values[self.hook.trainer.start_iter // 2 - 1])
        return {"bbox": {"AP": self.now[-1]}}

    def _save(self, name, *, iteration):
        assert name == "model_best"
        self.saved.append(iteration)

    def go(self, until=10):
        trainer = self.hook.trainer
        self.hook.before_train()
        while trainer.iter < until and not self.hook.stop:
            if (trainer.iter + 1) % 2 == 0:
                self.now.append(self.values[trainer.iter // 2])
            self.hook.after_step()
            trainer.iter += 1
        if until == 10:
            self.hook.after_train()
        return self


def test_each_new_best_is_saved():
    run = Run([1.0, 3.0, 2.0, 3.0, 4.0]).go()
    assert run.saved == [1, 3, 9]
    assert (run.hook.best, run.hook.best_iteration) == (4.0, 9)


def test_stops_after_so_many_evaluations_without_a_new_best():
    run = Run([1.0, 3.0, 2.0, 3.0, 4.0], patience=2).go()
    assert run.hook.stop
    assert run.hook.trainer.iter == 8
    assert run.saved == [1, 3]


def test_a_metric_without_a_value_is_no_progress():
    run = Run([float("nan")] * 5, patience=3).go()
    assert run.hook.stop and run.saved == []


@pytest.mark.parametrize("broken_off", [2, 3, 4, 5, 6])
def test_a_resumed_run_decides_as_an_unbroken_one(broken_off):
    values = [3.0, 2.0, 1.0, 5.0, 6.0]
    whole = Run(values, patience=2).go()
    first = Run(values, patience=2).go(broken_off)
    second = Run(values, patience=2, start=broken_off, state=first.hook.state_dict()).go()
    assert second.hook.state_dict() == whole.hook.state_dict()
    assert second.hook.trainer.iter == whole.hook.trainer.iter == 6
    assert first.saved + second.saved == whole.saved


def test_killed_between_a_checkpoint_and_its_evaluation():
    values = [3.0, 4.0, 1.0, 1.0, 1.0]
    before = Run(values).go(3).hook.state_dict()
    resumed = Run(values, start=4, state=before).go()
    assert resumed.saved == [3]
    assert resumed.hook.best == 4.0


def test_an_unknown_metric_is_named_beside_the_known_ones():
    run = Run([1.0] * 5)
    run.hook._metric = "bbox/APx"
    with pytest.raises(UserError, match=r"'bbox/APx' is none of .* bbox/AP; set one of these"):
        run.go()


@pytest.fixture
def start(tiny_digits, tmp_path):
    """Arguments of a run that learns nothing: its first evaluation stays the best."""
    file = tmp_path / "tiny.yaml"
    file.write_text("""
_BASE_: "digits/faster_rcnn_R_18_FPN.yaml"
MODEL:
  FPN: {OUT_CHANNELS: 8, NORM: ""}
  RPN: {PRE_NMS_TOPK_TRAIN: 50, PRE_NMS_TOPK_TEST: 20, POST_NMS_TOPK_TEST: 10}
  ROI_BOX_HEAD: {FC_DIM: 16}
  DEVICE: cpu
INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 12, BASE_LR: 1.0e-12, CHECKPOINT_PERIOD: 2}
TEST: {EVAL_PERIOD: 2}
CLSLOC: {BEST: {METRIC: bbox/AP, PATIENCE: 2}}
SEED: 3
""")

    def start(*flags):
        words = ["--config-file", str(file), *flags, "OUTPUT_DIR", str(tmp_path / "out")]
        return argument_parser().parse_args(words)

    return start


def test_a_run_that_stopped_early_stays_stopped(start, tmp_path):
    main(start())

    def iteration(name):
        return torch.load(tmp_path / "out" / f"{name}.pth", weights_only=True)["iteration"]

    assert (iteration("model_best"), iteration("model_final")) == (1, 5)
    main(start("--resume"))
    assert (iteration("model_best"), iteration("model_final")) == (1, 5)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert log.count("Stopped early at iteration 6 of 12: bbox/AP has not risen for 2") == 2
