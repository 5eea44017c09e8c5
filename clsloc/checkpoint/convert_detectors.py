"""
Published checkpoints of Double-Head and DDOD in the names of this repository.

Key names were read in the public sources of MMDetection (2.x and 3.x), of zehuichen123/DDOD and of
wuyuebupt/doubleheadsrcnn. What is equal there and here, and needs no change: the order of COCO's
classes, of channels before rows and columns where a map is flattened, of (dx, dy, dw, dh) class by
class; and target deviations of 0.1 and 0.2, which are regression weights of 10 and 5.

With random weights, the 100 detections of an image are those of MMDetection 3.3.0, scores to 3e-7
and boxes to 2e-4 pixels, for Double-Head, DDOD, ATSS and RetinaNet with R-50, and for DDOD with
deformable Res2Net-101 and ResNeXt-101. The authors' code was read, not run.
"""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from clsloc.checkpoint.convert import TORCHVISION_PIXELS, Conversion, some_of
from clsloc.checkpoint.convert_backbones import add_resnet
from clsloc.errors import UserError

__all__ = ["convert_detector"]

Rule = tuple[str, str, Callable[[Tensor], Tensor] | None]
"""(pattern of the old name, new name, change of the tensor)"""

_AFFINE = r"(weight|bias)"
_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_TOWER = "roi_heads.box_head.conv.blocks"
_PREDICTORS = "roi_heads.box_predictor.predictors"
_RPN = "proposal_generator.rpn_head"
# maskrcnn-benchmark adds nothing to the variance of a frozen batch norm, Detectron2 this.
_FROZEN_NORM_EPS = 1e-5


def convert_detector(state: Mapping[str, Tensor], *, tblr: bool = False) -> Conversion | None:
    """
    Rename a Double-Head of its authors or of MMDetection; a DDOD, ATSS or RetinaNet of MMDetection,
    of which the repository of DDOD is a fork.

    Args:
        tblr: the boxes of a one-stage detector are distances to top, bottom, left and right, as in
            FCOS of DDOD's authors; here left and top come first.

    Returns:
        None if the file holds nothing of the kind.

    Raises:
        UserError: another detector, or a version whose background is the first class.
    """
    if any(name.startswith("backbone.body.") for name in state):
        return _authors_double_head(state)
    if not any(name.startswith("bbox_head.") or name.startswith("roi_head.") for name in state):
        return None
    if "roi_head.bbox_head.res_block.conv1.conv.weight" in state:
        return _mmdet_double_head(state)
    if any(re.match(r"bbox_head\.(atss|retina)_cls\.", name) for name in state):
        return _mmdet_dense(state, tblr)
    if "bbox_head.res_block.conv1.conv.weight" in state:
        raise UserError(
            "The file is of MMDetection 1.x, whose first class is the background; upgrade it with "
            "MMDetection's own tools first."
        )
    raise UserError(
        "The file holds a detector of MMDetection other than Double-Head, DDOD, ATSS and "
        f"RetinaNet: it has {some_of([n for n in state if 'bbox_head' in n])}."
    )


