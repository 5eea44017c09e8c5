"""The interface of evaluators, and the loop that runs a model over a dataset for them."""

import contextlib
import datetime
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from detectron2.utils.comm import get_world_size, is_main_process
from detectron2.utils.logger import log_every_n_seconds


class DatasetEvaluator:
    """Gathers the outputs of a model on a dataset, then judges them."""

    def reset(self) -> None:
        """Forget everything; called before each round of evaluation."""

    def process(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Take in one batch.

        Args:
            inputs: what the model was called with.
            outputs: what it returned, in the same order.
        """

    def evaluate(self) -> dict | None:
        """Judge all that was taken in.

        Returns:
            results by task and metric, such as ``{"bbox": {"AP50": 80.0}}``; or None, for
            example in processes other than the main one.
        """


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        """
        Args:
            evaluators: their results must not have a task in common.
        """
        super().__init__()
        self._evaluators = evaluators

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> dict:
        results: OrderedDict = OrderedDict()
        for evaluator in self._evaluators:
            result = evaluator.evaluate()
            if not is_main_process() or result is None:
                continue
            common = results.keys() & result.keys()
            assert not common, f"Two evaluators give results for {', '.join(sorted(common))}."
            results.update(result)
        return results


class _Stopwatch:
    """Seconds spent waiting for data, in the model and in the evaluator, warm-up not counted."""

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches
        self.warmup = min(5, num_batches - 1)
        self.restart()

    def restart(self) -> None:
        self.begin = time.perf_counter()
        self.data = self.compute = self.evaluation = 0.0

    def summary(self, batches_done: int) -> str:
        counted = batches_done - self.warmup
        total = (time.perf_counter() - self.begin) / counted
        remaining = datetime.timedelta(seconds=int(total * (self.num_batches - batches_done)))
        return (
            f"Inference done {batches_done}/{self.num_batches}. "
            f"Dataloading: {self.data / counted:.4f} s/iter. "
            f"Inference: {self.compute / counted:.4f} s/iter. "
            f"Eval: {self.evaluation / counted:.4f} s/iter. "
            f"Total: {total:.4f} s/iter. ETA={remaining}"
        )


def _synchronize_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader: Iterable[Any],
    evaluator: DatasetEvaluator | Sequence[DatasetEvaluator] | None,
    callbacks: dict[str, Callable[[], None]] | None = None,
) -> Any:
    """Run a model over a dataset without gradients, in evaluation mode if it is a module.

    Args:
        model: called with each batch.
        data_loader: has a length.
        evaluator: one or several; None only to measure the speed.
        callbacks: called without arguments at "on_start", "before_inference" and
            "after_inference" (of each batch) and "on_end".

    Returns:
        what the evaluator returns, an empty dict in place of None.
    """
    logger = logging.getLogger(__name__)
    if evaluator is None or isinstance(evaluator, (list, tuple)):
        evaluator = DatasetEvaluators(evaluator or [])
    evaluator.reset()
    callbacks = callbacks or {}

    def call_back(stage: str) -> None:
        callbacks.get(stage, lambda: None)()

    num_batches = len(data_loader)
    logger.info(f"Start inference on {num_batches} batches")
    watch = _Stopwatch(num_batches)
    with contextlib.ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        data_begin = time.perf_counter()
        call_back("on_start")
        for i, inputs in enumerate(data_loader):
            watch.data += time.perf_counter() - data_begin
            if i == watch.warmup:
                watch.restart()
            compute_begin = time.perf_counter()
            call_back("before_inference")
            outputs = model(inputs)
            call_back("after_inference")
            _synchronize_device()
            watch.compute += time.perf_counter() - compute_begin

            evaluation_begin = time.perf_counter()
            evaluator.process(inputs, outputs)
            data_begin = time.perf_counter()
            watch.evaluation += data_begin - evaluation_begin
            if i >= watch.warmup * 2:
                log_every_n_seconds(logging.INFO, watch.summary(i + 1), n=5)
        call_back("on_end")

    counted = max(num_batches - watch.warmup, 1)
    total = time.perf_counter() - watch.begin
    logger.info(
        f"Inference took {datetime.timedelta(seconds=int(total))} "
        f"({total / counted:.6f} s / iter per device, on {get_world_size()} devices), of which "
        f"{watch.compute / counted:.6f} s / iter in the model"
    )
    results = evaluator.evaluate()
    return {} if results is None else results


@contextlib.contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Within this context the model is in evaluation mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
