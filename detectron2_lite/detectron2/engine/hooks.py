"""Hooks of the training loop: timing, logging, checkpoints, schedules, evaluation, profiling."""

import datetime
import itertools
import logging
import math
import operator
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.timer import Timer
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn

from detectron2.engine.train_loop import HookBase, TrainerBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver import LRMultiplier
from detectron2.solver import LRScheduler as _LRScheduler
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter
from detectron2.utils.file_io import PathManager

__all__ = [
    "CallbackHook",
    "IterationTimer",
    "PeriodicWriter",
    "PeriodicCheckpointer",
    "BestCheckpointer",
    "LRScheduler",
    "AutogradProfiler",
    "EvalHook",
    "PreciseBN",
    "TorchProfiler",
    "TorchMemoryStats",
]

logger = logging.getLogger(__name__)

Callback = Callable[[TrainerBase], Any]


class CallbackHook(HookBase):
    """Calls functions of the trainer; for hooks too small for a class.

    Args:
        before_train, after_train, before_step, after_step: called at that point if given.
    """

    def __init__(
        self,
        *,
        before_train: Callback | None = None,
        after_train: Callback | None = None,
        before_step: Callback | None = None,
        after_step: Callback | None = None,
    ) -> None:
        self._before_train = before_train
        self._before_step = before_step
        self._after_step = after_step
        self._after_train = after_train

    def before_train(self) -> None:
        if self._before_train:
            self._before_train(self.trainer)

    def after_train(self) -> None:
        if self._after_train:
            self._after_train(self.trainer)
        # Closures may hold the trainer: let go of them, so that it can be freed.
        del self._before_train, self._after_train, self._before_step, self._after_step

    def before_step(self) -> None:
        if self._before_step:
            self._before_step(self.trainer)

    def after_step(self) -> None:
        if self._after_step:
            self._after_step(self.trainer)


class IterationTimer(HookBase):
    """Puts the seconds of each iteration into the storage as ``time``, and logs the totals.

    It has to be the first hook: the time of the hooks before it counts as the iteration's.

    Args:
        warmup_iter: the first iterations, slower than the rest, are not counted.
    """

    def __init__(self, warmup_iter: int = 3) -> None:
        self._warmup_iter = warmup_iter
        self._step_timer = Timer()
        self._start_time = time.perf_counter()
        self._total_timer = Timer()

    def before_train(self) -> None:
        self._start_time = time.perf_counter()
        self._total_timer.reset()
        self._total_timer.pause()

    def after_train(self) -> None:
        total = time.perf_counter() - self._start_time
        in_steps = self._total_timer.seconds()
        iterations = self.trainer.storage.iter + 1 - self.trainer.start_iter - self._warmup_iter
        if iterations > 0 and in_steps > 0:
            logger.info(
                f"Overall training speed: {iterations} iterations in {_duration(in_steps)} "
                f"({in_steps / iterations:.4f} s / it)"
            )
        logger.info(
            f"Total training time: {_duration(total)} ({_duration(total - in_steps)} on hooks)"
        )

    def before_step(self) -> None:
        self._step_timer.reset()
        self._total_timer.resume()

    def after_step(self) -> None:
        done = self.trainer.storage.iter - self.trainer.start_iter + 1
        if done >= self._warmup_iter:
            self.trainer.storage.put_scalars(time=self._step_timer.seconds())
        else:
            self._start_time = time.perf_counter()
            self._total_timer.reset()
        self._total_timer.pause()


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds)))


class PeriodicWriter(HookBase):
    """Lets EventWriters write every ``period`` iterations, at the last one and after training.

    Args:
        writers: closed after training.
        period: in iterations.
    """

    def __init__(self, writers: list[EventWriter], period: int = 20) -> None:
        for writer in writers:
            assert isinstance(writer, EventWriter), f"{writer!r} is not an EventWriter."
        self._writers = writers
        self._period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        for writer in self._writers:
            # Other hooks may have put something at the end of training, such as an evaluation.
            writer.write()
            writer.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's checkpointer as a hook: ``model_0000999.pth`` ..., and ``model_final.pth``."""

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Saves a checkpoint whenever an evaluation result is the best so far.

    It has to come after the EvalHook that puts the result.

    Args:
        eval_period: that hook's period.
        checkpointer: saves.
        val_metric: name of the scalar to compare, for example ``"bbox/AP50"``.
        mode: ``"max"`` or ``"min"``, which is better.
        file_prefix: the file's name without its ending.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        assert mode in ("max", "min"), f"mode has to be 'max' or 'min', not {mode!r}."
        self._period = eval_period
        self._checkpointer = checkpointer
        self._val_metric = val_metric
        self._file_prefix = file_prefix
        self._is_better = operator.gt if mode == "max" else operator.lt
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def _best_checking(self) -> None:
        latest = self.trainer.storage.latest().get(self._val_metric)
        if latest is None:
            logger.warning(
                f"There is no scalar {self._val_metric} to choose the best checkpoint by; "
                "nothing is saved."
            )
            return
        value, iteration = latest
        known = self.best_metric is not None
        if not math.isfinite(value) or (known and not self._is_better(value, self.best_metric)):
            logger.info(
                f"Not saved: {self._val_metric} {value:0.5f} @ {iteration} is not better than "
                f"{self.best_metric} @ {self.best_iter}."
            )
            return
        self._checkpointer.save(self._file_prefix, iteration=iteration)
        logger.info(
            f"Saved as {self._file_prefix}: {self._val_metric} {value:0.5f} @ {iteration}, before "
            f"{self.best_metric} @ {self.best_iter}."
        )
        self.best_metric, self.best_iter = value, iteration

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._best_checking()

    def after_train(self) -> None:
        # Unlike in after_step, the final evaluation has been made by now.
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._best_checking()


