"""Loading checkpoints whose parameters have other names than the model's.

Two steps: names of Detectron (Caffe2) are rewritten by rules, then parameters are matched to the
model by the ends of their names, because a backbone's file does not know where the backbone
sits in the detector.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterator

import torch

__all__ = ["align_and_update_state_dicts", "convert_basic_c2_names", "convert_c2_detectron_names"]

# Last part of a Caffe2 name -> parameter of a layer. Caffe2 splits a BatchNorm into scale (s),
# bias (b), running mean (rm) and "running inverse variance" (riv, which does hold the variance).
_PARAMETERS = {
    "w": "weight",
    "b": "bias",
    "bn_s": "norm.weight",
    "bn_b": "norm.bias",
    "bn_rm": "norm.running_mean",
    "bn_riv": "norm.running_var",
    "bn_gamma": "norm.weight",
    "bn_beta": "norm.bias",
    "bn_running_mean": "norm.running_mean",
    "bn_running_var": "norm.running_var",
    "gn_s": "norm.weight",
    "gn_b": "norm.bias",
}
_PARAMETER = re.compile(rf"_({'|'.join(_PARAMETERS)})$")

# The rest of a Caffe2 name -> layer. A name that no rule knows keeps its parts, joined by dots.
_BACKBONE_LAYERS = {
    r"(?:res_)?conv1": "stem.conv1",
    r"(res\d)_(\d+)_branch1": r"\1.\2.shortcut",
    r"(res\d)_(\d+)_branch2a": r"\1.\2.conv1",
    r"(res\d)_(\d+)_branch2b": r"\1.\2.conv2",
    r"(res\d)_(\d+)_branch2c": r"\1.\2.conv3",
    r"pred": "linear",
}
_DETECTOR_LAYERS = {
    **_BACKBONE_LAYERS,
    r"fpn_inner_res(\d)_\d+_sum(?:_lateral)?": r"fpn_lateral\1",
    r"fpn_res(\d)_\d+_sum": r"fpn_output\1",
    # With FPN the head is shared by the levels and stored under the lowest of them.
    r"conv_rpn(?:_fpn2)?": "proposal_generator.rpn_head.conv",
    r"rpn_cls_logits(?:_fpn2)?": "proposal_generator.rpn_head.objectness_logits",
    r"rpn_bbox_pred(?:_fpn2)?": "proposal_generator.rpn_head.anchor_deltas",
    r"head_conv(\d+)": r"box_head.conv\1",
    r"fc6": "box_head.fc1",
    r"fc7": "box_head.fc2",
    r"cls_score": "cls_score",
    r"bbox_pred": "bbox_pred",
}


def convert_basic_c2_names(original_keys: list[str]) -> list[str]:
    """Names of a ResNet's parameters in Detectron2 for those in Caffe2, in the same order."""
    return [_convert_name(key, _BACKBONE_LAYERS) for key in original_keys]


def convert_c2_detectron_names(
    weights: dict[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Rewrite a Caffe2 checkpoint of a box detector for Detectron2.

    Args:
        weights: tensors by their names in Caffe2; left as it is.

    Returns:
        The tensors by their names in Detectron2, and for each of these the name in Caffe2.
        Background was class 0 of the box predictor: its row of ``cls_score`` becomes the last
        one, its four rows of ``bbox_pred`` are dropped.
    """
    converted: dict[str, torch.Tensor] = {}
    original: dict[str, str] = {}
    for old, weight in weights.items():
        new = _convert_name(old, _DETECTOR_LAYERS)
        if new in converted:
            raise ValueError(
                f"The checkpoint holds both '{original[new]}' and '{old}', which are the same "
                f"parameter '{new}'; remove one of them."
            )
        if new.startswith("cls_score."):
            weight = torch.cat([weight[1:], weight[:1]])
        elif new.startswith("bbox_pred."):
            weight = weight[4:]
        converted[new] = weight
        original[new] = old
    return converted, original


def align_and_update_state_dicts(
    model_state_dict: dict[str, torch.Tensor],
    ckpt_state_dict: dict[str, torch.Tensor],
    c2_conversion: bool = True,
) -> dict[str, torch.Tensor]:
    """Rename a checkpoint's tensors to the parameters of the model that they belong to.

    A parameter takes the tensor with the longest name that ends its own, counted in whole parts:
    ``backbone.res2.0.conv1.weight`` prefers ``res2.0.conv1.weight`` to ``conv1.weight``.

    Args:
        model_state_dict: state of the model; only names and shapes are read.
        ckpt_state_dict: tensors of the checkpoint.
        c2_conversion: whether these have Caffe2 names.

    Returns:
        The checkpoint's tensors, the matched ones under the model's names. Those of another
        shape than the parameter, with a warning, and those that match nothing keep their names.
        Raises ValueError if a tensor is the match of several parameters.
    """
    logger = logging.getLogger(__name__)
    if c2_conversion:
        ckpt_state_dict, _ = convert_c2_detectron_names(ckpt_state_dict)

    matches: dict[str, str] = {}
    for name, parameter in sorted(model_state_dict.items()):
        key = next((k for k in _endings(name) if k in ckpt_state_dict), None)
        if key is None:
            continue
        shape, expected = tuple(ckpt_state_dict[key].shape), tuple(parameter.shape)
        if shape != expected:
            logger.warning(
                "'%s' of the checkpoint has shape %s and is not loaded into '%s' of the model, "
                "which has shape %s.",
                *(key, shape, name, expected),
            )
        elif key in matches:
            raise ValueError(
                f"'{key}' of the checkpoint matches both '{matches[key]}' and '{name}' of the "
                "model; load it without matching heuristics or give it a longer name."
            )
        else:
            matches[key] = name

    if matches:
        logger.info(
            "Matched %d of %d tensors of the checkpoint to parameters of the model: %s*",
            *(len(matches), len(ckpt_state_dict), _longest_common_prefix_str([*matches.values()])),
        )
    else:
        logger.warning("No tensor of the checkpoint matches a parameter of the model.")
    return {matches.get(key, key): tensor for key, tensor in ckpt_state_dict.items()}


def _convert_name(name: str, layers: dict[str, str]) -> str:
    ending = _PARAMETER.search(name)
    if ending is None:
        return name.replace("_", ".")
    layer, parameter = name[: ending.start()], _PARAMETERS[ending[1]]
    for pattern, new_layer in layers.items():
        if match := re.fullmatch(pattern, layer):
            return f"{match.expand(new_layer)}.{parameter}"
    return f"{layer.replace('_', '.')}.{parameter}"


def _endings(name: str) -> Iterator[str]:
    """``a.b.c``, ``b.c``, ``c``: the longest first."""
    while name:
        yield name
        name = name.partition(".")[2]


def _longest_common_prefix_str(names: list[str]) -> str:
    columns = itertools.takewhile(lambda c: len(set(c)) == 1, zip(*names, strict=False))
    return "".join(column[0] for column in columns)
