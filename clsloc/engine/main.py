"""What every training program does: train, or evaluate with --eval-only."""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import ProcessRaisedException

from clsloc.checkpoint import Checkpointer
from clsloc.cli import INTERRUPTED_STATUS
from clsloc.engine.checks import (
    check_config,
    check_frozen_stages,
    check_learning_rate,
    check_test_sets,
)
from clsloc.engine.config_file import resolve_config_file
from clsloc.engine.interrupt import end_at_once, end_together
from clsloc.engine.projects import ConfigFunction
from clsloc.engine.results import write_results
from clsloc.engine.setup import setup_cfg
from clsloc.engine.trainer import Trainer
from clsloc.errors import UserError
from clsloc.files import OUTPUT_ERRORS, make_folder, write_error
from detectron2.config import CfgNode
from detectron2.engine import default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger


def run(args: argparse.Namespace, config_functions: Sequence[ConfigFunction] = ()) -> int:
    """Call :func:`main` in as many processes as the flags say; on CPUs these use gloo.

    A :class:`~clsloc.errors.UserError` in any of them ends all, with its sentence on stderr;
    Ctrl-C or SIGTERM in this one ends all.

    Args:
        args: from :func:`clsloc.engine.argument_parser`.
        config_functions: see :func:`clsloc.engine.projects.add_project_configs`.

    Returns:
        The exit status for ``sys.exit``.
    """
    try:
        _check_processes(args, config_functions)
        with end_together() if _num_processes(args) > 1 else nullcontext():
            launch(
                main,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args, config_functions),
            )
    except UserError as error:
        sentence = str(error)
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS
    except ProcessRaisedException as error:
        sentence = _user_error_in(str(error))
        if not sentence:
            raise
    else:
        return 0
    sys.stderr.write(f"{sentence}\n")
    return UserError.EXIT_STATUS


def _num_processes(args: argparse.Namespace) -> int:
    return args.num_gpus * args.num_machines


def _check_processes(args: argparse.Namespace, config_functions: Sequence[ConfigFunction]) -> None:
    """What only fails in the other processes, or hangs there."""
    if args.num_gpus < 1:
        raise UserError(f"--num-gpus {args.num_gpus} starts no process; give at least 1.")
    if args.num_machines > 1 and args.dist_url == "auto":
        raise UserError("Several machines need a common --dist-url, such as tcp://HOST:PORT.")
    if _num_processes(args) == 1 or not torch.cuda.is_available():
        return
    present = torch.cuda.device_count()
    if args.num_gpus > present:
        raise UserError(
            f"--num-gpus {args.num_gpus} is more than the {present} GPU(s) of this machine; "
            f"give at most {present}."
        )
    device = setup_cfg(args, config_functions=config_functions).MODEL.DEVICE
    if device != "cuda":
        raise UserError(
            "Several processes take a GPU each where there are GPUs, but MODEL.DEVICE is "
            f"{device!r}; set MODEL.DEVICE cuda, or for processes on CPUs hide the GPUs with "
            "CUDA_VISIBLE_DEVICES= in front of the command."
        )


def _user_error_in(traceback: str) -> str:
    """The sentence of the UserError with which the traceback of another process ends, if any."""
    name = f"{UserError.__module__}.{UserError.__qualname__}: "
    return traceback.rpartition(name)[2].strip() if name in traceback else ""


def main(
    args: argparse.Namespace, config_functions: Sequence[ConfigFunction] = ()
) -> dict[str, Any]:
    """Train and evaluate, or with ``args.eval_only`` evaluate, in this process.

    Returns:
        The metrics as ``Trainer.test`` returns them, with ``TEST.AUG.ENABLED`` those with
        test-time augmentation as well; they also stand in ``results.json`` in OUTPUT_DIR.
    """
    try:
        cfg = _prepare(args, config_functions)
        with _kept_config(cfg.OUTPUT_DIR):
            _set_up(cfg, args)
            if args.eval_only:
                return _evaluate(cfg, args.resume)
            configured = setup_cfg(config_file=args.config_file, config_functions=config_functions)
            check_learning_rate(cfg, configured)
            if not args.resume:
                check_frozen_stages(cfg)
            trainer = Trainer(cfg)
            trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    except OSError as error:
        if error.errno not in OUTPUT_ERRORS:
            raise
        raise write_error(error.filename or "A file below OUTPUT_DIR", error) from error


def _prepare(args: argparse.Namespace, config_functions: Sequence[ConfigFunction]) -> CfgNode:
    rank = comm.get_rank()
    if comm.get_world_size() > 1:
        end_at_once()
    setup_logger(distributed_rank=rank, name="clsloc")
    if args.config_file:
        args.config_file = resolve_config_file(args.config_file)  # default_setup logs its text
    cfg = setup_cfg(args, config_functions=config_functions)
    if cfg.MODEL.DEVICE == "cpu" and comm.get_world_size() > 1:
        # Every process would otherwise start a thread for each core.
        torch.set_num_threads(max(1, torch.get_num_threads() // comm.get_world_size()))
    return cfg


@contextmanager
def _kept_config(folder: str) -> Iterator[None]:
    """Where what is inside fails, the config.yaml of an earlier run in ``folder`` is as before."""
    path = Path(folder, "config.yaml")
    earlier = path.read_bytes() if comm.is_main_process() and path.is_file() else None
    try:
        yield
    except BaseException:
        if earlier is not None:
            path.write_bytes(earlier)
        raise


def _set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    if not cfg.OUTPUT_DIR:
        raise UserError("OUTPUT_DIR is empty; name a folder.")
    make_folder(cfg.OUTPUT_DIR)
    default_setup(cfg, args)
    rank = comm.get_rank()
    setup_logger(cfg.OUTPUT_DIR, rank, name="clsloc", configure_stdout=False)


def _evaluate(cfg: CfgNode, resume: bool) -> dict[str, Any]:
    start = time.perf_counter()
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty; name the datasets to evaluate on.")
    check_config(cfg, cfg.DATASETS.TEST)
    check_test_sets(cfg, Trainer.build_evaluator)
    model = Trainer.build_model(cfg)
    checkpointer = Checkpointer(model, save_dir=cfg.OUTPUT_DIR, complete=True)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results = {**results, **Trainer.test_with_TTA(cfg, model)}
    if comm.is_main_process():
        verify_results(cfg, results)  # against TEST.EXPECTED_RESULTS
    write_results(
        os.path.join(cfg.OUTPUT_DIR, "results.json"), results, seconds=time.perf_counter() - start
    )
    return results
