#!/usr/bin/env python
"""Train and evaluate several configs over several seeds and write one table.

  compare.py --configs A.yaml B.yaml --seeds 3 --output output/compare [KEY VALUE ...]

Each run is a process of its own in OUTPUT/<config>/seed<N>. What is finished is not run again and
what was broken off is resumed, so the same command goes on where it was stopped. The table
(table.md, table.json) is written anew after every run, with mean and standard deviation.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import torch

from clsloc import cli
from clsloc.engine import setup_cfg
from clsloc.engine.trainer import Trainer
from clsloc.errors import UserError
from clsloc.files import atomic_write
from clsloc.gauges.comparison import commit, hardware, markdown_table, summarise
from clsloc.prediction import Predictor
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image

TIMED_IMAGES = 50


def parser() -> argparse.ArgumentParser:
    result = cli.make_parser(__doc__, config=False, overrides=True)
    add = result.add_argument
    add("--configs", nargs="+", required=True, metavar="FILE", help="one method each")
    add("--names", nargs="+", metavar="NAME", help="of the methods; the file names by default")
    add("--seeds", type=int, default=1, metavar="N", help="seeds 0 to N - 1 (default 1)")
    add("--output", required=True, metavar="DIR", help="folder of the runs and the table")
    add("--flag", action="append", default=[], metavar="WORDS", help="more flags of train_net.py, "
        "e.g. --flag '--coco train train.json images/'")  # fmt: skip
    add("--no-timing", action="store_true", help="leave out the seconds per image")
    return result


def main(args: argparse.Namespace) -> None:
    methods = name_methods(args)
    flags = [word for words in args.flag for word in words.split()]
    check(args, methods, flags)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    for seed in range(args.seeds):
        for name, config in methods.items():
            folder = Path(args.output, name, f"seed{seed}")
            runs[name].append(train(config, folder, seed, flags, args.opts))
            write_table(args, methods, runs)
    if not args.no_timing:
        for name, seconds in time_images(args, methods).items():
            for figures in runs[name]:
                figures["seconds_per_image"] = seconds
    print(write_table(args, methods, runs))


def name_methods(args: argparse.Namespace) -> dict[str, str]:
    """The config of each method by its name."""
    names = args.names or [Path(config).stem for config in args.configs]
    if len(names) != len(args.configs) or len(set(names)) < len(names):
        raise UserError(
            f"{len(args.configs)} configs need as many different names, not {', '.join(names)}; "
            "give them with --names."
        )
    return dict(zip(names, args.configs))


def check(args: argparse.Namespace, methods: dict[str, str], flags: list[str]) -> None:
    """A mistake in the last config should not show after hours."""
    if args.seeds < 1:
        raise UserError(f"--seeds {args.seeds} is too few; give at least 1.")
    for config in methods.values():
        setup_cfg(config_file=config, overrides=args.opts)


def train(
    config: str, folder: Path, seed: int, flags: list[str], overrides: list[str]
) -> dict[str, Any]:
    """Train, resume or skip one run; returns its figures."""
    results = folder / "results.json"
    if not results.exists():
        resume = ["--resume"] if (folder / "last_checkpoint").exists() else []
        print(f"{'Resuming' if resume else 'Training'} {folder} ...", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "clsloc.train", "--config-file", config, *flags, *resume]
        command += [*overrides, "SEED", str(seed), "OUTPUT_DIR", str(folder)]
        with open(folder / "console.txt", "a", encoding="utf-8") as console:
            status = run_to_its_end(command, console)
        if status:
            raise UserError(
                f"The run in {str(folder)!r} ended with status {status}; its console.txt says "
                "why. The same command goes on from there."
            )
    content = json.loads(results.read_text(encoding="utf-8"))
    return content["metrics"] | {
        "seconds_per_iteration": content.get("seconds_per_iteration"),
        "seed": content.get("seed"),
    }


def run_to_its_end(command: list[str], console: IO[str]) -> int:
    """Run a program and return its status; Ctrl-C, which it gets too, waits until it has saved."""
    process = subprocess.Popen(command, stdout=console, stderr=console)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise


def write_table(
    args: argparse.Namespace, methods: dict[str, str], runs: dict[str, list[dict[str, Any]]]
) -> str:
    """Write table.md and table.json of the runs so far; returns the text."""
    done = {name: figures for name, figures in runs.items() if figures}
    for name, figures in done.items():
        for run in figures:
            run.setdefault("params_millions", count_parameters(methods[name], args.opts) / 1e6)
    rows = summarise(done)
    seeds = max(map(len, done.values()))
    versions = {"torch": torch.__version__, "python": sys.version.split()[0]}
    origin = {"hardware": hardware(), "commit": commit(), "seeds": seeds, "versions": versions}
    text = markdown_table(rows) + (
        f"\n{seeds} seed(s), mean ± standard deviation; {origin['hardware']}; "
        f"torch {versions['torch']}, Python {versions['python']}; commit {origin['commit']}.\n"
    )
    report = {"rows": rows, "runs": done, **origin}
    with atomic_write(Path(args.output, "table.md"), "w") as file:
        file.write(text)
    for path in filter(None, (Path(args.output, "table.json"), args.json)):
        cli.write_json(report, path)
    return text


_parameters: dict[str, int] = {}


def count_parameters(config: str, overrides: list[str]) -> int:
    """All parameters of the model of a config; built once."""
    if config not in _parameters:
        model = Trainer.build_model(setup_cfg(config_file=config, overrides=overrides))
        _parameters[config] = sum(parameter.numel() for parameter in model.parameters())
    return _parameters[config]


def time_images(args: argparse.Namespace, methods: dict[str, str]) -> dict[str, float]:
    """Median seconds for one image with the weights of the first seed, the methods in turn."""
    predictors, images = {}, []
    for name in methods:
        weights = Path(args.output, name, "seed0", "model_final.pth")
        stored = Path(args.output, name, "seed0", "config.yaml")
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
            seconds[name].append(time.perf_counter() - start)
    return {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}


if __name__ == "__main__":
    sys.exit(cli.run(main, parser()))
