"""The learning-rate schedule of a config: Detectron2's, and a cosine that starts again."""

import torch
from fvcore.common.param_scheduler import CompositeParamScheduler, CosineParamScheduler

from clsloc.errors import UserError
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, LRScheduler, WarmupParamScheduler
from detectron2.solver import build_lr_scheduler as build_detectron2_scheduler

__all__ = ["RESTARTS", "build_lr_scheduler"]

RESTARTS = "WarmupCosineRestartsLR"


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The schedule that ``SOLVER.LR_SCHEDULER_NAME`` names: one of Detectron2's, or
    "WarmupCosineRestartsLR".

    That one falls from ``BASE_LR`` to ``BASE_LR_END`` in ``CLSLOC.SOLVER.CYCLES`` cycles of equal
    length ("SGDR", ICLR 2017, with cycles that do not grow); the warm-up cuts off the beginning of
    the first.

    Raises:
        UserError: there is no such falling cycle.
    """
    solver, cycles = cfg.SOLVER, cfg.CLSLOC.SOLVER.CYCLES
    if solver.LR_SCHEDULER_NAME != RESTARTS:
        return build_detectron2_scheduler(cfg, optimizer)
    if not 1 <= cycles <= solver.MAX_ITER:
        raise UserError(
            f"CLSLOC.SOLVER.CYCLES is at least 1 and at most SOLVER.MAX_ITER {solver.MAX_ITER}, "
            f"got {cycles}."
        )
    if not 0 <= solver.BASE_LR_END <= solver.BASE_LR:
        raise UserError(
            f"SOLVER.BASE_LR_END lies between 0 and SOLVER.BASE_LR {solver.BASE_LR:g}, got "
            f"{solver.BASE_LR_END:g}."
        )
    cycle = CosineParamScheduler(1.0, solver.BASE_LR_END / solver.BASE_LR)
    restarts = CompositeParamScheduler(
        [cycle] * cycles, lengths=[1 / cycles] * cycles, interval_scaling=["rescaled"] * cycles
    )
    warmed_up = WarmupParamScheduler(
        restarts,
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=warmed_up, max_iter=solver.MAX_ITER)
