"""Detectron2's training loop on any number of GPUs or CPU processes, made safe to break off."""

import logging
import math
import os
import time
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from statistics import median
from typing import Any

import torch

from clsloc.checkpoint import Checkpointer
from clsloc.data.safe_mapper import RaisingLoader, SafeMapper
from clsloc.data.train_data import build_train_loader
from clsloc.data.train_loader import TrainLoader, seed_generators
from clsloc.engine.best import BestModel
from clsloc.engine.checks import (
    check_best_metric,
    check_config,
    check_schedule,
    check_test_sets,
    log_schedule,
)
from clsloc.engine.diagnosis import StepRecorder, divergence_sentence
from clsloc.engine.interrupt import InterruptGuard
from clsloc.engine.results import write_results
from clsloc.engine.schedule import build_lr_scheduler
from clsloc.engine.tta import with_tta
from clsloc.errors import UserError
from clsloc.evaluation import build_evaluator
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog, build_detection_test_loader
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
)
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.solver import LRScheduler
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """``DefaultTrainer`` with these differences.

    - It works in several processes on CPUs (gloo), and evaluates every dataset of the core.
    - What a run does depends on the config and the seed alone: a run that is broken off at any
      moment and resumed ends, on a CPU, with the weights of an unbroken one, whatever the number
      of loader workers. With ``SEED`` < 0 a seed is drawn once and kept in the checkpoints.
    - Ctrl-C ends it after the current step with a checkpoint (with several processes: at once,
      without one).
    - Mistakes in the config are found before the model is built, and an error during training
      says at which iteration, learning rate, losses and images.
    - ``CLSLOC.BEST`` keeps the best checkpoint and stops early.
    - It ends by writing ``results.json`` to OUTPUT_DIR.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer's own __init__ wraps the model for GPUs only.
        TrainerBase.__init__(self)
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.seed: int = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        check_config(cfg, (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
        check_test_sets(cfg, self.build_evaluator)
        check_best_metric(cfg)
        check_schedule(cfg)
        loader = self.build_train_loader(cfg)
        loader.seed = self.seed
        log_schedule(cfg, len(loader.dataset))
        model = self.build_model(cfg)
        if cfg.MODEL.DEVICE == "cpu":  # convolutions are faster so: 4 to 7 % of a digits step
            model = model.to(memory_format=torch.channels_last)
        optimizer = self.build_optimizer(cfg, model)
        model = wrap_model(model)
        step_class = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = step_class(model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = self.build_checkpointer(cfg, model)
        self._recorder = StepRecorder(model)
        # TorchScript (the focal loss) rounds differently once it has seen a few calls and fused
        # them: a resumed run, which begins with none, would drift off.
        self._fuses_scripts = cfg.MODEL.DEVICE != "cpu"
        self._best: BestModel | None = None
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        """See :func:`clsloc.data.train_data.build_train_loader`."""
        return build_train_loader(cfg, max(cfg.SEED, 0))

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """See :func:`clsloc.engine.schedule.build_lr_scheduler`."""
        return build_lr_scheduler(cfg, optimizer)

    def build_checkpointer(self, cfg: CfgNode, model: torch.nn.Module) -> Checkpointer:
        """The object that saves and restores the model and the state of this trainer."""
        classes = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", [])
        return Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            trainer=weakref.proxy(self),
            extra={"thing_classes": list(classes)},
        )

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """See :func:`clsloc.evaluation.build_evaluator`."""
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        """Detectron2's, for which a bad image is a :class:`~clsloc.errors.UserError`."""
        mapper = SafeMapper(DatasetMapper(cfg, is_train=False))
        return RaisingLoader(build_detection_test_loader(cfg, dataset_name, mapper=mapper))

    @classmethod
    def test_with_TTA(  # noqa: N802 (its name in Detectron2's own programs)
        cls, cfg: CfgNode, model: torch.nn.Module
    ) -> dict[str, Any]:
        """Evaluate with the test-time augmentation of ``TEST.AUG``.

        Returns:
            The metrics as ``test`` does, under names with the suffix ``_TTA``. The predictions
            stand in ``inference_TTA`` in OUTPUT_DIR.
        """
        logger.info("Evaluating with test-time augmentation.")
        names = cfg.DATASETS.TEST
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [
            cls.build_evaluator(cfg, name, os.path.join(folder, name if len(names) > 1 else ""))
            for name in names
        ]
        results = cls.test(cfg, with_tta(cfg, model), evaluators)
        return {f"{name}_TTA": value for name, value in results.items()}

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's, and the one of ``CLSLOC.BEST`` behind the evaluation."""
        hooks = super().build_hooks()
        best = self.cfg.CLSLOC.BEST
        if best.METRIC:
            self._best = BestModel(
                self.cfg.TEST.EVAL_PERIOD,
                evaluate=lambda: self.test(self.cfg, self.model),
                results=lambda: getattr(self, "_last_eval_results", {}),
                save=self.checkpointer.save_aside,
                metric=best.METRIC,
                patience=best.PATIENCE,
            )
            hooks.append(self._best)
        return hooks

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume)
        if not resume:
            self._forget_earlier_run()
        else:
            logger.info(
                "Resuming %s at iteration %d of %d.",
                self.checkpointer.get_checkpoint_file(),
                self.start_iter,
                self.max_iter,
            )

    def _forget_earlier_run(self) -> None:
        """From here on ``--resume`` and ``results.json`` in OUTPUT_DIR mean this run."""
        for name in ("last_checkpoint", "results.json"):
            path = os.path.join(self.cfg.OUTPUT_DIR, name)
            if comm.is_main_process() and os.path.exists(path):
                os.remove(path)
                logger.warning("Removed %s, which an earlier run in the same folder left.", path)

    def train(self) -> dict[str, Any]:
        """Train, evaluate, and write ``results.json``; returns the metrics.

        Raises:
            UserError: training diverged.
            KeyboardInterrupt: somebody asked for an end; the state was saved.
        """
        start = time.perf_counter()
        self._trainer.data_loader.seed = self.seed
        self._trainer.data_loader.start = self.start_iter
        with InterruptGuard(active=comm.get_world_size() == 1) as guard:
            self._run_steps(guard)
        results = getattr(self, "_last_eval_results", None)
        if results is None:  # resumed where an earlier run had stopped early
            results = self.test(self.cfg, self.model)
        if self.cfg.TEST.AUG.ENABLED:
            results = {**results, **self.test_with_TTA(self.cfg, self.model)}
        if comm.is_main_process():
            verify_results(self.cfg, results)  # against TEST.EXPECTED_RESULTS
        write_results(
            os.path.join(self.cfg.OUTPUT_DIR, "results.json"),
            results,
            seconds=time.perf_counter() - start,
            seconds_per_iteration=self._seconds_per_iteration(),
            iterations=self.iter,
            seed=self.seed,
        )
        return results

    def _run_steps(self, guard: InterruptGuard) -> None:
        # Detectron2's loop would print the traceback of every error.
        self.iter = self.start_iter
        if self.start_iter >= self.max_iter:
            # Resumed from the checkpoint of the last step: broken off just before this one.
            self._save_final()
        with EventStorage(self.start_iter) as self.storage:
            try:
                self.before_train()
                while self.iter < self.max_iter and not (self._best and self._best.stop):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    if guard.requested:
                        self._save_and_interrupt()
                    self.iter += 1
                if self.iter < self.max_iter:
                    self._end_early()
            except BaseException:
                with suppress(Exception):  # what fails now too must not hide the first error
                    self.after_train()
                raise
            self.after_train()

    def run_step(self) -> None:
        # Every step draws from generators of its own, so that nothing that went before (an
        # evaluation, a resume, the loader) has an influence.
        seed_generators(self.seed, self.iter, comm.get_rank())
        try:
            with torch.jit.optimized_execution(self._fuses_scripts):
                super().run_step()
        except FloatingPointError as error:
            raise UserError(divergence_sentence(self._describe_step())) from error
        except UserError:
            raise
        except Exception as error:
            error.add_note(f"This was at {self._describe_step()}.")
            raise

    def _describe_step(self) -> str:
        rate = self._trainer.optimizer.param_groups[0]["lr"]
        return self._recorder.describe(self.iter, rate)

    def _save_and_interrupt(self) -> None:
        self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
        logger.warning(
            "Interrupted after iteration %d of %d; --resume goes on from there.",
            self.iter + 1,
            self.max_iter,
        )
        raise KeyboardInterrupt

    def _end_early(self) -> None:
        logger.info(
            "Stopped early at iteration %d of %d: %s has not risen for %d evaluations.",
            self.iter,
            self.max_iter,
            self.cfg.CLSLOC.BEST.METRIC,
            self.cfg.CLSLOC.BEST.PATIENCE,
        )
        self._save_final()

    def _save_final(self) -> None:
        # The state after the last step, which is one before the current count.
        self.iter -= 1
        self.checkpointer.save("model_final", iteration=self.iter)
        self.iter += 1

    def _seconds_per_iteration(self) -> float | None:
        times = self.storage.histories().get("time")
        return median(value for value, _ in times.values()) if times else None

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "seed": self.seed,
            "averages": running_averages(self._bare_model()),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.seed = state_dict["seed"]
        set_running_averages(self._bare_model(), state_dict["averages"])

    def _bare_model(self) -> torch.nn.Module:
        return getattr(self.model, "module", self.model)


def wrap_model(model: torch.nn.Module) -> torch.nn.Module:
    """Wrap ``model`` for training in several processes; with one process it comes back as is."""
    if next(model.parameters()).is_cuda:
        return create_ddp_model(model, broadcast_buffers=False)
    return create_ddp_model(model, broadcast_buffers=False, device_ids=None)


def running_averages(model: torch.nn.Module) -> dict[str, float]:
    """The averages that Detectron2's dense detectors keep as plain numbers, such as the
    normaliser of RetinaNet's loss: state of training that no ``state_dict`` holds."""
    return {
        f"{name}.{key}".lstrip("."): float(value)
        for name, module in model.named_modules()
        if isinstance(module, DenseDetector)
        for key, value in vars(module).items()
        if _is_average(key, value)
    }


def set_running_averages(model: torch.nn.Module, averages: Mapping[str, float]) -> None:
    """The inverse of :func:`running_averages`."""
    for path, value in averages.items():
        name, _, key = path.rpartition(".")
        setattr(model.get_submodule(name), key, value)


def _is_average(key: str, value: object) -> bool:
    number = isinstance(value, float) or (torch.is_tensor(value) and value.numel() == 1)
    return number and key.startswith("loss_normalizer") and math.isfinite(value)
