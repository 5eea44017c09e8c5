"""Helpers for tests of models and structures."""

import numpy as np
import torch
from torch import nn

from detectron2 import model_zoo
from detectron2._left_out import left_out
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

convert_scripted_instances = left_out("detectron2.utils.testing.convert_scripted_instances")
get_sample_coco_image = left_out("detectron2.utils.testing.get_sample_coco_image")
reload_lazy_config = left_out("detectron2.utils.testing.reload_lazy_config")
reload_script_model = left_out("detectron2.utils.testing.reload_script_model")


def get_model_no_weights(config_path: str) -> nn.Module:
    """The model of a zoo config (such as ``COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml``) with
    random weights; on CPU where there is no CUDA."""
    cfg: CfgNode = model_zoo.get_config(config_path)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return build_model(cfg)


def random_boxes(
    num_boxes: int, max_coord: float = 100, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Random valid boxes, with sides of at least 1.

    Returns:
        (num_boxes, 4) XYXY in [1, max_coord].
    """
    # Corner and size come from one draw.
    boxes = (torch.rand(num_boxes, 4, device=device) * (max_coord * 0.5)).clamp_(min=1.0)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def assert_instances_allclose(
    input: Instances,
    other: Instances,
    *,
    rtol: float = 1e-5,
    msg: str = "",
    size_as_tensor: bool = False,
) -> None:
    """Assert that two Instances have the same image size and fields, and nearly equal values.

    Args:
        input: the one.
        other: the other.
        rtol: the tolerance of floating-point fields, relative to their largest value; for
            ``Boxes`` relative to 100 pixels.
        msg: put before the error.
        size_as_tensor: compare sizes by value, where one may be a tensor.
    """
    prefix = f"{msg}: " if msg else ""
    sizes = input.image_size, other.image_size
    same_size = np.array_equal(*map(np.asarray, sizes)) if size_as_tensor else sizes[0] == sizes[1]
    assert same_size, f"{prefix}image size {sizes[0]} != {sizes[1]}"
    names = sorted(input.get_fields())
    assert names == sorted(other.get_fields()), (
        f"{prefix}fields {names} != {sorted(other.get_fields())}"
    )
    for name in names:
        left, right = input.get(name), other.get(name)
        if isinstance(left, Boxes):
            left, right = left.tensor, right.tensor
            atol = rtol * 100
        elif torch.is_tensor(left) and left.is_floating_point():
            atol = rtol * float(left.abs().max()) if left.numel() else 0.0
        else:
            atol = 0.0
        if torch.is_tensor(left):
            equal = left.shape == right.shape and torch.allclose(left, right, rtol=0, atol=atol)
        else:
            equal = left == right
        assert equal, f"{prefix}field {name} differs: {left} != {right}"
