"""Keeps the best checkpoint and stops when there is no progress; both survive a resume."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from clsloc.errors import UserError
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

logger = logging.getLogger(__name__)

BEST_NAME = "model_best"


class BestModel(HookBase):
    """After each evaluation compares one metric with its best value so far.

    Place it behind the hook that evaluates. What it knows is part of every checkpoint. A
    checkpoint is written before the evaluation of the same iteration; a run that resumes there
    evaluates first, so that nothing is forgotten.
    """

    def __init__(
        self,
        period: int,
        evaluate: Callable[[], Mapping[str, Any]],
        results: Callable[[], Mapping[str, Any]],
        save: Callable[..., None],
        *,
        metric: str,
        patience: int = 0,
    ) -> None:
        """
        Args:
            period: iterations between evaluations; 0: only at the end.
            evaluate: evaluates the model as it is, and returns nested results.
            results: returns the nested results of the latest evaluation.
            save: ``save(name, iteration=...)`` writes a checkpoint; called in every process.
            metric: flattened name such as ``bbox/AP``; larger is better.
            patience: stop after this many evaluations in a row without a new best; 0: never.
        """
        self._period = period
        self._evaluate = evaluate
        self._results = results
        self._save = save
        self._metric = metric
        self._patience = patience
        self.best = -math.inf
        self.best_iteration = -1
        self.evaluated_iteration = -1
        self.without_progress = 0

    @property
    def stop(self) -> bool:
        """Whether training should end now."""
        return 0 < self._patience <= self.without_progress

    def before_train(self) -> None:
        done = self.trainer.start_iter
        if done and self._is_due(done) and self.evaluated_iteration < done - 1:
            self._compare(self._evaluate(), done - 1)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._is_due(done) and done < self.trainer.max_iter:  # the last one: after_train
            self._compare(self._results(), self.trainer.iter)

    def after_train(self) -> None:
        if self.trainer.iter + 1 > self.trainer.max_iter:
            self._compare(self._results(), self.trainer.max_iter - 1)

    def state_dict(self) -> dict[str, float]:
        return {key: vars(self)[key] for key in self._state_keys()}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        vars(self).update({key: state[key] for key in self._state_keys()})

    @staticmethod
    def _state_keys() -> tuple[str, ...]:
        return "best", "best_iteration", "evaluated_iteration", "without_progress"

    def _is_due(self, done: int) -> bool:
        return self._period > 0 and done % self._period == 0

    def _compare(self, results: Mapping[str, Any], iteration: int) -> None:
        # Only the main process has results, and all have to agree.
        value = comm.all_gather(self._value(results) if comm.is_main_process() else None)[0]
        if isinstance(value, UserError):
            raise value
        self.evaluated_iteration = iteration
        if value > self.best:
            self.best, self.best_iteration, self.without_progress = value, iteration, 0
            self._save(BEST_NAME, iteration=iteration)
            logger.info("New best %s: %.3f at iteration %d.", self._metric, value, iteration + 1)
            return
        self.without_progress += 1
        logger.info(
            "%s %.3f; the best is still %.3f from iteration %d (%d evaluation(s) ago).",
            self._metric,
            value,
            self.best,
            self.best_iteration + 1,
            self.without_progress,
        )

    def _value(self, results: Mapping[str, Any]) -> float | UserError:
        flat = flatten_results_dict(dict(results))
        if self._metric not in flat:
            return UserError(
                f"CLSLOC.BEST.METRIC {self._metric!r} is none of the metrics of the evaluation, "
                f"{', '.join(flat) or 'of which there are none'}; set one of these."
            )
        return float(flat[self._metric])
