"""``python -m clsloc.env``: which Detectron2 is in use, and every version that matters.

It also works where something is broken, and then says what.
"""

import argparse
import importlib
import os
import platform
import sys
from importlib import metadata, util
from typing import Any

import clsloc
from clsloc import cli
from clsloc.errors import UserError

# Module to import: distribution that knows its version.
_PACKAGES = {
    "torchvision": "torchvision",
    "fvcore": "fvcore",
    "iopath": "iopath",
    "numpy": "numpy",
    "pycocotools": "pycocotools",
    "PIL": "pillow",
    "cv2": None,
}
REAL, EMBEDDED = "real", "embedded"


def environment() -> dict[str, Any]:
    """Everything that the command prints, as plain values.

    A package that cannot be imported has a sentence in the place of its version.
    """
    return {
        "clsloc": clsloc.__version__,
        "clsloc_path": os.path.dirname(clsloc.__file__),
        "detectron2": detectron2_in_use(),
        "python": platform.python_version(),
        "python_path": sys.executable,
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        **_torch(),
        **{name: _version(name, package) for name, package in _PACKAGES.items()},
    }


def detectron2_in_use() -> dict[str, Any]:
    """What ``import detectron2`` finds.

    Returns:
        ``kind`` ("real", "embedded", or None where there is neither), ``version``, ``path``, and
        ``error``: why its training engine cannot be imported, None if it can.
    """
    found: dict[str, Any] = {"kind": kind_of_detectron2(), "version": None, "path": None}
    try:
        package = importlib.import_module("detectron2")
        found["version"] = package.__version__
        found["path"] = os.path.dirname(package.__file__)
        importlib.import_module("detectron2.engine")
    except Exception as error:  # a broken package may raise anything while it is imported
        return found | {"error": f"{type(error).__name__}: {error}"}
    return found | {"error": None}


def kind_of_detectron2() -> str | None:
    """ "real", "embedded", or None if ``import detectron2`` would find nothing; imports nothing."""
    spec = util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        return None
    # The embedded one is known by its folder, however it came to be found.
    folder = os.path.basename(os.path.dirname(os.path.dirname(os.path.abspath(spec.origin))))
    return EMBEDDED if folder == "detectron2_lite" else REAL


def _torch() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:
        return {"torch": f"cannot be imported ({error})", "cuda": None, "gpus": []}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus}


def _version(name: str, package: str | None) -> str:
    try:
        module = importlib.import_module(name)
        return metadata.version(package) if package else module.__version__
    except Exception as error:
        return f"cannot be imported ({error})"


def _lines(report: dict[str, Any]) -> list[str]:
    used = report["detectron2"]
    values = report | {
        "clsloc": f"{report['clsloc']} in {report['clsloc_path']}",
        "detectron2": f"{used['kind']}, {used['version']} in {used['path']}",
        "python": f"{report['python']}, {report['python_path']}",
        "cuda": f"torch is built for {report['cuda'] or 'none'}",
        "gpus": ", ".join(report["gpus"]) or "none: everything runs on the CPU",
    }
    hidden = {"clsloc_path", "python_path"}
    return [f"{name:<12} {value}" for name, value in values.items() if name not in hidden]


def _parser() -> argparse.ArgumentParser:
    parser = cli.make_parser("Tell which Detectron2 is in use, and all versions.", config=False)
    parser.prog = "python -m clsloc.env"
    parser.add_argument(
        "--is-real",
        action="store_true",
        help="print nothing; exit with 0 if a real Detectron2 would be imported, else with 1",
    )
    return parser


def main(args: argparse.Namespace) -> int:
    """Print the report; fails if Detectron2 cannot be used."""
    if args.is_real:
        return int(kind_of_detectron2() != REAL)
    report = environment()
    print("\n".join(_lines(report)))
    if args.json:
        cli.write_json(report, args.json)
    if error := report["detectron2"]["error"]:
        extra = "[dev-real]" if report["detectron2"]["kind"] == REAL else ""
        raise UserError(
            f"detectron2 cannot be imported ({error}); 'pip install -e .{extra}' in the folder of "
            "clsloc installs what it needs."
        )
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, _parser()))
