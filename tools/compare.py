#!/usr/bin/env python
"""Train and evaluate several configs over several seeds and compare them.

  compare.py --configs A.yaml B.yaml --seeds 3 --output output/compare [KEY VALUE ...]

Each run is a process of its own in OUTPUT/<config>/seed<N>. What is finished is not run again and
what was broken off is resumed, so the same command goes on where it was stopped; a run of another
config in such a folder is refused. Where a run fails, the others go on, and the exit status is 2.
After every run these are written anew in OUTPUT, from the runs that are finished:

  table.md, table.json    mean and standard deviation of all figures, and how much higher each
                          method is than the first one, paired over equal seeds
  ap_by_iou.png           AP against the IoU threshold
  training_curves.png     the loss, and AP where it was measured on the way
  ap_by_latency.png       AP against the time for an image
  index.html              all of it, with predictions of all methods on the same images, in one
                          file that needs no other
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from textwrap import shorten
from typing import Any

import torch

from clsloc import cli
from clsloc.engine import argument_parser, setup_cfg
from clsloc.engine.config_file import load_config_file
from clsloc.engine.same_config import differences
from clsloc.engine.trainer import Trainer
from clsloc.errors import UserError
from clsloc.files import make_folder
from clsloc.gauges.plots import check_matplotlib
from clsloc.gauges.report import write_report
from clsloc.prediction import Predictor
from clsloc.processes import Processes
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image

TIMED_IMAGES = 50


def parser() -> argparse.ArgumentParser:
    result = cli.make_parser(__doc__, config=False, overrides=True)
    add = result.add_argument
    add("--configs", nargs="+", required=True, metavar="FILE", help="one method each; the others "
        "are compared to the first one")  # fmt: skip
    add("--names", nargs="+", metavar="NAME", help="of the methods; the file names by default")
    add("--seeds", type=int, default=1, metavar="N", help="number of seeds (default 1)")
    add("--first-seed", type=int, default=0, metavar="N", help="the first one (default 0); so the "
        "seeds can be shared among machines, and the folders be put together")  # fmt: skip
    add("--output", required=True, metavar="DIR", help="folder of the runs, the table and the page")
    add("--jobs", type=int, default=1, metavar="N", help="runs at a time (default 1), which share "
        "the processor cores, and have a GPU each where there are several")  # fmt: skip
    add("--flag", action="append", default=[], metavar="WORDS", help="more flags of train_net.py, "
        "may be repeated: --flag '--coco my_train train.json images/'")  # fmt: skip
    add("--no-timing", action="store_true", help="do not measure the seconds per image; those in "
        "table.json are kept")  # fmt: skip
    add("--report-only", action="store_true", help="train nothing: table, pictures and page of the "
        "runs that are finished")  # fmt: skip
    add("--gallery", type=int, default=6, metavar="N", help="images in the gallery of predictions "
        "(default %(default)s; 0 leaves it out)")  # fmt: skip
    return result


def main(args: argparse.Namespace) -> None:
    methods = name_methods(args)
    check(args, methods)
    seconds = earlier_times(args)
    failures: list[str] = []
    if not args.report_only:
        check_earlier_runs(args, methods)
        failures = train_all(args, methods, after_each=lambda: report(args, methods, seconds))
    if not failures or finished_runs(args, methods):
        if not args.no_timing:
            seconds |= time_images(args, methods)
        print(report(args, methods, seconds))
        print(f"All of it: {Path(args.output, 'index.html')}")
    if failures:
        count = f"{len(failures)} runs failed, the first of them so: " if failures[1:] else ""
        raise UserError(f"{count}{failures[0]} The same command goes on from there.")


def folder_of(args: argparse.Namespace, name: str, seed: int) -> Path:
    return Path(args.output, name, f"seed{seed}")


def seeds_of(args: argparse.Namespace) -> range:
    return range(args.first_seed, args.first_seed + args.seeds)


def name_methods(args: argparse.Namespace) -> dict[str, str]:
    """The config of each method by its name."""
    names = args.names or [Path(config).stem for config in args.configs]
    if len(names) != len(args.configs) or len(set(names)) < len(names):
        raise UserError(
            f"{len(args.configs)} configs need as many different names, not {', '.join(names)}; "
            "give them with --names."
        )
    return dict(zip(names, args.configs))


def check(args: argparse.Namespace, methods: dict[str, str]) -> None:
    """A mistake in the last config should not show after hours."""
    least = {"seeds": 1, "first_seed": 0, "jobs": 1, "gallery": 0}
    for name, minimum in least.items():
        if (value := getattr(args, name)) < minimum:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} {value} is too few; give at least {minimum}.")
    check_matplotlib()
    test_sets = {}
    for method, config in methods.items():
        names = setup_cfg(config_file=config, overrides=args.opts).DATASETS.TEST
        if len(names) != 1 and not args.report_only:
            raise UserError(
                f"The methods are compared on one dataset, but DATASETS.TEST of {config!r} names "
                f"{len(names)}; override it: DATASETS.TEST \"('NAME',)\"."
            )
        test_sets[method] = names
    if len(set(test_sets.values())) > 1 and not args.report_only:
        found = " and ".join(f"{method} has {name!r}" for method, (name,) in test_sets.items())
        raise UserError(
            f"The methods are compared on one dataset, but as DATASETS.TEST {found}; override it: "
            "DATASETS.TEST \"('NAME',)\"."
        )


def check_earlier_runs(args: argparse.Namespace, methods: dict[str, str]) -> None:
    """What is taken over, finished or broken off, has the config that it would get now."""
    for seed in seeds_of(args):
        for name, config in methods.items():
            folder = folder_of(args, name, seed)
            stored = folder / "config.yaml"
            if not stored.exists() or not (is_finished(folder) or is_begun(folder)):
                continue
            parsed = argument_parser().parse_args(words_of(args, config, folder, seed))
            with only_here():
                found = differences(load_config_file(str(stored)), setup_cfg(parsed))
            if found:
                listed = [f"{key} {was!r}, now {now!r}" for key, (was, now) in found.items()]
                more = f" and {len(listed) - 3} more key(s)" if len(listed) > 3 else ""
                raise UserError(
                    f"The run in {str(folder)!r} was made with {', '.join(listed[:3])}{more}; give "
                    "another --output, or delete that folder to train it again."
                )


@contextmanager
def only_here() -> Iterator[None]:
    """Forget the datasets that are registered inside: a stored config may name the same files by
    other paths, which register as other datasets."""
    before = set(DatasetCatalog.list())
    try:
        yield
    finally:
        for name in set(DatasetCatalog.list()) - before:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name, None)


def is_finished(folder: Path) -> bool:
    return (folder / "results.json").exists()


def finished_runs(args: argparse.Namespace, methods: dict[str, str]) -> list[Path]:
    """The folders of those that there are."""
    folders = (folder_of(args, name, seed) for name in methods for seed in seeds_of(args))
    return [folder for folder in folders if is_finished(folder)]


def is_begun(folder: Path) -> bool:
    """Whether there is something to resume."""
    return (folder / "last_checkpoint").exists()


def train_all(
    args: argparse.Namespace, methods: dict[str, str], after_each: Callable[[], object]
) -> list[str]:
    """Train what is not finished, ``--jobs`` runs at a time; returns a sentence for each failure.

    After Ctrl-C or SIGTERM no other run begins; those that run get the Ctrl-C too and save.

    Raises:
        Terminated: after SIGTERM, when all have ended.
    """
    failures = []
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(args.jobs):
        slots.put(slot)

    def run(name: str, seed: int) -> None:
        slot = slots.get()
        words = words_of(args, methods[name], folder_of(args, name, seed), seed)
        try:
            train(folder_of(args, name, seed), words, processes, share(slot, args.jobs))
        finally:
            slots.put(slot)

    processes = Processes()
    with processes.end_on_sigterm():
        pool = ThreadPoolExecutor(args.jobs)
        try:
            runs = [
                pool.submit(run, name, seed)
                for seed in seeds_of(args)
                for name in methods
                if not is_finished(folder_of(args, name, seed))
            ]
            for finished in as_completed(runs):
                try:
                    finished.result()
                except UserError as error:
                    failures.append(str(error))
                    print(error, flush=True)
                else:
                    after_each()
        except KeyboardInterrupt:
            processes.interrupted = True
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    return failures


def share(slot: int, jobs: int) -> dict[str, str]:
    """The environment of one of several runs at a time: its part of the cores, and its GPU.

    Args:
        slot: 0 to ``jobs`` - 1, different for runs at the same time.
        jobs: how many there are.
    """
    environment = dict(os.environ)
    if jobs > 1:
        cores = max(1, (os.cpu_count() or 1) // jobs)
        environment.setdefault("OMP_NUM_THREADS", str(cores))
        if (num_gpus := torch.cuda.device_count()) > 1:
            names = environment.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(num_gpus))))
            environment["CUDA_VISIBLE_DEVICES"] = names.split(",")[slot % num_gpus]
    return environment


def words_of(args: argparse.Namespace, config: str, folder: Path, seed: int) -> list[str]:
    """The command line of one run."""
    flags = [word for words in args.flag for word in shlex.split(words)]
    own = ["SEED", str(seed), "OUTPUT_DIR", str(folder)]
    return ["--config-file", config, *flags, *args.opts, *own]


def train(
    folder: Path, words: list[str], processes: Processes, environment: dict[str, str]
) -> None:
    """Train or resume one run.

    Raises:
        UserError: it failed.
    """
    processes.check()
    resume = ["--resume"] if is_begun(folder) else []
    print(f"{'Resuming' if resume else 'Training'} {folder} ...", flush=True)
    make_folder(str(folder))
    command = [sys.executable, "-m", "clsloc.train", *resume, *words]
    with open(folder / "console.txt", "a", encoding="utf-8") as console:
        status = processes.run(command, stdout=console, stderr=console, env=environment)
    if status:
        raise UserError(
            f"The run in {str(folder)!r} ended with status {status}; its console.txt says why, "
            f"and ends with {last_line(folder / 'console.txt')!r}."
        )


def last_line(path: Path) -> str:
    """The last line of a text that is not blank, cut to a length that can be read."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return shorten(next((line for line in reversed(lines) if line.strip()), ""), 400)


