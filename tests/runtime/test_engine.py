"""Training loop and hooks, on either Detectron2; the rest of the engine is in test_defaults.py."""

import json
import math
from pathlib import Path

import pytest
import torch
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.param_scheduler import CosineParamScheduler
from torch import nn

from detectron2.engine import (
    AMPTrainer,
    HookBase,
    SimpleTrainer,
    default_writers,
    hooks,
)
from detectron2.utils.events import get_event_storage


class _Quadratic(nn.Module):
    """Losses 2w² and w of a weight that starts at 1; a step with rate 0.1 gives w -> 0.6w - 0.1."""

    def __init__(self, bad_batch: int | None = None) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))
        self.bad_batch = bad_batch

    def forward(self, batch: int) -> dict[str, torch.Tensor]:
        linear = self.w.sum()
        if batch == self.bad_batch:
            linear = linear * math.nan
        return {"loss_square": 2 * self.w.pow(2).sum(), "loss_linear": linear}


def _count_up():
    batch = 0
    while True:
        yield batch
        batch += 1


def _trainer(*registered: HookBase, model: nn.Module | None = None, **options) -> SimpleTrainer:
    model = model or _Quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = SimpleTrainer(model, _count_up(), optimizer, **options)
    trainer.register_hooks(list(registered))
    return trainer


def _weights(steps: int) -> list[float]:
    values = [1.0]
    for _ in range(steps):
        values.append(0.6 * values[-1] - 0.1)
    return values


class _Recorder(HookBase):
    def __init__(self) -> None:
        self.calls = []

    def _record(self, point: str) -> None:
        self.calls.append((point, self.trainer.iter, self.trainer.storage.iter))

    def before_train(self) -> None:
        self._record("before_train")

    def after_train(self) -> None:
        self._record("after_train")

    def before_step(self) -> None:
        self._record("before_step")

    def after_backward(self) -> None:
        self._record("after_backward")

    def after_step(self) -> None:
        self._record("after_step")


STEP = ("before_step", "after_backward", "after_step")

# Loop


def test_hooks_are_called_in_order():
    recorder = _Recorder()
    _trainer(None, recorder).train(3, 5)
    assert recorder.calls == [
        ("before_train", 3, 3),
        *((point, 3, 3) for point in STEP),
        *((point, 4, 4) for point in STEP),
        ("after_train", 5, 5),
    ]


def test_after_train_also_follows_an_error():
    recorder = _Recorder()
    trainer = _trainer(recorder, model=_Quadratic(bad_batch=1))
    with pytest.raises(FloatingPointError, match="1"):
        trainer.train(0, 5)
    assert recorder.calls[-1] == ("after_train", 1, 1)
    # The step with the bad loss did not touch the weights.
    assert trainer.model.w.item() == pytest.approx(_weights(1)[-1])


@pytest.mark.parametrize("options", [{}, {"zero_grad_before_forward": True}])
def test_steps_and_their_scalars(options):
    trainer = _trainer(**options)
    trainer.train(0, 3)
    weights = _weights(3)
    assert trainer.model.w.item() == pytest.approx(weights[3])
    expected = [2 * w**2 + w for w in weights[:3]]
    total = trainer.storage.history("total_loss").values()
    assert [iteration for _, iteration in total] == [0, 1, 2]
    assert [value for value, _ in total] == pytest.approx(expected)
    linear = trainer.storage.history("loss_linear").values()
    assert [value for value, _ in linear] == pytest.approx(weights[:3])
    assert {"data_time", "rank_data_time"} <= set(trainer.storage.histories())


def test_metrics_in_a_thread_and_with_a_period():
    trainer = _trainer(async_write_metrics=True)
    trainer.train(0, 6)
    assert [i for _, i in trainer.storage.history("total_loss").values()] == list(range(6))
    trainer = _trainer(gather_metric_period=2)
    trainer.train(0, 6)
    assert [i for _, i in trainer.storage.history("total_loss").values()] == [1, 3, 5]


def test_a_single_loss_is_the_total_alone():
    class Single(_Quadratic):
        def forward(self, batch):
            return super().forward(batch)["loss_square"]

    trainer = _trainer(model=Single())
    trainer.train(0, 1)
    assert trainer.storage.history("total_loss").latest() == 2.0
    assert not any(name.startswith("loss") for name in trainer.storage.histories())


def test_data_loader_can_be_replaced():
    trainer = _trainer(model=_Quadratic(bad_batch=3))
    trainer.train(0, 3)
    trainer.reset_data_loader(_count_up)
    trainer.train(3, 6)
    assert trainer.model.w.item() == pytest.approx(_weights(6)[-1])


def test_amp_needs_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = _Quadratic()
    trainer = AMPTrainer(model, _count_up(), torch.optim.SGD(model.parameters(), lr=0.1))
    assert isinstance(trainer, SimpleTrainer)
    assert "grad_scaler" in trainer.state_dict()
    with pytest.raises(AssertionError, match="CUDA"):
        trainer.train(0, 1)


# Hooks


def test_timer_skips_the_warmup():
    trainer = _trainer(hooks.IterationTimer(warmup_iter=3))
    trainer.train(0, 6)
    assert [i for _, i in trainer.storage.history("time").values()] == [2, 3, 4, 5]


def test_callbacks():
    calls = []
    hook = hooks.CallbackHook(
        before_train=lambda trainer: calls.append("start"),
        after_step=lambda trainer: calls.append(trainer.iter),
        after_train=lambda trainer: calls.append("end"),
    )
    _trainer(hook).train(0, 2)
    assert calls == ["start", 0, 1, "end"]


