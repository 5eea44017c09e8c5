"""The training loop: hooks around steps, and trainers for the common kind of step."""

import concurrent.futures
import logging
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage

__all__ = ["HookBase", "TrainerBase", "SimpleTrainer", "AMPTrainer"]

logger = logging.getLogger(__name__)


class HookBase:
    """What is done at fixed points of the loop; see :meth:`TrainerBase.train` for their order.

    ``trainer`` is set when the hook is registered. In ``after_train``,
    ``trainer.iter == trainer.max_iter`` only if training came to its end.
    """

    trainer: "TrainerBase" = None

    def before_train(self) -> None:
        """Before the first iteration."""

    def after_train(self) -> None:
        """After the last iteration, also after an error."""

    def before_step(self) -> None:
        """Before each iteration."""

    def after_backward(self) -> None:
        """Between the backward pass and the optimizer's step."""

    def after_step(self) -> None:
        """After each iteration; ``trainer.iter`` is the one just finished."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold; hooks with a state also have ``load_state_dict``."""
        return {}


class TrainerBase:
    """Runs iterations with hooks; subclasses say what an iteration is (:meth:`run_step`).

    Attributes:
        iter: the current iteration.
        start_iter, max_iter: the loop runs from the one up to, without, the other.
        storage: the run's EventStorage, open during training.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: list[HookBase | None]) -> None:
        """Append hooks, to be called in this order; ``None`` is skipped."""
        for hook in hooks:
            if hook is None:
                continue
            assert isinstance(hook, HookBase), f"{hook!r} is not a HookBase."
            # A proxy, since hooks often hold the model: a cycle would keep it on the GPU.
            hook.trainer = weakref.proxy(self)
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run iterations ``start_iter`` to ``max_iter - 1``."""
        logger.info(f"Starting training from iteration {start_iter}")
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                # Tells after_train, which also runs after an error, that all is done.
                self.iter += 1
            except Exception:
                logger.exception("Exception during training:")
                raise
            finally:
                self.after_train()

    def before_train(self) -> None:
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        # Whatever is put into the storage during the step belongs to this iteration.
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Iteration and the states of hooks, by class name; of several of a class, the first."""
        state: dict[str, Any] = {"iteration": self.iter}
        hook_states: dict[str, Any] = {}
        for hook in self._hooks:
            hook_state = hook.state_dict()
            if hook_state:
                hook_states.setdefault(type(hook).__qualname__, hook_state)
        if hook_states:
            state["hooks"] = hook_states
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.iter = state_dict["iteration"]
        for name, hook_state in state_dict.get("hooks", {}).items():
            hook = next((h for h in self._hooks if type(h).__qualname__ == name), None)
            if hook is None:
                logger.warning(f"The checkpoint's state of hook {name} is ignored: no such hook.")
            else:
                hook.load_state_dict(hook_state)


class SimpleTrainer(TrainerBase):
    """One optimizer, one loss (or dict of losses), one data loader.

    Args:
        model: maps a batch to a loss or a dict of losses; put into training mode.
        data_loader: an iterable of batches that does not end.
        optimizer: steps once per iteration.
        gather_metric_period: gather and write losses every so many iterations; doing so makes
            the GPU and all processes wait.
        zero_grad_before_forward: clear gradients before the forward pass instead of after it.
            The clearing after it can overlap with the GPU's work; before it saves memory.
        async_write_metrics: gather and write in a thread; the loop then does not wait for the
            GPU.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self._data_loader_iter_obj: Iterator | None = None
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self.async_write_metrics = async_write_metrics
        # One worker: metrics are written in the order of the iterations.
        self.concurrent_executor = concurrent.futures.ThreadPoolExecutor(max_workers=1)

    def run_step(self) -> None:
        data, data_time = self._next_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        loss_dict, losses = self._forward(data)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        losses.backward()
        self.after_backward()
        self._submit_metrics(loss_dict, data_time)
        # After writing, which raises if the loss is not finite: weights stay as they were.
        self.optimizer.step()

    def _next_batch(self) -> tuple[Any, float]:
        """A batch and the seconds spent waiting for it."""
        assert self.model.training, f"{type(self).__name__} found its model in evaluation mode."
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        return data, time.perf_counter() - start

    def _forward(self, data: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The losses by name and their sum."""
        loss_dict = self.model(data)
        if isinstance(loss_dict, torch.Tensor):
            return {"total_loss": loss_dict}, loss_dict
        return loss_dict, sum(loss_dict.values())

    def _submit_metrics(self, loss_dict: Mapping[str, torch.Tensor], data_time: float) -> None:
        if self.async_write_metrics:
            self.concurrent_executor.submit(
                self._write_metrics, loss_dict, data_time, iter=self.iter
            )
        else:
            self._write_metrics(loss_dict, data_time)

    @property
    def _data_loader_iter(self) -> Iterator:
        # Made at the first use: its worker processes should not start before training does.
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable]) -> None:
        """Replace the data loader; the old one is released before the new one is built."""
        del self.data_loader
        self._data_loader_iter_obj = None
        self.data_loader = data_loader_builder()

    def _write_metrics(
        self,
        loss_dict: Mapping[str, torch.Tensor],
        data_time: float,
        prefix: str = "",
        iter: int | None = None,
    ) -> None:
        iter = self.iter if iter is None else iter
        if (iter + 1) % self.gather_metric_period != 0:
            return
        try:
            SimpleTrainer.write_metrics(loss_dict, data_time, iter, prefix)
        except Exception:
            # In a thread the error would otherwise go unseen.
            logger.exception("Exception in writing metrics: ")
            raise

    @staticmethod
    def write_metrics(
        loss_dict: Mapping[str, torch.Tensor],
        data_time: float,
        cur_iter: int,
        prefix: str = "",
    ) -> None:
        """Put the losses, averaged over processes, and the data time into the storage. Collective.

        Scalars: each loss (if there are several), ``total_loss``, ``data_time`` (the slowest
        process's) and ``rank_data_time`` (this one's).

        Args:
            loss_dict: scalar tensors by name.
            data_time: seconds this process waited for its batch.
            cur_iter: the iteration they belong to.
            prefix: of the name ``total_loss``.

        Raises:
            FloatingPointError: the sum of the losses is not finite (on rank 0).
        """
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=cur_iter)

        own = {name: loss.detach().cpu().item() for name, loss in loss_dict.items()}
        gathered = comm.gather({"data_time": data_time, **own})
        if not comm.is_main_process():
            return
        # The slowest process determines how long a step takes.
        slowest = np.max([metrics.pop("data_time") for metrics in gathered])
        storage.put_scalar("data_time", slowest, cur_iter=cur_iter)
        means = {name: np.mean([metrics[name] for metrics in gathered]) for name in gathered[0]}
        total = sum(means.values())
        if not np.isfinite(total):
            losses = ", ".join(f"{name}={value:g}" for name, value in means.items())
            raise FloatingPointError(
                f"The loss is {total} at iteration {cur_iter} ({losses}); a lower learning rate, "
                "a longer warm-up or gradient clipping may help."
            )
        storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
        if len(means) > 1:
            storage.put_scalars(cur_iter=cur_iter, **means)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])

    def after_train(self) -> None:
        super().after_train()
        self.concurrent_executor.shutdown(wait=True)


class AMPTrainer(SimpleTrainer):
    """:class:`SimpleTrainer` with CUDA's automatic mixed precision.

    Args:
        model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward,
            async_write_metrics: as in :class:`SimpleTrainer`; the model is on a GPU.
        grad_scaler: scales the loss; a new ``GradScaler`` by default.
        precision: the lower precision.
        log_grad_scaler: log the scale as ``[metric]grad_scaler``.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        grad_scaler: torch.amp.GradScaler | None = None,
        precision: torch.dtype = torch.float16,
        log_grad_scaler: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        several = isinstance(model, DataParallel) or (
            isinstance(model, DistributedDataParallel) and len(model.device_ids or ()) > 1
        )
        assert not several, "AMPTrainer works with one device per process only."
        super().__init__(
            model,
            data_loader,
            optimizer,
            gather_metric_period,
            zero_grad_before_forward,
            async_write_metrics,
        )
        self.grad_scaler = torch.amp.GradScaler("cuda") if grad_scaler is None else grad_scaler
        self.precision = precision
        self.log_grad_scaler = log_grad_scaler

    def run_step(self) -> None:
        assert torch.cuda.is_available(), "AMPTrainer needs CUDA; set SOLVER.AMP.ENABLED False."
        data, data_time = self._next_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        with torch.amp.autocast("cuda", dtype=self.precision):
            loss_dict, losses = self._forward(data)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        if self.log_grad_scaler:
            scale = self.grad_scaler.get_scale()
            get_event_storage().put_scalar("[metric]grad_scaler", scale)
        self.after_backward()
        self._submit_metrics(loss_dict, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
