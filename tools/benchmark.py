#!/usr/bin/env python
"""Time model A against baseline B in turn, pair by pair: inference, training step, peak memory.

  benchmark.py --config-file A.yaml --baseline B.yaml --size 800 1088 --survivors 200
  benchmark.py --config-file A.yaml --runtimes PATH_1 PATH_2

Images and objects are made up. --survivors K lets K regions of each image pass the score
threshold, the same for A and B (random weights let all or none pass). The second form measures one
config on two implementations of Detectron2, each in a process of its own with that folder first on
its path: A is PATH_1. Trailing KEY VALUE overrides hold for both sides, those of --override-a only
for A.

--parts shares out the time of a step among the parts of the detector, in further steps that wait
for the device after every part; the paired ratio comes from steps that do not.
"""

import argparse
import sys
from contextlib import ExitStack
from typing import Any

from clsloc.cli import make_parser, run, write_json
from clsloc.engine.setup import setup_cfg
from clsloc.env import environment
from clsloc.errors import UserError
from clsloc.gauges.child import RemoteWorkload
from clsloc.gauges.pairs import time_pairs
from clsloc.gauges.parts import PARTS, median_parts
from clsloc.gauges.workload import Workload

KINDS = ("inference", "train_step")
SIDES = ("a", "b")


def parser() -> argparse.ArgumentParser:
    result = make_parser(__doc__, datasets=False)
    add = result.add_argument
    add("--baseline", metavar="FILE", help="config of B; that of A by default")
    add("--size", type=int, nargs=2, metavar=("H", "W"), default=(800, 1088), help="height and "
        "width of the images (default 800 1088)")  # fmt: skip
    add("--batch", type=int, default=1, metavar="N", help="images in a step (default 1)")
    add("--num-gt", type=int, default=10, metavar="M", help="objects in an image (default 10)")
    add("--survivors", type=int, metavar="K", help="regions of an image "
        "above the threshold (default: what the weights give)")  # fmt: skip
    add("--pairs", type=int, default=10, metavar="N", help="measured pairs (default 10)")
    add("--warmup", type=int, default=2, metavar="N", help="pairs run before (default 2)")
    add("--device", metavar="D", help="cpu or cuda; MODEL.DEVICE of the config by default")
    add("--amp", action="store_true", help="mixed precision on both sides: float16 on CUDA, with "
        "scaled gradients, bfloat16 on a CPU")  # fmt: skip
    add("--channels-last", action="store_true", help="weights and feature maps of both sides in "
        "the memory format channels_last")  # fmt: skip
    parts = "; ".join(f"{part} ({what})" if what else part for part, what in PARTS.items())
    add("--parts", action="store_true", help=f"tell the time of each part too: {parts}")
    add("--skip", choices=KINDS, help="leave out one of the two kinds of step")
    add("--skip-memory", action="store_true", help="leave out the peak memory")
    add("--weights-a", default="", metavar="FILE", help="trained weights of A")
    add("--weights-b", default="", metavar="FILE", help="trained weights of B")
    add("--override-a", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="an "
        "override for A alone; may be repeated")  # fmt: skip
    add("--runtimes", nargs=2, metavar=("PATH_1", "PATH_2"), help="see above")
    return result