def _mmdet_double_head(state: Mapping[str, Tensor]) -> Conversion:
    head = r"roi_head\.bbox_head"
    rules: list[Rule] = [
        *_mmdet_pyramid_rules(state),
        (rf"rpn_head\.rpn_conv\.{_AFFINE}", rf"{_RPN}.conv.\1", None),
        (rf"rpn_head\.rpn_cls\.{_AFFINE}", rf"{_RPN}.objectness_logits.\1", None),
        (rf"rpn_head\.rpn_reg\.{_AFFINE}", rf"{_RPN}.anchor_deltas.\1", None),
        (rf"{head}\.res_block\.conv(\d)\.conv\.weight", rf"{_TOWER}.up.conv\1.weight", None),
        (rf"{head}\.res_block\.conv(\d)\.bn\.{_NORM}", rf"{_TOWER}.up.conv\1.norm.\2", None),
        (rf"{head}\.res_block\.conv_identity\.conv\.weight", rf"{_TOWER}.up.shortcut.weight", None),
        (rf"{head}\.res_block\.conv_identity\.bn\.{_NORM}", rf"{_TOWER}.up.shortcut.norm.\1", None),
        (rf"{head}\.fc_cls\.{_AFFINE}", rf"{_PREDICTORS}.fc_cls.\1", None),
        (rf"{head}\.fc_reg\.{_AFFINE}", rf"{_PREDICTORS}.conv_reg.\1", None),
    ]
    blocks = _count(state, rf"{head}\.conv_branch\.(\d+)\.")
    for i in range(blocks):
        old, new = rf"{head}\.conv_branch\.{i}", f"{_TOWER}.bottleneck{i + 1}"
        rules.append((rf"{old}\.conv(\d)\.weight", rf"{new}.conv\1.weight", None))
        rules.append((rf"{old}\.bn(\d)\.{_NORM}", rf"{new}.conv\1.norm.\2", None))
    for i in range(_count(state, rf"{head}\.fc_branch\.(\d+)\.")):
        old, new = rf"{head}\.fc_branch\.{i}", f"roi_heads.box_head.fc.fc{i + 1}"
        rules.append((rf"{old}\.{_AFFINE}", rf"{new}.\1", None))
    conversion = _convert(state, "Double-Head of MMDetection", "backbone.", rules)
    conversion.architecture |= {
        "MODEL.DOUBLE_HEAD.NUM_BLOCKS": blocks + 1,
        "MODEL.DOUBLE_HEAD.NONLOCAL.ENABLED": False,
    }
    conversion.settings = TORCHVISION_PIXELS | {
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
        "MODEL.RPN.BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0],
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0],
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
        "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
        "MODEL.DOUBLE_HEAD.CONV_ROI_SCALE": 1.3,
    }
    return conversion


def _authors_double_head(state: Mapping[str, Tensor]) -> Conversion:
    """maskrcnn-benchmark: the background is the first class, and has boxes of its own."""
    extractor, predictor = r"roi_heads\.box\.feature_extractor", r"roi_heads\.box\.predictor"
    if not any(re.match(rf"{extractor}\.nonlocal_conv\.", name) for name in state):
        raise UserError(
            "The file holds a detector of maskrcnn-benchmark other than Double-Head: it has no "
            "roi_heads.box.feature_extractor.nonlocal_conv."
        )
    rules: list[Rule] = [
        (rf"rpn\.head\.conv\.{_AFFINE}", rf"{_RPN}.conv.\1", None),
        (rf"rpn\.head\.cls_logits\.{_AFFINE}", rf"{_RPN}.objectness_logits.\1", None),
        (rf"rpn\.head\.bbox_pred\.{_AFFINE}", rf"{_RPN}.anchor_deltas.\1", None),
        (rf"{extractor}\.fc6\.{_AFFINE}", r"roi_heads.box_head.fc.fc1.\1", None),
        (rf"{extractor}\.fc7\.{_AFFINE}", r"roi_heads.box_head.fc.fc2.\1", None),
        *_sequence(rf"{extractor}\.nonlocal_conv\.top", f"{_TOWER}.up", ("shortcut",)),
        *_sequence(rf"{extractor}\.nonlocal_conv\.bottom", f"{_TOWER}.up", ("conv1", "conv2")),
        (rf"{predictor}\.cls_score\.{_AFFINE}", rf"{_PREDICTORS}.conv_cls.\1", _background_last),
        (rf"{predictor}\.bbox_pred\.{_AFFINE}", rf"{_PREDICTORS}.conv_reg.\1", _foreground_boxes),
        (rf"{predictor}\.cls_score_fc\.{_AFFINE}", rf"{_PREDICTORS}.fc_cls.\1", _background_last),
        (rf"{predictor}\.bbox_pred_fc\.{_AFFINE}", rf"{_PREDICTORS}.fc_reg.\1", _foreground_boxes),
    ]
    for i in range(1, 5):
        for old, new in (("inner", "lateral"), ("layer", "output")):
            pattern = rf"backbone\.fpn\.fpn_{old}{i}\.{_AFFINE}"
            rules.append((pattern, rf"backbone.fpn_{new}{i + 1}.\1", None))
    stacks = _count(state, rf"{extractor}\.shared_nonlocal\.(\d+)\.")
    for i in range(stacks):
        old, new = rf"{extractor}\.shared_nonlocal\.{i}", f"{_TOWER}.nonlocal{i + 1}"
        rules.append((rf"{old}\.(theta|phi|g)\.{_AFFINE}", rf"{new}.\1.\2", None))
        rules.append((rf"{old}\.W\.0\.{_AFFINE}", rf"{new}.out.\1", None))
        rules.append((rf"{old}\.W\.bn\.{_NORM}", rf"{new}.out.norm.\1", None))
        convs = ("conv1", "conv2", "conv3")
        block = f"{_TOWER}.bottleneck{i + 1}"
        rules += _sequence(rf"{old}\.ffconv\.bottleneck", block, convs)
    with_nonlocal = any(re.match(rf"{extractor}\.shared_nonlocal\.0\.theta", n) for n in state)
    anchors = [name for name in state if name.startswith("rpn.anchor_generator.")]
    rest = {name: tensor for name, tensor in state.items() if name not in anchors}
    conversion = _convert(rest, "Double-Head of its authors", "backbone.body.", rules)
    for name, tensor in conversion.tensors.items():
        if name.startswith("backbone.bottom_up.") and name.endswith("running_var"):
            conversion.tensors[name] = tensor - _FROZEN_NORM_EPS
    conversion.left_out |= dict.fromkeys(anchors, "anchors are computed")
    conversion.architecture |= {
        "MODEL.DOUBLE_HEAD.NUM_BLOCKS": 1 + stacks * (2 if with_nonlocal else 1),
        "MODEL.DOUBLE_HEAD.NONLOCAL.ENABLED": with_nonlocal,
    }
    conversion.settings = {
        "INPUT.FORMAT": "BGR",
        "MODEL.PIXEL_MEAN": [102.9801, 115.9465, 122.7717],
        "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
        "MODEL.RESNETS.NORM": "FrozenBN",
        "MODEL.RESNETS.STRIDE_IN_1X1": True,
        "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0],
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
        "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
        "MODEL.DOUBLE_HEAD.CONV_ROI_SCALE": 1.3,
    }
    conversion.notes += [
        "The authors' anchors have sides rounded to pixels of the level, so that those that are "
        "not square differ by up to 6 %; and their boxes end a pixel earlier, so that pooling "
        "windows are a pixel smaller.",
    ]
    return conversion


