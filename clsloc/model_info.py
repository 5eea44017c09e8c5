"""Size and cost of a model: parameters and FLOPs, in total and by part.

One FLOP is one multiply-add, as fvcore and most papers count. Convolutions (deformable ones
included, without their interpolation), linear layers, matrix products, normalisation and
resampling are counted; activations, RoIAlign, NMS and the like are not.
"""

from math import prod
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import Tensor, nn

from detectron2.structures import Boxes, ImageList, Instances

NUM_ROIS = 1000


def model_info(model: nn.Module, size: tuple[int, int], num_rois: int = NUM_ROIS) -> dict[str, Any]:
    """Parameters of a model, and the FLOPs of its inference on one image.

    Args:
        model: takes Detectron2's list of ``{"image": (3, H, W)}``. Its state is not changed.
        size: (H, W) of the image as the model gets it, after any resizing.
        num_rois: as many proposals go through the RoI heads, whatever the weights. Turn
            ``CLSLOC.LAZY_LOCALISATION`` off, or those without a score are left out.

    Returns:
        ``params_total``, ``params_trainable``, ``flops``, ``input_size``, ``num_rois`` (0 for a
        detector without proposals), and ``parts``: name to ``{"params", "flops"}`` for every
        child of the model, and with dotted names for every child of the RoI heads, whose figures
        are contained in those of ``roi_heads``.
    """
    flops = _count_flops(model, size, num_rois)
    parts = dict(model.named_children())
    if "roi_heads" in parts:
        parts |= {f"roi_heads.{name}": part for name, part in parts["roi_heads"].named_children()}
    figures = {
        name: {"params": count_parameters(part), "flops": _flops_of(flops, part, f"model.{name}")}
        for name, part in parts.items()
    }
    return {
        "params_total": count_parameters(model),
        "params_trainable": count_parameters(model, trainable=True),
        "flops": float(flops.total()),
        "input_size": list(size),
        "num_rois": num_rois if hasattr(model, "proposal_generator") else 0,
        "parts": {name: figure for name, figure in figures.items() if any(figure.values())},
    }


def count_parameters(module: nn.Module, trainable: bool = False) -> int:
    """How many numbers a module learns; a shared tensor counts once, buffers do not count."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def _count_flops(model: nn.Module, size: tuple[int, int], num_rois: int) -> FlopCountAnalysis:
    image = torch.zeros(3, *size, device=next(model.parameters()).device)
    was_training, generator = model.training, getattr(model, "proposal_generator", None)
    model.eval()
    if generator is not None:
        model.proposal_generator = _FixedProposals(generator, num_rois)
    try:
        analysis = FlopCountAnalysis(_Inference(model), image)
        analysis.set_op_handle("torchvision::deform_conv2d", _deform_conv_flops)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.tracer_warnings("none")
        with torch.no_grad():
            analysis.total()  # traces now, while the proposals are fixed
    finally:
        if generator is not None:
            model.proposal_generator = generator
        model.train(was_training)
    return analysis


class _Inference(nn.Module):
    """A detector as a function from one tensor to tensors, which is what tracing can follow."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        instances = self.model([{"image": image}])[0]["instances"]
        return instances.pred_boxes.tensor, instances.scores, instances.pred_classes


class _FixedProposals(nn.Module):
    """Runs a proposal generator for its cost, but returns a fixed number of boxes.

    What it would return with random weights depends on NMS.
    """

    def __init__(self, generator: nn.Module, num_rois: int) -> None:
        super().__init__()
        self.generator = generator
        self.num_rois = num_rois

    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: Any = None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        self.generator(images, features, gt_instances)
        height, width = (int(side) for side in images.image_sizes[0])
        # Boxes of all sizes, so that every level of a pyramid gets its share.
        shares = torch.linspace(0.02, 1.0, self.num_rois, device=images.tensor.device)
        sides = torch.tensor([width, height], device=images.tensor.device)
        boxes = torch.cat([torch.zeros(self.num_rois, 2).to(sides), shares[:, None] * sides], 1)
        proposals = Instances((height, width))
        proposals.proposal_boxes = Boxes(boxes)
        proposals.objectness_logits = torch.zeros(self.num_rois, device=boxes.device)
        return [proposals], {}


def _deform_conv_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Those of a plain convolution of that shape: the weight is the second input."""
    batch, _, height, width = get_shape(outputs[0])
    return batch * height * width * prod(get_shape(inputs[1]))


def _flops_of(analysis: FlopCountAnalysis, module: nn.Module, name: str) -> float:
    """FLOPs inside a module; where only its children were called, the sum over these."""
    total = analysis.by_module()[name]
    if not total:
        total = sum(
            _flops_of(analysis, child, f"{name}.{child_name}")
            for child_name, child in module.named_children()
        )
    return float(total)
