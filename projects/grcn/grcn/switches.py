"""Which switches of `MODEL.GRCN` go together."""

from clsloc.config import check_choice
from clsloc.errors import UserError
from detectron2.config import CfgNode

__all__ = ["check_switches", "is_split"]

KINDS = {
    "build_grcn_vgg_backbone": "VGG16",
    "build_grcn_resnet_backbone": "ResNet",
    "build_grcn_fpn_backbone": "FPN",
}
SPLIT_KEYS = {"VGG16": "SPLIT_BLOCK", "ResNet": "RES4_SPLIT", "FPN": "FPN_SPLIT"}
# The keys that only one kind of backbone reads, and their defaults.
OWN_KEYS = {
    "VGG16": {"SPLIT_BLOCK": 0, "VGG_DROPOUT": 0.5},
    "ResNet": {"RES4_SPLIT": 0, "RES5_STRIDE": 1, "RES_DET": False, "RES_DET_HEAD": "fc2"},
    "FPN": {"FPN_SPLIT": False},
}
DOWN = {
    "VGG16": {"CLS_DOWN": ("keep", "none"), "LOC_DOWN": ("keep", "none", "conv", "pool_s1")},
    "ResNet": {"CLS_DOWN": ("keep", "none"), "LOC_DOWN": ("keep", "none")},
    "FPN": {"CLS_DOWN": ("keep",), "LOC_DOWN": ("keep",)},
}
HEADS = ("shared", "separate", "double")
RES_DET_HEADS = ("fc2", "conv2", "res5")


def is_split(cfg: CfgNode) -> bool:
    """Whether the two tasks have maps of their own."""
    return any(cfg.MODEL.GRCN[key] for key in SPLIT_KEYS.values())


def check_switches(cfg: CfgNode) -> None:
    """
    Raises:
        UserError: if `MODEL.GRCN` asks for what does not exist or for what excludes each other.
    """
    node = cfg.MODEL.GRCN
    kind = KINDS.get(cfg.MODEL.BACKBONE.NAME)
    if kind is None:
        raise UserError(
            f"MODEL.GRCN needs MODEL.BACKBONE.NAME to be one of {', '.join(KINDS)}, got "
            f"{cfg.MODEL.BACKBONE.NAME!r}."
        )
    _check_backbone_keys(node, kind)
    check_choice("MODEL.GRCN.HEAD", node.HEAD, HEADS)
    check_choice("MODEL.GRCN.RES_DET_HEAD", node.RES_DET_HEAD, RES_DET_HEADS)
    _check_head(node, is_split(cfg))
    if kind == "ResNet":
        _check_resnet(cfg)
    if not 0 <= node.SPLIT_BLOCK <= 5:
        raise UserError(f"MODEL.GRCN.SPLIT_BLOCK must lie in [0, 5], got {node.SPLIT_BLOCK}.")
    if not 0 <= node.VGG_DROPOUT < 1:
        raise UserError(f"MODEL.GRCN.VGG_DROPOUT must lie in [0, 1), got {node.VGG_DROPOUT}.")
    check_choice("MODEL.GRCN.RES5_STRIDE", node.RES5_STRIDE, (1, 2))


def _check_backbone_keys(node: CfgNode, kind: str) -> None:
    for owner, keys in OWN_KEYS.items():
        for key, default in keys.items():
            if owner != kind and node[key] != default:
                raise UserError(
                    f"MODEL.GRCN.{key} is for {owner}, and the backbone is {kind}: leave it at "
                    f"{default!r}, not {node[key]!r}."
                )
    for key, choices in DOWN[kind].items():
        check_choice(f"MODEL.GRCN.{key}", node[key], choices)
        if node[key] != "keep" and not node[SPLIT_KEYS[kind]]:
            raise UserError(
                f"MODEL.GRCN.{key} {node[key]!r} needs a map for each task: set "
                f"MODEL.GRCN.{SPLIT_KEYS[kind]} above 0."
            )


def _check_head(node: CfgNode, split: bool) -> None:
    context = node.CONTEXT.CLS or node.CONTEXT.LOC
    if node.HEAD == "double" and (split or context):
        raise UserError(
            "MODEL.GRCN.HEAD 'double' reads the same features for both tasks: it goes neither "
            "with split maps nor with CONTEXT."
        )
    if node.RES_DET and (split or context or node.HEAD != "shared"):
        raise UserError(
            "MODEL.GRCN.RES_DET is a baseline of its own: it goes neither with split maps nor "
            "with CONTEXT nor with another HEAD than 'shared'."
        )
    if node.RES_DET_HEAD != "fc2" and not node.RES_DET:
        raise UserError(
            f"MODEL.GRCN.RES_DET_HEAD {node.RES_DET_HEAD!r} needs MODEL.GRCN.RES_DET True."
        )


def _check_resnet(cfg: CfgNode) -> None:
    node, resnets = cfg.MODEL.GRCN, cfg.MODEL.RESNETS
    if node.RES5_STRIDE != 1 and (node.RES_DET or cfg.MODEL.ROI_BOX_HEAD.NAME):
        raise UserError(
            f"MODEL.GRCN.RES5_STRIDE {node.RES5_STRIDE} is for RoIs that go through conv5, and "
            "RES_DET or MODEL.ROI_BOX_HEAD.NAME puts another head there: leave it at 1."
        )
    if resnets.DEPTH >= 50 and not resnets.STRIDE_IN_1X1:
        raise UserError(
            "The bottlenecks of G-RCN run at two strides, which their weights allow only with the "
            "stride in the first 1x1 convolution: set MODEL.RESNETS.STRIDE_IN_1X1 to True."
        )
    if any(resnets.DEFORM_ON_PER_STAGE) or resnets.RES5_DILATION != 1:
        raise UserError(
            "G-RCN has plain convolutions alone: set MODEL.RESNETS.DEFORM_ON_PER_STAGE to False "
            "everywhere and RES5_DILATION to 1."
        )
    if node.RES4_SPLIT and resnets.NORM not in ("FrozenBN", "GN", "LN", ""):
        raise UserError(
            "The shared bottlenecks of G-RCN see maps of two strides, whose batch statistics "
            "would mix: set MODEL.RESNETS.NORM to FrozenBN, GN or LN, not "
            f"{resnets.NORM!r}."
        )