def _mmdet_dense(state: Mapping[str, Tensor], tblr: bool) -> Conversion:
    """DDOD, ATSS and RetinaNet: two towers and their outputs."""
    retina = "bbox_head.retina_cls.weight" in state
    with_norm = "bbox_head.cls_convs.0.gn.weight" in state
    anchors = _num_retina_anchors(state) if retina else 1
    order = _anchor_order(anchors)
    boxes = _chain(order, _ltrb_of_tblr if tblr else None)
    rules: list[Rule] = [
        *_mmdet_pyramid_rules(state),
        (rf"bbox_head\.(?:atss|retina)_cls\.{_AFFINE}", r"head.cls_score.\1", order),
        (rf"bbox_head\.(?:atss|retina)_reg\.{_AFFINE}", r"head.bbox_pred.\1", boxes),
        (rf"bbox_head\.atss_(?:iou|centerness)\.{_AFFINE}", r"head.quality.\1", None),
    ]
    for old, new in (("cls_convs", "cls_subnet"), ("reg_convs", "bbox_subnet")):
        step = 3 if with_norm else 2  # a convolution, its norm if any, and ReLU
        for i in range(_count(state, rf"bbox_head\.{old}\.(\d+)\.")):
            name, place = rf"bbox_head\.{old}\.{i}", f"head.{new}.{step * i}"
            rules.append((rf"{name}\.conv\.{_AFFINE}", rf"{place}.\1", None))
            rules.append((rf"{name}\.conv\.conv_offset\.{_AFFINE}", rf"{place}.offset.\1", None))
            rules.append((rf"{name}\.gn\.{_AFFINE}", rf"head.{new}.{step * i + 1}.\1", None))
    scales = sorted(
        (name for name in state if re.fullmatch(r"bbox_head\.scales\.\d+\.scale", name)),
        key=lambda name: int(name.split(".")[2]),
    )
    rest = {name: tensor for name, tensor in state.items() if name not in scales}
    ddod = "bbox_head.cls_convs.0.conv.conv_offset.weight" in state
    kind = "RetinaNet" if retina else "DDOD" if ddod else "ATSS"
    conversion = _convert(rest, f"{kind} of MMDetection", "backbone.", rules)
    if scales:
        stacked = torch.stack([state[name].reshape(()) for name in scales])
        conversion.add("head.scales", ", ".join(scales), stacked)
    conversion.architecture["MODEL.DDOD.FPN.P6_FROM"] = "res5" if retina else "p5"
    conversion.settings = TORCHVISION_PIXELS | {
        "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
        "MODEL.DDOD.FPN.RELU_BEFORE_P7": False,
    }
    if "Res2Net" not in conversion.source:
        conversion.settings["MODEL.RESNETS.STRIDE_IN_1X1"] = False
    if not retina:
        quality = "iou" if "bbox_head.atss_iou.weight" in state else "centerness"
        conversion.architecture["MODEL.DDOD.QUALITY"] = quality
    if not tblr:
        stds = [1.0] * 4 if retina else [10.0, 10.0, 5.0, 5.0]
        conversion.settings["MODEL.DDOD.BBOX_REG_WEIGHTS"] = stds
    return conversion


