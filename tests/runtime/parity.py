"""Measures stock models so that two implementations of Detectron2 can be compared by numbers.

Each model is built from its stock YAML with a fixed seed, its prediction layers are scaled so that
detections are distinct, then a training step and an inference run on two synthetic images, for
two-stage models once more with test-time augmentation. The two
Detectron2 cannot live in one process, so measure in two and compare the files:

    PYTHONPATH=<real Detectron2> python tests/runtime/parity.py --output real.json
    PYTHONPATH=detectron2_lite python tests/runtime/parity.py --output lite.json
    python tests/runtime/parity.py --compare real.json lite.json

With ``--models projects/<name>/configs/FILE.yaml ...`` it measures the models of those configs.

Golden numbers come from the small setting on a real Detectron2, one file per model:

    PYTHONPATH=<real Detectron2> python tests/runtime/parity.py --setting tiny \
        --golden tests/runtime/golden --reference "<commit of the real Detectron2>"
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import torch
from torch import nn

SEED = 1
NUM_CLASSES = 5

FASTER_RCNN = "COCO-Detection/faster_rcnn_R_50_{}_1x.yaml"
MODELS = {
    "faster_rcnn_fpn": (FASTER_RCNN.format("FPN"), {}),
    "faster_rcnn_c4": (FASTER_RCNN.format("C4"), {}),
    "cascade_rcnn": ("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml", {"MODEL.MASK_ON": False}),
    "retinanet": ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", {}),
}

# "stock" changes nothing but the number of classes. "tiny" runs in seconds, and keeps few enough
# proposals that rounding on another CPU does not change which ones survive.
SIZES = {"stock": [(256, 320), (224, 288)], "tiny": [(96, 128), (80, 112)]}
_TINY = {
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 64,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 100,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 100,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 40,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 40,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "TEST.DETECTIONS_PER_IMAGE": 20,
}
_FPN_ANCHORS = {"MODEL.ANCHOR_GENERATOR.SIZES": [[16], [24], [32], [48], [64]]}
_TINY_BY_MODEL = {
    "faster_rcnn_fpn": _FPN_ANCHORS,
    "faster_rcnn_c4": {
        "MODEL.ANCHOR_GENERATOR.SIZES": [[16, 24, 32, 48, 64]],
        "MODEL.RESNETS.WIDTH_PER_GROUP": 16,  # of res5, as ResNet-18 has no other bottleneck
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 8,
    },
    "cascade_rcnn": _FPN_ANCHORS,
    "retinanet": {
        "MODEL.ANCHOR_GENERATOR.SIZES": [[16, 20], [24, 30], [32, 40], [48, 60], [64, 80]],
    },
}


def config(name: str, setting: str, **extra):
    """The config of a model of :data:`MODELS`, or of a config file with that name, on the CPU;
    ``extra`` sets config keys."""
    from detectron2 import model_zoo

    if name not in MODELS:
        from clsloc.engine import setup_cfg

        return setup_cfg(config_file=name, overrides=["MODEL.DEVICE", "cpu"])
    yaml, overrides = MODELS[name]
    cfg = model_zoo.get_config(yaml)
    overrides = {
        "MODEL.DEVICE": "cpu",
        "MODEL.ROI_HEADS.NUM_CLASSES": NUM_CLASSES,
        "MODEL.RETINANET.NUM_CLASSES": NUM_CLASSES,
        **overrides,
    }
    if setting == "tiny":
        overrides |= _TINY | _TINY_BY_MODEL[name]
    overrides |= extra
    cfg.merge_from_list([item for pair in overrides.items() for item in pair])
    return cfg


def build(name: str, setting: str, **extra) -> nn.Module:
    """The model of :func:`config` with random weights."""
    from detectron2.modeling import build_model

    cfg = config(name, setting, **extra)
    torch.manual_seed(SEED)
    return build_model(cfg)


def make_inputs(setting: str) -> list[dict]:
    """Two images of different sizes: noise at several scales with bright objects on it."""
    from detectron2.structures import Boxes, Instances

    generator = torch.Generator().manual_seed(SEED)
    objects = [
        [(0.10, 0.15, 0.42, 0.60, 0), (0.50, 0.40, 0.95, 0.90, 3), (0.60, 0.05, 0.75, 0.30, 1)],
        [(0.05, 0.30, 0.55, 0.95, 4), (0.62, 0.20, 0.88, 0.52, 2)],
    ]
    inputs = []
    for (height, width), boxes in zip(SIZES[setting], objects, strict=True):
        image = torch.zeros(1, 3, height, width)
        for scale in (4, 16, 48):
            noise = torch.rand(1, 3, height // scale, width // scale, generator=generator)
            image += 60 * nn.functional.interpolate(noise, size=(height, width), mode="bilinear")
        boxes = torch.tensor(boxes)
        corners = boxes[:, :4] * torch.tensor([width, height, width, height])
        for (x0, y0, x1, y1), label in zip(corners.int().tolist(), boxes[:, 4].tolist()):
            image[0, int(label) % 3, y0:y1, x0:x1] += 40 + 15 * label
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(corners)
        instances.gt_classes = boxes[:, 4].long()
        inputs.append(
            {
                "image": image[0].clamp(0, 255),
                "instances": instances,
                "height": 2 * height,
                "width": 2 * width,
            }
        )
    return inputs


def spread_predictions(model: nn.Module, inputs: list[dict]) -> None:
    """Give the outputs of prediction layers a fixed mean and spread over positions or regions.

    With random weights all regions score about the same, and near-ties would let rounding decide
    what survives NMS. Each layer is scaled when it first runs, so later levels and cascade stages
    see the outputs of scaled earlier ones.
    """
    handles = [
        module.register_forward_hook(_ScaleOnce(*target))
        for name, module in model.named_modules()
        if (target := _wanted_output(name, one_stage=hasattr(model, "head")))
        # Else a norm follows, to which the scale does not matter, or it is no layer of weights.
        and getattr(module, "bias", None) is not None
    ]
    with torch.no_grad():
        model.eval()(inputs)
    for handle in handles:
        handle.remove()


def _wanted_output(name: str, one_stage: bool) -> tuple[float, float] | None:
    """Mean and spread for the layer called ``name``; None if it stays as it is."""
    parent, _, leaf = name.rpartition(".")
    if leaf.startswith("fpn_output") or leaf in ("p6", "p7"):
        return 0.0, 1.0
    if parent.endswith("_subnet") and int(leaf) % 2 == 0:  # the others are ReLU
        return 0.0, 1.0
    predictions = {
        "objectness_logits": (0.0, 2.0),
        "anchor_deltas": (0.0, 0.2),
        "cls_score": (-4.0, 1.5) if one_stage else (0.0, 2.0),
        "bbox_pred": (0.0, 0.2) if one_stage else (0.0, 1.0),
        **dict.fromkeys(("fc_cls", "conv_cls", "cls", "cls_predictors"), (0.0, 2.0)),
        **dict.fromkeys(("fc_reg", "conv_reg", "reg"), (0.0, 1.0)),
        "iou": (0.7, 0.2),
    }
    if parent.endswith("cls_predictors"):  # one a stage
        leaf = "cls_predictors"
    return predictions.get(leaf)


class _ScaleOnce:
    """A forward hook that scales a linear or convolution layer by its first output."""

    def __init__(self, mean: float, spread: float) -> None:
        self.mean, self.spread = mean, spread
        self.pending = True

    def __call__(self, layer: nn.Module, _, output: torch.Tensor) -> torch.Tensor | None:
        if not self.pending or output.numel() < 2 * output.shape[1]:
            return None
        self.pending = False
        dims = [d for d in range(output.dim()) if d != 1]
        mean, std = output.double().mean(dims), output.double().std(dims)
        factor = self.spread / std
        layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.dim() - 1)))
        layer.bias.copy_((layer.bias - mean) * factor + self.mean)
        shape = [1, -1] + [1] * (output.dim() - 2)
        return ((output - mean.view(shape)) * factor.view(shape) + self.mean).float()


def _norms(model: nn.Module, of) -> dict[str, float]:
    """The joint norm of ``of(parameter)`` over the parameters of each leaf module."""
    squares = {}
    for name, parameter in model.named_parameters():
        value = of(parameter)
        if value is not None:
            module = name.rsplit(".", 1)[0]
            squares[module] = squares.get(module, 0.0) + value.double().square().sum().item()
    return {name: square**0.5 for name, square in squares.items()}


def measure(name: str, setting: str) -> dict:
    """Everything that is compared, for one model; JSON types only."""
    from detectron2.modeling import GeneralizedRCNNWithTTA
    from detectron2.utils.events import EventStorage

    model = build(name, setting)
    state = sorted(f"{key} {tuple(value.shape)}" for key, value in model.state_dict().items())
    result = {
        "state": hashlib.sha1("\n".join(state).encode()).hexdigest(),
        "weights": _norms(model, lambda p: p.detach()),
    }
    inputs = make_inputs(setting)
    spread_predictions(model, inputs)

    torch.manual_seed(SEED)
    model.train()
    with EventStorage() as storage:
        losses = model(inputs)
        sum(losses.values()).backward()
        result["losses"] = {key: value.item() for key, value in losses.items()}
        result["events"] = {key: value for key, (value, _) in storage.latest().items()}
    result["gradients"] = _norms(model, lambda p: p.grad)
    # Equal only if the step drew as many random numbers.
    result["next_random"] = torch.rand(1).item()

    result["detections"] = _detections(model.eval(), inputs)
    if hasattr(model, "roi_heads"):
        cfg = config(name, setting).clone()
        cfg.defrost()
        cfg.TEST.AUG.MIN_SIZES = (min(SIZES[setting][0]), max(SIZES[setting][0]))
        augmented = GeneralizedRCNNWithTTA(cfg, model)
        result["augmented_detections"] = _detections(augmented, inputs)
    return result


def _detections(model: nn.Module, inputs: list[dict]) -> list[dict]:
    with torch.no_grad():
        outputs = model(inputs)
    return [
        {
            "boxes": output["instances"].pred_boxes.tensor.tolist(),
            "scores": output["instances"].scores.tolist(),
            "classes": output["instances"].pred_classes.tolist(),
        }
        for output in outputs
    ]


def relative_difference(a, b) -> float:
    """The largest difference between two structures of numbers, relative to the larger number.

    Lists of numbers count as one vector, so that its near-zero entries do not blow it up. Infinite
    where the structures differ.
    """
    if type(a) is not type(b):
        return float("inf")
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return float("inf")
        return max((relative_difference(a[key], b[key]) for key in a), default=0.0)
    if isinstance(a, list) and a and not isinstance(a[0], (int, float)):
        if len(a) != len(b):
            return float("inf")
        return max(relative_difference(x, y) for x, y in zip(a, b))
    if isinstance(a, (list, float, int)):
        a, b = (torch.tensor(x, dtype=torch.float64) for x in (a, b))
        if a.shape != b.shape:
            return float("inf")
        if a.equal(b):
            return 0.0
        return ((a - b).abs().max() / torch.maximum(a.abs(), b.abs()).max()).item()
    return 0.0 if a == b else float("inf")


def differences(a: dict, b: dict) -> dict[str, float]:
    """The relative difference of each part of two results of :func:`measure`."""
    parts = {part: relative_difference(a[part], b[part]) for part in a}
    # A module that hardly learns has a gradient of rounding errors: it is compared with the others.
    floor = 1e-3 * max(a["gradients"].values())
    raised = [{k: max(v, floor) for k, v in x["gradients"].items()} for x in (a, b)]
    return {**parts, "gradients": relative_difference(*raised)}


def environment(reference: str | None) -> dict:
    """What the numbers were made with."""
    import torchvision

    return {
        "detectron2": reference or "unknown",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def _compare(path_a: Path, path_b: Path, tolerance: float) -> int:
    a, b = (json.loads(path.read_text())["models"] for path in (path_a, path_b))
    worst = 0.0
    for name in a:
        parts = differences(a[name], b[name]) if name in b else {"missing": float("inf")}
        worst = max(worst, *parts.values())
        line = ", ".join(f"{part} {value:.1e}" for part, value in parts.items())
        print(f"{name}: {line}")
    print(f"largest relative difference {worst:.1e}, tolerance {tolerance:.0e}")
    return int(worst > tolerance)


def main() -> int:
    """The command-line program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--setting", choices=SIZES, default="stock")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME",
        help=f"of {', '.join(MODELS)}, or config files")  # fmt: skip
    parser.add_argument("--reference", help="commit of the Detectron2 that is measured")
    parser.add_argument("--output", type=Path, help="write all results to this file")
    parser.add_argument("--golden", type=Path, help="write one file per model to this folder")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"))
    parser.add_argument("--tolerance", type=float, default=1e-5)
    args = parser.parse_args()
    if args.compare:
        return _compare(*args.compare, args.tolerance)

    results = {name: measure(name, args.setting) for name in args.models}
    made_with = {"setting": args.setting, "environment": environment(args.reference)}
    if args.output:
        args.output.write_text(json.dumps({**made_with, "models": results}, indent=1))
    if args.golden:
        for name, result in results.items():
            text = json.dumps({**made_with, "model": name, "result": result}, indent=1)
            (args.golden / f"{name}.json").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
