"""Backbones of torchvision, timm and MMDetection in Detectron2's names."""

import re
from collections.abc import Mapping

from torch import Tensor

from clsloc.checkpoint.convert import TORCHVISION_PIXELS, Conversion, some_of
from clsloc.checkpoint.vgg16 import convert_vgg16, vgg16_names
from clsloc.errors import UserError

__all__ = ["add_resnet", "convert_backbone"]

# Blocks of each stage to the depth: of basic blocks, and of bottlenecks.
_DEPTHS = {
    False: {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34},
    True: {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152},
}

_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
# Offsets of a deformable convolution are a layer of their own in both.
_CONV = r"((?:conv_offset\.)?(?:weight|bias))"

_BLOCK_RULES = (
    (rf"conv(\d)\.{_CONV}", r"conv\1.\2"),
    (rf"bn(\d)\.{_NORM}", r"conv\1.norm.\2"),
    (rf"convs\.(\d)\.{_CONV}", r"convs.\1.\2"),
    (rf"bns\.(\d)\.{_NORM}", r"convs.\1.norm.\2"),
)
_STEM_RULES = (
    (r"(?:stem\.)?conv1\.weight", r"stem.conv1.weight"),
    (rf"(?:stem\.)?bn1\.{_NORM}", r"stem.conv1.norm.\1"),
)
# Three 3x3 convolutions: of timm and the authors of Res2Net, whose last norm stands apart; and of
# MMDetection.
_DEEP_STEM_RULES = (
    (r"(?:conv1|stem)\.0\.weight", r"stem.conv1.weight"),
    (rf"(?:conv1|stem)\.1\.{_NORM}", r"stem.conv1.norm.\1"),
    (r"(?:conv1|stem)\.3\.weight", r"stem.conv2.weight"),
    (rf"(?:conv1|stem)\.4\.{_NORM}", r"stem.conv2.norm.\1"),
    (r"(?:conv1|stem)\.6\.weight", r"stem.conv3.weight"),
    (rf"(?:bn1|stem\.7)\.{_NORM}", r"stem.conv3.norm.\1"),
)
_SHORTCUT_RULES = (
    (r"downsample\.0\.weight", r"shortcut.weight"),
    (rf"downsample\.1\.{_NORM}", r"shortcut.norm.\1"),
)
# A mean stands before the convolution.
_MEAN_SHORTCUT_RULES = (
    (r"downsample\.1\.weight", r"shortcut.weight"),
    (rf"downsample\.2\.{_NORM}", r"shortcut.norm.\1"),
)


def convert_backbone(state: Mapping[str, Tensor]) -> Conversion | None:
    """
    Rename the ImageNet weights of VGG16, a ResNet, a ResNeXt or a Res2Net v1d.

    Batch norms keep their running statistics, so that they can be frozen or trained on. The layer
    that scores ImageNet's classes is left out.

    Returns:
        None if the file holds nothing of the kind.

    Raises:
        UserError: a variant that no backbone here can be, or a damaged file.
    """
    if "features.0.weight" in state:
        return _vgg16(state)
    if not any(name.startswith("layer1.0.") for name in state):
        return None
    conversion = Conversion("")
    rest = {}
    for name, tensor in state.items():
        if re.match(r"fc\.", name):
            conversion.left_out[name] = "it scores the classes of ImageNet"
        else:
            rest[name] = tensor
    add_resnet(conversion, rest)
    conversion.settings = dict(TORCHVISION_PIXELS)
    if "Res2Net" not in conversion.source:
        conversion.settings["MODEL.RESNETS.STRIDE_IN_1X1"] = False
    else:
        conversion.notes.append(
            "The Res2Net of timm and of its authors also takes a mean over 3x3 positions of the "
            "last group in the first block of res2; that of MMDetection, which DDOD uses, and that "
            "of this repository do not."
        )
    conversion.notes.append(
        "The pixel statistics are those of torchvision and of most weights of timm; a model card "
        "that names others (0.5 for all) wins."
    )
    return conversion