def main(args: argparse.Namespace) -> None:
    check(args)
    kinds = [kind for kind in KINDS if kind != args.skip]
    settings = {side: side_settings(args, side) for side in SIDES}
    report: dict[str, Any] = {}
    with ExitStack() as stack:
        sides = [open_side(stack, args, settings[side], i) for i, side in enumerate(SIDES)]
        report["precision"] = {name: side.precision for name, side in zip(SIDES, sides)}
        if args.amp:
            print("mixed precision: A {a}, B {b}".format(**report["precision"]))
        for kind in kinds:
            times = time_pairs(
                *(lambda side=side, kind=kind: side.measure(kind) for side in sides),
                pairs=args.pairs,
                warmup=args.warmup,
            )
            report[kind] = times.summary()
            print(sentence(kind, report[kind]), flush=True)
        for kind in kinds if args.parts else ():
            steps = [[side.measure_parts(kind) for side in sides] for _ in range(args.pairs)]
            parts = dict(zip(SIDES, map(median_parts, zip(*steps))))
            report.setdefault("parts", {})[kind] = parts
            print(parts_table(kind, parts), flush=True)
    if not args.skip_memory:
        report["peak_memory_mb"] = measure_memory(args, settings, kinds)
        a, b = report["peak_memory_mb"].values()
        print(f"peak memory: A {a:.0f} MiB, B {b:.0f} MiB, ratio {a / b:.3f}")
    report["environment"] = environment()
    report["settings"] = {key: value for key, value in vars(args).items() if key != "json"}
    if args.json:
        write_json(report, args.json)


def check(args: argparse.Namespace) -> None:
    for name, least in (("batch", 1), ("pairs", 1), ("num_gt", 0), ("survivors", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {value} is too few; give at least {least}.")
    if min(args.size) < 1:
        raise UserError(f"--size {args.size[0]} {args.size[1]} is no image; give sides above 0.")
    if args.skip == "train_step" and not args.baseline and not args.runtimes:
        if not args.override_a and args.weights_a == args.weights_b:
            raise UserError("A and B are the same; give --baseline, --override-a or --runtimes.")


def side_settings(args: argparse.Namespace, side: str) -> dict[str, Any]:
    """Plain values from which a workload is built, here or in a child process."""
    overrides = list(args.opts)
    if args.device:
        overrides += ["MODEL.DEVICE", args.device]
    if side == "a":
        overrides += [word for pair in args.override_a for word in pair]
    return {
        "config_file": args.config_file if side == "a" else args.baseline or args.config_file,
        "overrides": overrides,
        "size": tuple(args.size),
        "batch": args.batch,
        "num_gt": args.num_gt,
        "survivors": args.survivors,
        "weights": getattr(args, f"weights_{side}"),
        "amp": args.amp,
        "channels_last": args.channels_last,
    }


def open_side(
    stack: ExitStack, args: argparse.Namespace, settings: dict[str, Any], index: int
) -> Workload | RemoteWorkload:
    if args.runtimes:
        return stack.enter_context(RemoteWorkload(settings, args.runtimes[index]))
    settings = dict(settings)
    cfg = setup_cfg(
        config_file=settings.pop("config_file"), overrides=settings.pop("overrides", ())
    )
    return Workload(cfg, **settings)


def measure_memory(
    args: argparse.Namespace, settings: dict[str, dict[str, Any]], kinds: list[str]
) -> dict[str, float]:
    """Each side alone in a fresh process, two steps of each kind."""
    peaks = {}
    for index, side in enumerate(SIDES):
        path = args.runtimes[index] if args.runtimes else ""
        with RemoteWorkload(settings[side], path) as workload:
            for kind in kinds * 2:
                workload.measure(kind)
            peaks[side] = workload.peak_memory_mb()
    return peaks


def sentence(kind: str, summary: dict[str, Any]) -> str:
    low, high = summary["ratio_interval"]
    return (
        f"{kind}: A {summary['a_s']:.4f} s, B {summary['b_s']:.4f} s, "
        f"ratio {summary['ratio']:.3f} [{low:.3f}, {high:.3f}]"
    )


def parts_table(kind: str, parts: dict[str, dict[str, float]]) -> str:
    """Median milliseconds of each part on both sides."""
    lines = [f"parts of {kind} (ms)       A          B"]
    for part in PARTS:
        times = [parts[side].get(part) for side in SIDES]
        if any(times):
            cells = ["-" if seconds is None else f"{1000 * seconds:.2f}" for seconds in times]
            lines.append(f"  {part:<18}{cells[0]:>11}{cells[1]:>11}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(main, parser()))