class LRScheduler(HookBase):
    """Steps a learning-rate scheduler after each iteration and puts the rate as ``lr``.

    Args:
        optimizer: by default the trainer's.
        scheduler: a torch scheduler, or a fvcore ``ParamScheduler`` that multiplies the
            optimizer's rates; by default the trainer's.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: _LRScheduler | ParamScheduler | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler

    def before_train(self) -> None:
        self._optimizer = self._optimizer or self.trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer,
                self.scheduler,
                self.trainer.max_iter,
                last_iter=self.trainer.iter - 1,
            )
        self._best_param_group_id = LRScheduler.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """The group whose learning rate stands for all: the largest, or, if all hold a single
        parameter, the first one with the most frequent rate."""
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in optimizer.param_groups]
        return rates.index(Counter(rates).most_common(1)[0][0])

    def after_step(self) -> None:
        rate = self._optimizer.param_groups[self._best_param_group_id]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    @property
    def scheduler(self) -> _LRScheduler | ParamScheduler:
        return self._scheduler or self.trainer.scheduler

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict() if isinstance(self.scheduler, _LRScheduler) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if isinstance(self.scheduler, _LRScheduler):
            logger.info("Loading scheduler from state_dict ...")
            self.scheduler.load_state_dict(state_dict)


class TorchProfiler(HookBase):
    """Profiles chosen iterations with ``torch.profiler``.

    Args:
        enable_predicate: of the trainer; whether to profile the coming iteration.
        output_dir: where the traces go.
        activities: as in ``torch.profiler.profile``.
        save_tensorboard: write for TensorBoard below ``output_dir/log``; else a Chrome trace
            ``profiler-trace-iterN.json``.
    """

    def __init__(
        self,
        enable_predicate: Callable[[TrainerBase], bool],
        output_dir: str,
        *,
        activities: Iterable | None = None,
        save_tensorboard: bool = True,
    ) -> None:
        self._enable_predicate = enable_predicate
        self._output_dir = output_dir
        self._activities = activities
        self._save_tensorboard = save_tensorboard
        self._profiler: Any = None

    def before_step(self) -> None:
        if self._enable_predicate(self.trainer):
            self._profiler = self._make_profiler()
            self._profiler.__enter__()

    def _make_profiler(self) -> Any:
        on_trace_ready = None
        if self._save_tensorboard:
            folder = os.path.join(
                self._output_dir, "log", f"profiler-tensorboard-iter{self.trainer.iter}"
            )
            on_trace_ready = torch.profiler.tensorboard_trace_handler(
                folder, f"worker{comm.get_rank()}"
            )
        return torch.profiler.profile(
            activities=self._activities,
            on_trace_ready=on_trace_ready,
            record_shapes=True,
            profile_memory=True,
            with_stack=True,
            with_flops=True,
        )

    def after_step(self) -> None:
        if self._profiler is None:
            return
        self._profiler.__exit__(None, None, None)
        if not self._save_tensorboard:
            PathManager.mkdirs(self._output_dir)
            name = f"profiler-trace-iter{self.trainer.iter}.json"
            self._profiler.export_chrome_trace(os.path.join(self._output_dir, name))
        self._profiler = None


class AutogradProfiler(TorchProfiler):
    """Profiles chosen iterations with ``torch.autograd.profiler`` into Chrome traces.

    Args:
        enable_predicate: of the trainer; whether to profile the coming iteration.
        output_dir: where the traces go.
        use_cuda: profile the GPU as well.
    """

    def __init__(
        self,
        enable_predicate: Callable[[TrainerBase], bool],
        output_dir: str,
        *,
        use_cuda: bool = True,
    ) -> None:
        super().__init__(enable_predicate, output_dir, save_tensorboard=False)
        self._use_cuda = use_cuda

    def _make_profiler(self) -> Any:
        return torch.autograd.profiler.profile(use_device="cuda" if self._use_cuda else None)


class EvalHook(HookBase):
    """Evaluates periodically and after training, and puts the results into the storage.

    All processes call the function; nothing is put for results that are empty or ``None``.

    Args:
        eval_period: in iterations; 0 for after training only.
        eval_function: returns a nested dict of numbers, which become scalars such as
            ``bbox/AP``.
        eval_after_train: whether to evaluate after the last iteration.
    """

    def __init__(
        self,
        eval_period: int,
        eval_function: Callable[[], dict | None],
        eval_after_train: bool = True,
    ) -> None:
        self._period = eval_period
        self._func = eval_function
        self._eval_after_train = eval_after_train

    def _do_eval(self) -> None:
        results = self._func()
        if results:
            assert isinstance(results, dict), (
                f"The evaluation function has to return a dict, not {results!r}."
            )
            flattened = flatten_results_dict(results)
            for name, value in flattened.items():
                try:
                    flattened[name] = float(value)
                except (TypeError, ValueError) as error:
                    raise ValueError(
                        "The evaluation function has to return a nested dict of numbers, but "
                        f"{name} is {value!r}."
                    ) from error
            self.trainer.storage.put_scalars(**flattened, smoothing_hint=False)
        # Evaluation takes some processes longer than others, and only some of them go on to
        # write; without waiting, the next step's collectives would run into timeouts.
        comm.synchronize()

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        # The last iteration's turn comes in after_train.
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._do_eval()

    def after_train(self) -> None:
        # Not after a failure.
        if self._eval_after_train and self.trainer.iter + 1 >= self.trainer.max_iter:
            self._do_eval()
        # The function is often a closure over the trainer: let go of it.
        del self._func


class PreciseBN(HookBase):
    """Replaces BatchNorm's moving averages by the true averages over ``num_iter`` batches.

    It comes before the EvalHook and the checkpointer, so that they see the new statistics.

    Args:
        period: in iterations; 0 for the last iteration only.
        model: nothing is done if none of its BatchNorm layers is in training mode.
        data_loader: its batches are given to the model.
        num_iter: how many batches.
    """

    def __init__(self, period: int, model: nn.Module, data_loader: Iterable, num_iter: int) -> None:
        self._disabled = len(get_bn_modules(model)) == 0
        if self._disabled:
            logger.info("PreciseBN is disabled: no BatchNorm layer is in training mode.")
        self._period = period
        self._model = model
        self._data_loader = data_loader
        self._num_iter = num_iter
        self._data_iter: Any = None

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        is_period = self._period > 0 and done % self._period == 0
        if is_period or done == self.trainer.max_iter:
            self.update_stats()

    def update_stats(self) -> None:
        """Run the batches through the model and set the statistics."""
        if self._disabled:
            return
        if self._data_iter is None:
            self._data_iter = iter(self._data_loader)
        logger.info(f"Running precise-BN for {self._num_iter} iterations ...")
        # A storage of its own takes what the model puts during these batches, to be dropped.
        with EventStorage():
            batches = itertools.islice(self._data_iter, self._num_iter)
            update_bn_stats(self._model, batches, self._num_iter)


class TorchMemoryStats(HookBase):
    """Logs CUDA's memory use every ``period`` iterations, ``max_runs`` times; peaks are reset.

    Args:
        period: in iterations.
        max_runs: how often.
    """

    def __init__(self, period: int = 20, max_runs: int = 10) -> None:
        self._period = period
        self._max_runs = max_runs
        self._runs = 0

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._runs >= self._max_runs or not torch.cuda.is_available():
            return
        if done % self._period != 0 and done != self.trainer.max_iter:
            return
        self._runs += 1
        megabytes = {
            "max_reserved_mem": torch.cuda.max_memory_reserved(),
            "reserved_mem": torch.cuda.memory_reserved(),
            "max_allocated_mem": torch.cuda.max_memory_allocated(),
            "allocated_mem": torch.cuda.memory_allocated(),
        }
        sizes = "  ".join(f"{name}: {size / 1024**2:.0f}MB" for name, size in megabytes.items())
        logger.info(f" iter: {self.trainer.iter}  {sizes}")
        if self._runs == self._max_runs:
            logger.info("\n" + torch.cuda.memory_summary())
        torch.cuda.reset_peak_memory_stats()