def _mmdet_pyramid_rules(state: Mapping[str, Tensor]) -> list[Rule]:
    laterals = _count(state, r"neck\.lateral_convs\.(\d+)\.")
    first = 6 - laterals  # the last lateral is that of res5
    rules: list[Rule] = []
    for i in range(laterals):
        for old, new in (("lateral_convs", "fpn_lateral"), ("fpn_convs", "fpn_output")):
            pattern = rf"neck\.{old}\.{i}\.conv\.{_AFFINE}"
            rules.append((pattern, rf"backbone.{new}{first + i}.\1", None))
    for i in range(2):
        pattern = rf"neck\.fpn_convs\.{laterals + i}\.conv\.{_AFFINE}"
        rules.append((pattern, rf"backbone.top_block.p{6 + i}.\1", None))
    return rules


def _convert(
    state: Mapping[str, Tensor], source: str, backbone: str, rules: list[Rule]
) -> Conversion:
    """All tensors by rule, those behind the prefix `backbone` as a ResNet."""
    conversion = Conversion(source, detector=True)
    resnet = {
        name.removeprefix(backbone): tensor
        for name, tensor in state.items()
        if name.startswith(backbone) and not name.startswith("backbone.fpn.")
    }
    add_resnet(conversion, resnet, backbone, "backbone.bottom_up.")
    conversion.source = f"{source} on {conversion.source}"
    unknown = []
    for name, tensor in state.items():
        if name in conversion.origins.values():
            continue
        for pattern, new, change in rules:
            match = re.fullmatch(pattern, name)
            if match:
                conversion.add(match.expand(new), name, change(tensor) if change else tensor)
                break
        else:
            unknown.append(name)
    if unknown:
        raise UserError(
            f"The file was taken for {source}, and {some_of(unknown)} of it have no place there."
        )
    return conversion


def _sequence(old: str, new: str, convs: tuple[str, ...]) -> list[Rule]:
    """Rules for convolution, norm, ReLU, convolution, ... counted one by one."""
    rules: list[Rule] = []
    for i, conv in enumerate(convs):
        rules.append((rf"{old}\.{3 * i}\.weight", f"{new}.{conv}.weight", None))
        rules.append((rf"{old}\.{3 * i + 1}\.{_NORM}", rf"{new}.{conv}.norm.\1", None))
    return rules


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in state if (match := re.match(pattern, name))})


def _background_last(rows: Tensor) -> Tensor:
    return torch.cat([rows[1:], rows[:1]])


def _foreground_boxes(rows: Tensor) -> Tensor:
    return rows[4:]


def _num_retina_anchors(state: Mapping[str, Tensor]) -> int:
    return len(state["bbox_head.retina_reg.weight"]) // 4


def _anchor_order(anchors: int) -> Callable[[Tensor], Tensor] | None:
    """MMDetection counts 3 ratios, then 3 sizes of each; Detectron2 sizes, then ratios."""
    if anchors == 1:
        return None
    if anchors != 9:
        raise UserError(
            f"The RetinaNet in the file has {anchors} anchors at a location; only 9, of 3 ratios "
            "and 3 sizes, are known."
        )
    return lambda rows: rows.unflatten(0, (3, 3, -1)).transpose(0, 1).flatten(0, 2)


def _ltrb_of_tblr(rows: Tensor) -> Tensor:
    return rows[[2, 0, 3, 1]]


def _chain(*changes: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        for one in changes:
            tensor = one(tensor) if one else tensor
        return tensor

    return change
