"""Learning-rate schedules: multipliers of where training stands, with a warm-up in front."""

import logging
import math
from bisect import bisect_right
from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim.lr_scheduler import LRScheduler

logger = logging.getLogger(__name__)


class WarmupParamScheduler(CompositeParamScheduler):
    """A schedule whose first part is replaced by a warm-up.

    Args:
        scheduler: the schedule to warm up to.
        warmup_factor: the warm-up starts at this times ``scheduler``'s first value.
        warmup_length: the share of training, in [0, 1], that warms up.
        warmup_method: ``"linear"`` or ``"constant"``.
        rescale_interval: squeeze the whole of ``scheduler`` into what is left after the
            warm-up; by default the warm-up cuts off its beginning.
    """

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ) -> None:
        first_value = scheduler(0.0)
        start = warmup_factor * first_value
        # A warm-up has to end where the schedule itself stands at that time.
        end = first_value if rescale_interval else scheduler(warmup_length)
        if warmup_method == "linear":
            warmup = LinearParamScheduler(start, end)
        elif warmup_method == "constant":
            warmup = ConstantParamScheduler(start)
        else:
            raise ValueError(_unknown_warmup(warmup_method))
        super().__init__(
            [warmup, scheduler],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
            lengths=[warmup_length, 1 - warmup_length],
        )


class LRMultiplier(LRScheduler):
    """Multiplies each group's initial learning rate by a ``ParamScheduler``'s value.

    Args:
        optimizer: its groups' learning rates are multiplied.
        multiplier: a schedule over [0, 1), the finished share of training.
        max_iter: the iteration that counts as 1.
        last_iter: the last finished iteration; -1 for a new run.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        multiplier: ParamScheduler,
        max_iter: int,
        last_iter: int = -1,
    ) -> None:
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(
                f"LRMultiplier needs an fvcore ParamScheduler as multiplier, not {multiplier!r}."
            )
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict[str, Any]:
        """Only where it stands: the schedule is configuration, which a resumed run may change."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float]:
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * factor for base_lr in self.base_lrs]


class WarmupMultiStepLR(LRScheduler):
    """Steps by ``gamma`` at ``milestones`` after a warm-up; :class:`LRMultiplier` supersedes it.

    Args:
        optimizer: its groups' learning rates are scheduled.
        milestones: iterations in increasing order.
        gamma: the factor at each milestone.
        warmup_factor: the factor at iteration 0.
        warmup_iters: length of the warm-up.
        warmup_method: ``"linear"`` or ``"constant"``.
        last_epoch: the last finished iteration; -1 for a new run.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        milestones: list[int],
        gamma: float = 0.1,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ) -> None:
        logger.warning("WarmupMultiStepLR is deprecated; use LRMultiplier with a ParamScheduler.")
        if list(milestones) != sorted(milestones):
            raise ValueError(f"Milestones have to increase, got {milestones}.")
        self.milestones = milestones
        self.gamma = gamma
        self.warmup_factor = warmup_factor
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        warmup = _get_warmup_factor_at_iter(
            self.warmup_method, self.last_epoch, self.warmup_iters, self.warmup_factor
        )
        decay = self.gamma ** bisect_right(self.milestones, self.last_epoch)
        return [base_lr * warmup * decay for base_lr in self.base_lrs]


class WarmupCosineLR(LRScheduler):
    """Half a cosine down to 0 with a warm-up; :class:`LRMultiplier` supersedes it.

    Args:
        optimizer: its groups' learning rates are scheduled.
        max_iters: the iteration that reaches 0.
        warmup_factor: the factor at iteration 0.
        warmup_iters: length of the warm-up.
        warmup_method: ``"linear"`` or ``"constant"``.
        last_epoch: the last finished iteration; -1 for a new run.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        max_iters: int,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ) -> None:
        logger.warning("WarmupCosineLR is deprecated; use LRMultiplier with a ParamScheduler.")
        self.max_iters = max_iters
        self.warmup_factor = warmup_factor
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        warmup = _get_warmup_factor_at_iter(
            self.warmup_method, self.last_epoch, self.warmup_iters, self.warmup_factor
        )
        decay = 0.5 * (1.0 + math.cos(math.pi * self.last_epoch / self.max_iters))
        return [base_lr * warmup * decay for base_lr in self.base_lrs]


def _get_warmup_factor_at_iter(
    method: str, iter: int, warmup_iters: int, warmup_factor: float
) -> float:
    """The factor of a warm-up at iteration ``iter``: 1 from ``warmup_iters`` on."""
    if iter >= warmup_iters:
        return 1.0
    if method == "constant":
        return warmup_factor
    if method == "linear":
        progress = iter / warmup_iters
        return warmup_factor * (1 - progress) + progress
    raise ValueError(_unknown_warmup(method))


def _unknown_warmup(method: str) -> str:
    return f"Unknown warm-up method {method!r}; use 'linear' or 'constant'."
