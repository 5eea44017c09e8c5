#!/usr/bin/env python
"""Write the weights of other programs under the names of this repository.

Backbones of torchvision and timm (VGG16, ResNet, ResNeXt, Res2Net v1d) to start training from:
  convert_weights.py resnet101.pth --output R-101.pkl --layout bare
  convert_weights.py resnet101.pth --output R-101.pth --config-file F
Detectors, to evaluate without training: Double-Head of its authors or of MMDetection; DDOD, ATSS
and RetinaNet of MMDetection. They need the config of the same detector.
  convert_weights.py dh_faster_rcnn_r50_fpn_1x_coco.pth --output double_head.pth \\
    --config-file projects/double_head/configs/double_head_R_50_FPN_1x.yaml \\
    MODEL.DOUBLE_HEAD.NONLOCAL.ENABLED False
What the file is, is seen from its names. Every tensor of the file is used, or named as left out;
with a config, every tensor of the model is filled, or named. At the end stand the settings without
which the weights mean something else: pixel statistics, channel order, pooling.
"""

import argparse
import pickle
import sys
from typing import Any

import torch

from clsloc import cli
from clsloc.checkpoint import load_file
from clsloc.checkpoint.convert import (
    LAYOUTS,
    Conversion,
    Fit,
    fit_model,
    lay_out,
    some_of,
    state_of,
)
from clsloc.checkpoint.convert_backbones import convert_backbone
from clsloc.checkpoint.convert_detectors import convert_detector
from clsloc.checkpoint.digest import group_names
from clsloc.engine import setup_cfg
from clsloc.engine.checks import get_value
from clsloc.errors import UserError
from clsloc.files import atomic_write
from detectron2.config import CfgNode
from detectron2.modeling import build_model


def parser() -> argparse.ArgumentParser:
    result = cli.make_parser(__doc__, config=False, overrides=True, json_help="write what became "
                             "of each tensor to this file")  # fmt: skip
    result.add_argument("input", metavar="FILE", help="a checkpoint or state dict")
    result.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help="a .pth file, or .pkl in the form of Detectron2's model zoo",
    )
    result.add_argument("--config-file", metavar="FILE", help="the model that the weights are for")
    result.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="where a backbone goes when there is no config: "
        + "; ".join(f"{name}, {what}" for name, what in LAYOUTS.items())
        + " (default fpn, for VGG16 bare)",
    )
    return result


def main(args: argparse.Namespace) -> None:
    if args.config_file and args.layout:
        raise UserError("Give --config-file or --layout, not both: the config has its layout.")
    if not args.output.endswith((".pth", ".pkl")):
        raise UserError(f"--output {args.output!r} must end in .pth or .pkl.")
    cfg = setup_cfg(args) if args.config_file else None
    state = state_of(load_file(args.input), args.input)
    conversion = recognise(state, cfg, args.input)
    fit = place(conversion, cfg, args.layout)
    write(fit, args.output, by_itself=cfg is None and layout_of(conversion, args.layout) == "bare")
    settings = conversion.settings | (conversion.architecture if cfg is None else {})
    unmet = {
        key: value for key, value in settings.items() if cfg is None or differs(cfg, key, value)
    }
    report(args, conversion, fit, unmet)


def recognise(state: dict[str, torch.Tensor], cfg: CfgNode | None, path: str) -> Conversion:
    tblr = cfg is not None and cfg.MODEL.DDOD.CODER == "ltrb"
    conversion = convert_backbone(state) or convert_detector(state, tblr=tblr)
    if conversion is None:
        raise UserError(
            f"{path!r} is of no kind that is known: it has {', '.join(list(state)[:3])}, ...; see "
            "--help for what can be converted."
        )
    return conversion


def place(conversion: Conversion, cfg: CfgNode | None, layout: str | None) -> Fit:
    if cfg is None:
        if conversion.detector:
            raise UserError(
                f"The {conversion.source} is a whole detector; give the config of the same one "
                "with --config-file, so that every tensor is checked."
            )
        return lay_out(conversion, layout_of(conversion, layout))
    for key, value in conversion.architecture.items():
        if differs(cfg, key, value):
            raise UserError(
                f"The file holds {conversion.source}, which wants {key} {value}, and the config "
                f"has {get_value(cfg, key)}; give another config, or the key and value behind the "
                "flags."
            )
    return fit_model(conversion, build_model(cfg).state_dict())


def layout_of(conversion: Conversion, layout: str | None) -> str:
    vgg = conversion.source == "VGG16"
    if vgg and layout not in (None, "bare"):
        raise UserError("VGG16 is only known to G-RCN: give --layout bare or --config-file.")
    return layout or ("bare" if vgg else "fpn")


def write(fit: Fit, path: str, *, by_itself: bool) -> None:
    """
    Args:
        by_itself: whether Detectron2 has to look for the places of the names.
    """
    tensors = {name: tensor.contiguous() for name, tensor in fit.tensors.items()}
    content: dict[str, Any] = {"model": tensors, "__author__": "convert_weights"}
    if by_itself:
        content["matching_heuristics"] = True
    with atomic_write(path) as file:
        if path.endswith(".pth"):
            torch.save(content, file)
        else:
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            pickle.dump(content | {"model": arrays}, file)


def report(
    args: argparse.Namespace, conversion: Conversion, fit: Fit, unmet: dict[str, Any]
) -> None:
    print(f"{conversion.source}: {len(fit.tensors)} tensors written to {args.output}.")
    for reason in sorted(set(fit.left_out.values())):
        names = [name for name, why in fit.left_out.items() if why == reason]
        print(f"Left out, as {reason}: {some_of(names)}.")
    if fit.unfilled:
        what = "counted anew" if conversion.detector else "to be trained"
        print(f"Not in the file, and {what}: {group_names(fit.unfilled)}.")
    if unmet:
        what = "the config has other values" if args.config_file else "set"
        print(f"The weights want these ({what}):")
        print("  " + " ".join(f'{key} "{value}"' for key, value in unmet.items()))
    for note in conversion.notes:
        print(f"Note: {note}")
    if args.json:
        cli.write_json(
            {
                "source": conversion.source,
                "output": args.output,
                "mapped": fit.origins,
                "left_out": fit.left_out,
                "unfilled": fit.unfilled,
                "settings": conversion.settings | conversion.architecture,
                "settings_to_change": unmet,
                "notes": conversion.notes,
            },
            args.json,
        )


def differs(cfg: CfgNode, key: str, value: Any) -> bool:
    found = get_value(cfg, key)
    if isinstance(value, list):
        return list(found) != value
    return found != value


if __name__ == "__main__":
    sys.exit(cli.run(main, parser()))
