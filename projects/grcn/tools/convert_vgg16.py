#!/usr/bin/env python
"""Write torchvision's VGG16 as the file that the configs of G-RCN start from.

  convert_vgg16.py vgg16-397923af.pth

The input is the state dict of ImageNet weights that torchvision publishes.
"""

import argparse
import pickle
import sys

from clsloc.checkpoint import load_file
from clsloc.checkpoint.vgg16 import convert_vgg16
from clsloc.cli import run
from clsloc.files import atomic_write

OUTPUT = "output/grcn/vgg16_imagenet.pkl"


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("input", metavar="FILE", help="a state dict of torchvision's vgg16")
    result.add_argument("--output", default=OUTPUT, metavar="FILE", help=f"default {OUTPUT}")
    return result


def main(args: argparse.Namespace) -> None:
    tensors = convert_vgg16(load_file(args.input))
    content = {
        "model": {name: tensor.numpy() for name, tensor in tensors.items()},
        "__author__": "torchvision",
        "matching_heuristics": True,
    }
    with atomic_write(args.output) as file:
        pickle.dump(content, file)
    print(f"{len(tensors)} tensors written to {args.output}")


if __name__ == "__main__":
    sys.exit(run(main, parser()))