def read_run(folder: Path, seed: int) -> dict[str, Any]:
    """The figures of a finished run."""
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return content["metrics"] | {
        "seconds_per_iteration": content.get("seconds_per_iteration"),
        "seed": seed,
        "folder": str(folder),
        "origin": {
            "hardware": content.get("hardware", "hardware not told"),
            "commit": str(content.get("commit")),
            **content["versions"],
        },
    }


def report(args: argparse.Namespace, methods: dict[str, str], seconds: dict[str, float]) -> str:
    """Write table, pictures and page of the runs that are finished; returns the table.

    What is the same for all runs of a method stands in the first one.
    """
    folders = {
        (name, seed): folder_of(args, name, seed) for name in methods for seed in seeds_of(args)
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    unfinished = []
    for (name, seed), folder in folders.items():
        if is_finished(folder):
            runs[name].append(read_run(folder, seed))
        else:
            unfinished.append(f"{name}/seed{seed}")
    for name, of_method in runs.items():
        if of_method:
            stored = Path(of_method[0]["folder"], "config.yaml")
            of_method[0]["params_millions"] = count_parameters(stored) / 1e6
            of_method[0]["seconds_per_image"] = seconds.get(name)
    if not any(runs.values()):
        raise UserError(f"No run in {args.output!r} is finished; leave out --report-only.")
    origin = {
        "made_with": made_with(runs),
        "seeds": max(map(len, runs.values())),
        "command": shlex.join(sys.argv),
        "configs": methods,
        "unfinished": unfinished,
    }
    return write_report(
        Path(args.output), runs, origin, json_file=args.json, num_images=args.gallery
    )


def made_with(runs: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Hardware, commit and versions of the runs, several where they differ."""
    found: dict[str, set[str]] = {}
    for run in (run for of_method in runs.values() for run in of_method):
        for what, value in run["origin"].items():
            found.setdefault(what, set()).add(value)
    return {what: ", ".join(sorted(values)) for what, values in found.items()}


@cache
def count_parameters(config: Path) -> int:
    """All parameters of the model of a config."""
    model = Trainer.build_model(setup_cfg(config_file=str(config)))
    return sum(parameter.numel() for parameter in model.parameters())


def earlier_times(args: argparse.Namespace) -> dict[str, float]:
    """The seconds per image of an earlier report."""
    path = Path(args.output, "table.json")
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else {}
    return {
        name: run["seconds_per_image"]
        for name, of_method in runs.items()
        for run in of_method
        if run.get("seconds_per_image")
    }


def time_images(args: argparse.Namespace, methods: dict[str, str]) -> dict[str, float]:
    """Median seconds for one image with the weights of the first seed, the methods in turn.

    A method without such weights is left out.
    """
    predictors, images = {}, []
    for name in methods:
        folder = folder_of(args, name, args.first_seed)
        weights, stored = folder / "model_final.pth", folder / "config.yaml"
        if not weights.exists():
            continue
        cfg = setup_cfg(config_file=str(stored), overrides=["MODEL.WEIGHTS", str(weights)])
        predictors[name] = Predictor(cfg)
        if not images:
            records = DatasetCatalog.get(cfg.DATASETS.TEST[0])[:TIMED_IMAGES]
            images = [read_image(record["file_name"], format="BGR") for record in records]
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    for image in images:
        for name, predictor in predictors.items():
            start = time.perf_counter()
            predictor(image)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}


if __name__ == "__main__":
    sys.exit(cli.run(main, parser()))
