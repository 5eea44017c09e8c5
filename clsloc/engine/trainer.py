"""Detectron2's training loop on any number of GPUs or CPU processes."""

import os
import time
import weakref
from typing import Any

import torch

from clsloc.engine.results import write_results
from clsloc.evaluation import build_evaluator
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
)
from detectron2.evaluation import DatasetEvaluator


class Trainer(DefaultTrainer):
    """``DefaultTrainer`` that also works in several processes on CPUs, evaluates every dataset
    of the core, and ends by writing ``results.json`` to OUTPUT_DIR."""

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer's own __init__ wraps the model for GPUs only.
        TrainerBase.__init__(self)
        self.cfg = cfg
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        model = wrap_model(model)
        step_class = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = step_class(model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = self.build_checkpointer(cfg, model)
        self.register_hooks(self.build_hooks())

    def build_checkpointer(self, cfg: CfgNode, model: torch.nn.Module) -> DetectionCheckpointer:
        """The object that saves and restores the model and the state of this trainer."""
        return DetectionCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """See :func:`clsloc.evaluation.build_evaluator`."""
        return build_evaluator(cfg, dataset_name, output_folder)

    def train(self) -> dict[str, Any]:
        """Train, evaluate, and write ``results.json``; returns the metrics."""
        start = time.perf_counter()
        super().train()
        results = getattr(self, "_last_eval_results", {})
        write_results(
            os.path.join(self.cfg.OUTPUT_DIR, "results.json"),
            results,
            seconds=time.perf_counter() - start,
            iterations=self.max_iter,
        )
        return results


def wrap_model(model: torch.nn.Module) -> torch.nn.Module:
    """Wrap ``model`` for training in several processes; with one process it comes back as is."""
    if next(model.parameters()).is_cuda:
        return create_ddp_model(model, broadcast_buffers=False)
    return create_ddp_model(model, broadcast_buffers=False, device_ids=None)
