"""The usual set-up, predictor and trainer of a program that is driven by a config.

They make choices that suit most uses; a project with other needs subclasses
:class:`DefaultTrainer` or puts the parts together by itself.
"""

import argparse
import logging
import os
import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import detectron2.data.transforms as T
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import hooks
from detectron2.engine.train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from detectron2.evaluation import (
    DatasetEvaluator,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.modeling import build_model
from detectron2.solver import LRScheduler, build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

__all__ = [
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
    "DefaultPredictor",
    "DefaultTrainer",
]

_EXAMPLES = """
examples:
  one machine:        {program} --num-gpus 8 --config-file cfg.yaml
  change options:     {program} --config-file cfg.yaml MODEL.WEIGHTS w.pth SOLVER.BASE_LR 0.001
  first of machines:  {program} --machine-rank 0 --num-machines 2 --dist-url URL [other flags]
  second of machines: {program} --machine-rank 1 --num-machines 2 --dist-url URL [other flags]
"""


def create_ddp_model(
    model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any
) -> nn.Module:
    """Wrap a model in DistributedDataParallel; with a single process it is returned as it is.

    Args:
        model: on this process's device.
        fp16_compression: exchange gradients in half precision.
        kwargs: passed to DistributedDataParallel; ``device_ids`` is by default the local rank's
            GPU, so a model on CPU needs ``device_ids=None``.
    """
    if comm.get_world_size() == 1:
        return model
    kwargs.setdefault("device_ids", [comm.get_local_rank()])
    ddp = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        ddp.register_comm_hook(state=None, hook=default_hooks.fp16_compress_hook)
    return ddp


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The command line of training programs.

    Args:
        epilog: shown below the options; examples by default.
    """
    parser = argparse.ArgumentParser(
        epilog=epilog or _EXAMPLES.format(program=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="the YAML config")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in the output folder, if there is one",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs (processes) per machine")
    parser.add_argument("--num-machines", type=int, default=1, help="machines that take part")
    parser.add_argument("--machine-rank", type=int, default=0, help="index of this machine")
    # Different users of a machine get different ports; runs of the same user collide.
    user = os.getuid() if sys.platform != "win32" else 1
    port = 2**15 + 2**14 + hash(user) % 2**14
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        help="where processes meet, as torch.distributed takes it; 'auto' takes a free port",
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        default=None,
        help="config options at the end of the command line, as pairs 'KEY VALUE'",
    )
    return parser


def default_setup(cfg: CfgNode, args: argparse.Namespace | dict) -> None:
    """Set up the log, write environment, arguments and config to it, seed random generators.

    The config also goes to ``config.yaml`` in the output folder.

    Args:
        cfg: the full config.
        args: the command line's; ``config_file`` and ``eval_only`` are read if they are there.
    """
    output_dir = cfg.get("OUTPUT_DIR")
    writes_files = comm.is_main_process() and output_dir
    if writes_files:
        PathManager.mkdirs(output_dir)
    rank = comm.get_rank()
    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    logger = setup_logger(output_dir, distributed_rank=rank)

    logger.info(f"Rank of current process: {rank}. World size: {comm.get_world_size()}")
    logger.info("Environment info:\n" + collect_env_info())
    logger.info(f"Command line arguments: {args}")
    config_file = getattr(args, "config_file", "")
    if config_file:
        with PathManager.open(config_file, "r") as file:
            logger.info(f"Contents of args.config_file={config_file}:\n{file.read()}")
    if writes_files:
        path = os.path.join(output_dir, "config.yaml")
        logger.info(f"Running with full config:\n{cfg.dump()}")
        with PathManager.open(path, "w") as file:
            file.write(cfg.dump())
        logger.info(f"Full config saved to {path}")

    seed = cfg.get("SEED", -1)
    seed_all_rng(None if seed < 0 else seed + rank)
    precision = cfg.get("FLOAT32_PRECISION", "")
    if precision:
        torch.set_float32_matmul_precision(precision)
    # cudnn's search takes long, and evaluation sees many image sizes.
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = cfg.get("CUDNN_BENCHMARK", False)


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Writers to the log, to ``metrics.json`` and to a TensorBoard file in ``output_dir``.

    Args:
        output_dir: made if it does not exist.
        max_iter: for the time left.
    """
    PathManager.mkdirs(output_dir)
    return [
        CommonMetricPrinter(max_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json")),
        TensorboardXWriter(output_dir),
    ]


class DefaultPredictor:
    """Builds the model of a config, loads its weights, and predicts on one image at a time.

    Args:
        cfg: ``MODEL.WEIGHTS`` is loaded; images are resized by ``INPUT.*_SIZE_TEST``.

    Attributes:
        metadata: of the first dataset in ``DATASETS.TEST``, if there is one.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg.clone()
        self.model = build_model(self.cfg)
        self.model.eval()
        if len(cfg.DATASETS.TEST):
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        shortest = cfg.INPUT.MIN_SIZE_TEST
        self.aug = T.ResizeShortestEdge([shortest, shortest], cfg.INPUT.MAX_SIZE_TEST)
        self.input_format = cfg.INPUT.FORMAT
        assert self.input_format in ("RGB", "BGR"), (
            f"INPUT.FORMAT has to be RGB or BGR, not {self.input_format!r}."
        )

    @torch.no_grad()
    def __call__(self, original_image: np.ndarray) -> dict:
        """The model's output for one image.

        Args:
            original_image: (H, W, 3) in BGR order, as OpenCV reads it.

        Returns:
            The model's dict, with ``"instances"`` in the original image's coordinates.
        """
        image = original_image[:, :, ::-1] if self.input_format == "RGB" else original_image
        height, width = image.shape[:2]
        resized = self.aug.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
        tensor = tensor.to(self.cfg.MODEL.DEVICE)
        return self.model([{"image": tensor, "height": height, "width": width}])[0]


class DefaultTrainer(TrainerBase):
    """Training as a config describes it: model, data, optimizer, schedule, and the usual hooks.

    Subclasses override the ``build_*`` class methods and :meth:`build_hooks`. The step itself
    is done by an inner SimpleTrainer or AMPTrainer (``SOLVER.AMP.ENABLED``).

    Args:
        cfg: the full config.

    Attributes:
        scheduler: the learning-rate scheduler.
        checkpointer: a DetectionCheckpointer that holds model and trainer.
        cfg: the config, scaled to the number of processes by :meth:`auto_scale_workers`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            # Nobody has set up a log.
            setup_logger()
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())

        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = create_ddp_model(model, broadcast_buffers=False)
        trainer_class = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer_class(model, data_loader, optimizer)

        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(
            model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint in ``OUTPUT_DIR``, or load ``MODEL.WEIGHTS``.

        Args:
            resume: use the checkpoint (model, optimizer, schedule, iteration) if there is one;
                otherwise weights alone are loaded and training starts at iteration 0.
        """
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            # What was saved is the iteration that was finished last.
            self.start_iter = self.iter + 1

    def build_hooks(self) -> list[HookBase | None]:
        """Timer, schedule, precise BatchNorm, checkpoints, evaluation, writers, in this order."""
        cfg = self.cfg
        is_main = comm.is_main_process()
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            self._precise_bn_hook(),
            # Saving comes before evaluation, which is more likely to fail.
            hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD)
            if is_main
            else None,
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._test_and_remember),
            # Writers come last, to see what all others have put.
            hooks.PeriodicWriter(self.build_writers(), period=20) if is_main else None,
        ]

    def _precise_bn_hook(self) -> hooks.PreciseBN | None:
        cfg = self.cfg
        if not cfg.TEST.PRECISE_BN.ENABLED or not get_bn_modules(self.model):
            return None
        cfg = cfg.clone()
        cfg.defrost()
        # A second set of worker processes would stay alive between its rare uses.
        cfg.DATALOADER.NUM_WORKERS = 0
        return hooks.PreciseBN(
            cfg.TEST.EVAL_PERIOD,
            self.model,
            self.build_train_loader(cfg),
            cfg.TEST.PRECISE_BN.NUM_ITER,
        )

    def _test_and_remember(self) -> dict:
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def build_writers(self) -> list[EventWriter]:
        """The writers of the training log; :func:`default_writers` of the output folder."""
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self) -> dict | None:
        """Run all iterations that are left.

        Returns:
            The results of the last evaluation on the main process, if ``TEST.EXPECTED_RESULTS``
            asks to verify them; else ``None``.
        """
        super().train(self.start_iter, self.max_iter)
        if len(self.cfg.TEST.EXPECTED_RESULTS) and comm.is_main_process():
            assert hasattr(self, "_last_eval_results"), (
                "TEST.EXPECTED_RESULTS are set, but there was no evaluation."
            )
            verify_results(self.cfg, self._last_eval_results)
            return self._last_eval_results
        return None

    def run_step(self) -> None:
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @property
    def model(self) -> nn.Module:
        return self._trainer.model

    @model.setter
    def model(self, model: nn.Module) -> None:
        self._trainer.model = model

    @property
    def data_loader(self) -> Iterable:
        return self._trainer.data_loader

    @data_loader.setter
    def data_loader(self, data_loader: Iterable) -> None:
        self._trainer.data_loader = data_loader

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._trainer.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self._trainer.optimizer = optimizer

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model; it is also logged."""
        model = build_model(cfg)
        logging.getLogger(__name__).info(f"Model:\n{model}")
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer; :func:`detectron2.solver.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """The schedule; :func:`detectron2.solver.build_lr_scheduler`."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        """The training data; :func:`detectron2.data.build_detection_train_loader`."""
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        """A test dataset; :func:`detectron2.data.build_detection_test_loader`."""
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The evaluator of a test dataset; there is no default."""
        raise NotImplementedError(
            "To evaluate during training, override DefaultTrainer.build_evaluator or pass "
            "evaluators to DefaultTrainer.test."
        )

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: list[DatasetEvaluator] | DatasetEvaluator | None = None,
    ) -> dict:
        """Evaluate a model on the datasets in ``DATASETS.TEST``.

        Args:
            cfg: names the datasets.
            model: is put into evaluation mode meanwhile.
            evaluators: one per dataset; built by :meth:`build_evaluator` by default.

        Returns:
            Results by dataset, or of the only dataset; filled on the main process.
        """
        logger = logging.getLogger(__name__)
        names = cfg.DATASETS.TEST
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if evaluators is not None:
            assert len(names) == len(evaluators), (
                f"There are {len(evaluators)} evaluators for {len(names)} datasets."
            )
        results = OrderedDict()
        for index, name in enumerate(names):
            data_loader = cls.build_test_loader(cfg, name)
            if evaluators is not None:
                evaluator = evaluators[index]
            else:
                try:
                    evaluator = cls.build_evaluator(cfg, name)
                except NotImplementedError:
                    logger.warning(
                        "No evaluator found. Pass evaluators to DefaultTrainer.test or override "
                        "its build_evaluator."
                    )
                    results[name] = {}
                    continue
            results[name] = inference_on_dataset(model, data_loader, evaluator)
            if comm.is_main_process():
                assert isinstance(results[name], dict), (
                    f"The evaluator of {name} has to return a dict, not {results[name]!r}."
                )
                logger.info(f"Evaluation results for {name} in csv format:")
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Adapt a config made for ``SOLVER.REFERENCE_WORLD_SIZE`` processes to another number.

        Images per process stay the same: batch and learning rate grow with the processes, and
        everything counted in iterations shrinks (linear scaling, https://arxiv.org/abs/1706.02677).

        Args:
            cfg: left as it is.
            num_workers: the number of processes.

        Returns:
            A changed copy; ``cfg`` itself if the reference is 0 or equal to ``num_workers``.
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference == 0 or reference == num_workers:
            return cfg
        was_frozen = cfg.is_frozen()
        cfg = cfg.clone()
        cfg.defrost()
        solver = cfg.SOLVER
        assert solver.IMS_PER_BATCH % reference == 0, (
            f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH} cannot be divided by "
            f"SOLVER.REFERENCE_WORLD_SIZE {reference}."
        )
        scale = num_workers / reference

        def fewer(iterations: int) -> int:
            return round(iterations / scale)

        solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * scale)
        solver.BASE_LR = solver.BASE_LR * scale
        solver.MAX_ITER = fewer(solver.MAX_ITER)
        solver.WARMUP_ITERS = fewer(solver.WARMUP_ITERS)
        solver.STEPS = tuple(fewer(step) for step in solver.STEPS)
        solver.CHECKPOINT_PERIOD = fewer(solver.CHECKPOINT_PERIOD)
        cfg.TEST.EVAL_PERIOD = fewer(cfg.TEST.EVAL_PERIOD)
        solver.REFERENCE_WORLD_SIZE = num_workers
        logging.getLogger(__name__).info(
            f"The config is scaled to {num_workers} processes: batch {solver.IMS_PER_BATCH}, "
            f"learning rate {solver.BASE_LR}, {solver.MAX_ITER} iterations, warm-up "
            f"{solver.WARMUP_ITERS}."
        )
        if was_frozen:
            cfg.freeze()
        return cfg
