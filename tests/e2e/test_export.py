"""What docs/export.md says about each detector: which parts can be exported, and how."""

import logging
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from clsloc.engine import setup_cfg
from detectron2.modeling import build_model

ROOT = Path(__file__).resolve().parents[2]
TWO_STAGE = {
    "Faster R-CNN": "clsloc/configs/digits/faster_rcnn_R_18_FPN.yaml",
    "Double-Head": "projects/double_head/configs/digits/double_head_R_18_FPN.yaml",
    "Double-Head-Ext": "projects/double_head/configs/digits/double_head_ext_R_18_FPN.yaml",
    "G-RCN": "projects/grcn/configs/digits/grcn_C4.yaml",
    "Decoupled R-CNN": "projects/decoupled_rcnn/configs/digits/decoupled_cascade_R_18_FPN.yaml",
    "IoU-uniform R-CNN": "projects/iou_uniform/configs/digits/uniform_iou_efo_R_18_FPN.yaml",
}
ONE_STAGE = {
    "ATSS": "projects/ddod/configs/digits/atss_iou_R_18_FPN.yaml",
    "DDOD": "projects/ddod/configs/digits/ddod_atss_R_18_FPN.yaml",
}
ALL = TWO_STAGE | ONE_STAGE
WITH_ONNX = all(map(find_spec, ("onnx", "onnxscript", "onnxruntime")))
SETTINGS = {
    "MODEL.DEVICE": "cpu",
    "TEST.DETECTIONS_PER_IMAGE": 5000,
    # So many proposals that NMS decides about their number.
    "MODEL.RPN.NMS_THRESH": 0.3,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 5000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 5000,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.DDOD.TEST.SCORE_THRESH": 0.0,
}


ANY_NUMBER = {"pooled": {0: torch.export.Dim("boxes", min=2)}}