def test_learning_rate_hook():
    trainer = _trainer(hooks.LRScheduler(scheduler=CosineParamScheduler(1, 0)))
    trainer.train(0, 4)
    expected = [0.1 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]
    rates = trainer.storage.history("lr").values()
    assert [value for value, _ in rates] == pytest.approx(expected)


def test_the_largest_group_gives_the_logged_rate():
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(5)]

    def choose(*groups: tuple[int, float]) -> int:
        remaining = iter(parameters)
        optimizer = torch.optim.SGD(
            [{"params": [next(remaining) for _ in range(n)], "lr": lr} for n, lr in groups]
        )
        return hooks.LRScheduler.get_best_param_group_id(optimizer)

    assert choose((1, 0.1), (3, 0.2), (1, 0.1)) == 1
    assert choose((1, 0.1), (1, 0.2), (1, 0.2)) == 1


def test_evaluation_periods_and_results():
    for total, period, count in [(4, 2, 2), (5, 2, 3), (4, 0, 1)]:
        results = ({"bbox": {"AP": value}} for value in range(1, 9))
        trainer = _trainer(hooks.EvalHook(period, results.__next__))
        trainer.train(0, total)
        assert trainer.storage.latest()["bbox/AP"] == (count, total)
    with pytest.raises(ValueError, match="many"):
        _trainer(hooks.EvalHook(0, lambda: {"AP": "many"})).train(0, 1)


@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [("max", [0.3, 0.5, 0.4], (0.5, 3)), ("min", [math.nan, 0.5, 0.6], (0.5, 3))],
)
def test_best_checkpoint(mode, values, best):
    results = iter(values)
    trainer = _trainer()
    checkpointer = Checkpointer(trainer.model, ".")
    hook = hooks.BestCheckpointer(2, checkpointer, "AP", mode, file_prefix="best")
    trainer.register_hooks([hooks.EvalHook(2, lambda: {"AP": next(results)}), hook])
    trainer.train(0, 6)
    assert (hook.best_metric, hook.best_iter) == best
    saved = torch.load("best.pth")
    assert saved["iteration"] == best[1]
    assert saved["model"]["w"].item() == pytest.approx(_weights(4)[-1])


def test_writers_see_what_evaluation_puts():
    trainer = _trainer(
        hooks.EvalHook(0, lambda: {"AP": 50}),
        hooks.PeriodicWriter(default_writers("out", max_iter=5), period=2),
    )
    trainer.train(0, 5)
    lines = [json.loads(line) for line in Path("out/metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 3, 4, 5]
    assert lines[-1] == {"AP": 50.0, "iteration": 5}
    assert lines[0]["loss_linear"] == pytest.approx(sum(_weights(1)) / 2)


def test_precise_batch_norm():
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1)

        def forward(self, x):
            get_event_storage().put_scalar("seen", 1)
            return {"loss": self.norm(x).sum()}

    model = Normed()
    batches = [torch.tensor([[value], [value + 2]]) for value in (1.0, 5.0, 9.0)]
    hook = hooks.PreciseBN(0, model, batches, num_iter=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = SimpleTrainer(model, iter([torch.rand(2, 1)] * 2), optimizer)
    trainer.register_hooks([hook])
    trainer.train(0, 2)
    assert model.norm.running_mean.item() == pytest.approx((2 + 6 + 10) / 3)
    assert len(trainer.storage.history("seen").values()) == 2


def test_profiler_writes_a_trace():
    hook = hooks.TorchProfiler(
        lambda trainer: trainer.iter == 1,
        "profile",
        activities=[torch.profiler.ProfilerActivity.CPU],
        save_tensorboard=False,
    )
    _trainer(hook).train(0, 3)
    assert [path.name for path in Path("profile").iterdir()] == ["profiler-trace-iter1.json"]


# Checkpoints


def _resumable(model: nn.Module) -> tuple[SimpleTrainer, Checkpointer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = SimpleTrainer(model, _count_up(), optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4)
    checkpointer = Checkpointer(model, "out", trainer=trainer)
    trainer.register_hooks(
        [
            hooks.LRScheduler(scheduler=scheduler),
            hooks.PeriodicCheckpointer(checkpointer, 3),
        ]
    )
    return trainer, checkpointer


def test_a_resumed_run_ends_with_the_same_weights():
    Path("out").mkdir()
    trainer, _ = _resumable(_Quadratic())
    trainer.train(0, 8)
    unbroken = trainer.model.w.item()
    names = sorted(path.name for path in Path("out").iterdir())
    expected = ["last_checkpoint", "model_0000002.pth", "model_0000005.pth", "model_final.pth"]
    assert names == expected

    trainer, checkpointer = _resumable(_Quadratic())
    rest = checkpointer.load("out/model_0000002.pth")
    assert trainer.iter == rest["iteration"] == 2
    trainer.train(trainer.iter + 1, 8)
    assert trainer.model.w.item() == pytest.approx(unbroken)
    assert trainer.state_dict()["hooks"]["LRScheduler"]["last_epoch"] == 8


def test_the_state_of_an_unknown_hook_is_ignored():
    trainer, _ = _resumable(_Quadratic())
    state = trainer.state_dict()
    state["hooks"]["NoSuchHook"] = {"a": 1}
    trainer.load_state_dict(state)
    assert trainer.iter == state["iteration"]