def add_resnet(
    conversion: Conversion,
    state: Mapping[str, Tensor],
    old_prefix: str = "",
    new_prefix: str = "",
) -> None:
    """
    Add a ResNet, ResNeXt or Res2Net to a conversion, and what it is to `source` and `architecture`.

    Args:
        state: the tensors of the backbone alone, without `old_prefix`.
        old_prefix, new_prefix: what stands before the names in the file and here.
    """
    res2 = "layer1.0.convs.0.weight" in state
    deep = "conv1.0.weight" in state or "stem.0.weight" in state
    mean_shortcut = _is_conv(state.get("layer2.0.downsample.1.weight"))
    kind = "Res2Net" if res2 else "ResNet"
    if res2 != deep or res2 != mean_shortcut:
        raise UserError(
            f"The file holds a {kind} with "
            + ("a stem of three convolutions" if deep else "a stem of one convolution")
            + f" and {'' if mean_shortcut else 'no '}means in its shortcuts; "
            + ("a Res2Net must be of version 1d (timm: res2net50d, res2net101d)." if res2
               else "only a plain ResNet or ResNeXt is known.")
        )  # fmt: skip
    _describe(conversion, kind, state)
    unknown = []
    for name, tensor in state.items():
        new = _rename(name, deep, mean_shortcut)
        if new is None:
            unknown.append(name)
        else:
            conversion.add(new_prefix + new, old_prefix + name, tensor)
    if unknown:
        raise UserError(
            f"The file is of a variant of {kind} with {some_of(unknown)}, "
            "for which there is no place."
        )


def _rename(name: str, deep: bool, mean_shortcut: bool) -> str | None:
    block = re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", name)
    if block is None:
        return _by_rule(name, _DEEP_STEM_RULES if deep else _STEM_RULES)
    stage, number, inner = block.groups()
    shortcut_rules = _MEAN_SHORTCUT_RULES if mean_shortcut else _SHORTCUT_RULES
    new = _by_rule(inner, (*_BLOCK_RULES, *shortcut_rules))
    if new is None:
        return None
    return f"res{int(stage) + 1}.{number}.{new.replace('conv_offset', 'offset')}"


def _by_rule(name: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    return None


def _describe(conversion: Conversion, kind: str, state: Mapping[str, Tensor]) -> None:
    blocks = tuple(
        len({name.split(".")[1] for name in state if name.startswith(f"layer{stage}.")})
        for stage in range(1, 5)
    )
    bottleneck = "layer1.0.conv3.weight" in state
    depth = _DEPTHS[bottleneck].get(blocks)
    if depth is None:
        raise UserError(
            f"The stages of the {kind} in the file have {', '.join(map(str, blocks))} "
            f"{'bottlenecks' if bottleneck else 'basic blocks'}, which is no depth that is known."
        )
    conversion.architecture["MODEL.RESNETS.DEPTH"] = depth
    conversion.source = f"{kind}-{depth}"
    if kind == "Res2Net":
        width = state["layer1.0.convs.0.weight"].shape[0]
        groups = len(
            {name for name in state if re.fullmatch(r"layer1\.0\.convs\.\d\.weight", name)}
        )
        if (width, groups) != (26, 3):
            raise UserError(
                f"The Res2Net in the file has {groups + 1} groups of {width} channels in res2; "
                "only 4 of 26 are known."
            )
    elif bottleneck:
        out_channels, width = state["layer1.0.conv2.weight"].shape[:2]
        groups = out_channels // width
        conversion.architecture |= {
            "MODEL.RESNETS.NUM_GROUPS": groups,
            "MODEL.RESNETS.WIDTH_PER_GROUP": width,
        }
        if groups > 1:
            conversion.source = f"ResNeXt-{depth} {groups}x{width}d"
    else:
        conversion.architecture["MODEL.RESNETS.RES2_OUT_CHANNELS"] = 64


def _is_conv(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.ndim == 4


def _vgg16(state: Mapping[str, Tensor]) -> Conversion:
    conversion = Conversion("VGG16", settings=dict(TORCHVISION_PIXELS))
    converted, names = convert_vgg16(state), vgg16_names()
    for name in state:
        if name in names:
            conversion.add(names[name], name, converted[names[name]])
        else:
            conversion.left_out[name] = "it scores the classes of ImageNet"
    return conversion