class Whole(nn.Module):
    """An image (3, H, W) to the boxes, scores and classes of its detections."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        if hasattr(self.model, "roi_heads"):
            (found,) = self.model.inference([{"image": image}], do_postprocess=False)
        else:
            (found,) = (output["instances"] for output in self.model([{"image": image}]))
        return found.pred_boxes.tensor, found.scores, found.pred_classes


class Maps(nn.Module):
    """Normalised images (N, 3, H, W) to all maps: of the backbone, and of the head on them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model.backbone
        two_stage = hasattr(model, "proposal_generator")
        self.head = model.proposal_generator.rpn_head if two_stage else model.head
        self.names = list(
            model.proposal_generator.in_features if two_stage else model.head_in_features
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.backbone(images)
        outputs = self.head([features[name] for name in self.names])
        return (*features.values(), *(level for kind in outputs for level in kind))


class Towers(nn.Module):
    """Pooled features (R, C, H, W) to what the RoI heads say about R boxes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.heads = model.roi_heads

    def forward(self, pooled: Tensor) -> tuple[Tensor, ...]:
        heads, name = self.heads, type(self.heads).__name__
        if name == "DoubleHeadROIHeads":
            vectors = {kind: tower(pooled) for kind, tower in heads.box_head.items()}
            names = heads.box_predictor.predictors
            return tuple(heads.box_predictor(n, vectors[n.split("_")[0]]) for n in names)
        if name == "DecoupledROIHeads":
            pairs = [*zip(heads.cls_heads, heads.cls_predictors, strict=True)]
            pairs += zip(heads.reg_heads, heads.reg_predictors, strict=True)
            return tuple(predictor(head(pooled)) for head, predictor in pairs)
        if name == "IoUUniformROIHeads":
            (stage,) = heads.stages
            return tuple(stage.run(pooled, list(stage.predictor.plan.towers)).values())
        if name == "GRCNROIHeads":
            # The whole image, pooled like a box, is the context; here the first box.
            if heads.context:
                sizes = [pooled.shape[0]]
                pooled, _ = heads.context["cls"](pooled, pooled[:1], sizes)
            vectors = [heads.box_head[n](pooled) for n in heads.task_heads["cls"]]
            return (heads.box_predictor.cls_score(torch.cat(vectors, dim=1)),)
        return tuple(heads.box_predictor(heads.box_head(pooled)))


def detector(config: str) -> nn.Module:
    """With random weights whose outputs vary, so that a wrong part is seen."""
    torch.manual_seed(3)
    overrides = [item for pair in SETTINGS.items() for item in pair]
    model = build_model(setup_cfg(config_file=str(ROOT / config), overrides=overrides)).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.2, 1.0)
            nn.init.normal_(layer.running_mean, std=0.3)
    for name, parameter in model.named_parameters():
        last = ("predictor", "cls_score", "objectness", "anchor_deltas", "bbox_pred", "quality")
        if parameter.dim() > 1 and any(part in name for part in last):
            nn.init.normal_(parameter, std=0.1)
    return model.requires_grad_(False)


def towers_of(name: str) -> tuple[Towers, Callable[[int], Tensor]]:
    """The towers of a two-stage detector, and a function from R to random pooled features."""
    model = detector(TWO_STAGE[name])
    pooler = model.roi_heads.box_pooler
    size = (pooler["cls"] if isinstance(pooler, nn.ModuleDict) else pooler).output_size
    channels = model.backbone.output_shape()[model.roi_heads.box_in_features[0]].channels

    def pooled(count: int) -> Tensor:
        return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(count))

    return Towers(model), pooled


def image(height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 255, (3, height, width), generator=generator).float()


def num_proposals(model: nn.Module, image: Tensor) -> int:
    images = model.preprocess_image([{"image": image}])
    (proposals,), _ = model.proposal_generator(images, model.backbone(images.tensor))
    return len(proposals)


def close(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ONE_STAGE)
@torch.no_grad()
def test_a_one_stage_detector_can_be_traced(name: str, tmp_path: Path) -> None:
    model = detector(ONE_STAGE[name])
    whole = Whole(model)
    images = [image(128, 128, 0), image(128, 128, 1), image(96, 160, 2)]
    threshold = float(torch.cat([whole(x)[1] for x in images]).median())
    model.inference = replace(model.inference, score_thresh=threshold)
    torch.jit.trace(whole, (images[0],), check_trace=False).save(tmp_path / "traced.pt")
    traced = torch.jit.load(tmp_path / "traced.pt")
    assert len({len(whole(x)[0]) for x in images}) > 1
    for x in images:
        close(traced(x), whole(x))


@pytest.mark.parametrize("name", TWO_STAGE)
@torch.no_grad()
def test_a_two_stage_detector_cannot_be_traced(name: str) -> None:
    """The number of proposals of the image that it was traced with is fixed."""
    model = detector(TWO_STAGE[name])
    first, *others = (image(128, 128, seed) for seed in range(6))
    other = next(x for x in others if num_proposals(model, x) != num_proposals(model, first))
    with pytest.raises((RuntimeError, ValueError)):
        torch.jit.trace(Whole(model), (first,), check_trace=False)(other)


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_no_whole_detector_passes_torch_export(name: str) -> None:
    """How many detections there are depends on the data."""
    logging.disable(logging.ERROR)
    try:
        with pytest.raises((GuardOnDataDependentSymNode, RuntimeError, ValueError)):
            torch.export.export(Whole(detector(ALL[name])), (image(128, 128, 0),), strict=False)
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_maps_can_be_exported_and_traced(name: str) -> None:
    maps = Maps(detector(ALL[name]))
    first, second = torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128)
    wanted = maps(second)
    assert len(wanted) > 2
    close(torch.export.export(maps, (first,), strict=False).module()(second), wanted)
    close(torch.jit.trace(maps, (first,), check_trace=False)(second), wanted)


@pytest.mark.parametrize("name", TWO_STAGE)
@torch.no_grad()
def test_towers_can_be_exported_and_traced_for_any_number_of_boxes(name: str) -> None:
    towers, pooled = towers_of(name)
    first = pooled(7)
    exported = torch.export.export(
        towers,
        (first,),
        dynamic_shapes=ANY_NUMBER,
        strict=False,
    ).module()
    traced = torch.jit.trace(towers, (first,), check_trace=False)
    for count in (2, 7, 40):
        close(exported(pooled(count)), towers(pooled(count)))
        close(traced(pooled(count)), towers(pooled(count)))


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_onnx_of_the_parts(name: str, tmp_path: Path) -> None:
    """With the packages that PyTorch's exporter needs, and a clear error without."""
    parts: list[tuple[nn.Module, Tensor, Tensor, Any]] = [
        (Maps(detector(ALL[name])), torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128), None)
    ]
    if name in TWO_STAGE:
        towers, pooled = towers_of(name)
        parts.append((towers, pooled(7), pooled(11), ANY_NUMBER))
    for part, first, second, shapes in parts:
        path = tmp_path / f"{type(part).__name__}.onnx"
        if not WITH_ONNX:
            with pytest.raises(ModuleNotFoundError, match="onnx"):
                torch.onnx.export(part, (first,), path, dynamo=True, dynamic_shapes=shapes)
            continue
        import onnxruntime

        torch.onnx.export(part, (first,), path, dynamo=True, dynamic_shapes=shapes)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: second.numpy()})
        close(tuple(map(torch.from_numpy, found)), part(second))
