"""The config node of the shared core; each project adds its own beside it."""

from collections.abc import Collection, Iterable

from clsloc.errors import UserError
from detectron2.config import CfgNode

__all__ = ["add_core_config", "check_box_head", "check_choice"]

# Keys of MODEL.ROI_BOX_HEAD that Detectron2's own predictors read, and the values that say what a
# head with predictors of its own does anyway.
_BOX_HEAD_WITHOUT_EFFECT = {
    "TRAIN_ON_PRED_BOXES": False,
    "BBOX_REG_LOSS_TYPE": "smooth_l1",
    "BBOX_REG_LOSS_WEIGHT": 1.0,
    "USE_SIGMOID_CE": False,
    "USE_FED_LOSS": False,
}


def add_core_config(cfg: CfgNode) -> None:
    """Add the node ``CLSLOC`` with its defaults to ``cfg``; nothing else is touched."""
    cfg.CLSLOC = node = CfgNode()

    # Datasets to register before anything is built, each a list:
    #   [name, "coco", json_file, image_root]
    #   [name, "voc", directory, split] or [name, "voc", directory, split, [class names]]
    #   [name, "wider_face", root, split]
    # The flags --coco, --voc and --wider-face append to this list.
    node.DATASETS = []

    # At inference, give the localisation path only the RoIs with a score above the threshold
    # (where the classification does not need that path). The detections are the same either way.
    node.LAZY_LOCALISATION = True

    # Augmentation of training images beyond Detectron2's node INPUT; nothing by default.
    node.INPUT = CfgNode()
    # Share of the images that INPUT.CROP, where it is enabled, acts on.
    node.INPUT.CROP_PROB = 1.0
    # The limit of the longer edge is drawn from this range; (): it is INPUT.MAX_SIZE_TRAIN.
    node.INPUT.MAX_SIZE_RANGE = ()
    # Black rectangles: in this share of the images, so many (smallest and largest number), each of
    # one of these heights and widths in pixels of the resized image.
    node.INPUT.CUTOUT = CfgNode()
    node.INPUT.CUTOUT.PROB = 0.0
    node.INPUT.CUTOUT.HOLES = (5, 10)
    node.INPUT.CUTOUT.SIZES = ((8, 8), (16, 16), (16, 32), (32, 16), (32, 32), (48, 48))

    # Squares with a side of one of these shares of the shorter edge and an object's centre inside,
    # resized to SIZE x SIZE in place of what INPUT says about sizes; objects whose centre is
    # outside are dropped. (): no such crop.
    node.INPUT.SQUARE_CROP = CfgNode()
    node.INPUT.SQUARE_CROP.SHARES = ()
    node.INPUT.SQUARE_CROP.SIZE = 640
    # Colours, each in half of the images: the largest shift of values from 0 to 255, the largest
    # differences of two factors from 1, the largest turn in degrees.
    node.INPUT.COLOR = CfgNode()
    node.INPUT.COLOR.BRIGHTNESS = 0.0
    node.INPUT.COLOR.CONTRAST = 0.0
    node.INPUT.COLOR.SATURATION = 0.0
    node.INPUT.COLOR.HUE = 0.0

    node.SOLVER = CfgNode()
    # How often SOLVER.LR_SCHEDULER_NAME WarmupCosineRestartsLR falls from SOLVER.BASE_LR to
    # SOLVER.BASE_LR_END; no other schedule reads it.
    node.SOLVER.CYCLES = 1

    node.BEST = CfgNode()
    # Keep the checkpoint with the largest value of this metric as model_best.pth, e.g. "bbox/AP"
    # (with several test sets "<dataset>/bbox/AP"); compared every TEST.EVAL_PERIOD iterations and
    # at the end. Empty: keep none.
    node.BEST.METRIC = ""
    # Stop training after this many evaluations in a row without a new best; 0: never.
    node.BEST.PATIENCE = 0

    node.TEST = CfgNode()
    # Report the AP of every class beside the averages.
    node.TEST.PER_CLASS = False


def check_choice(key: str, value: object, choices: Collection[object]) -> None:
    """
    Args:
        key: what the value stands under, such as ``MODEL.DDOD.QUALITY``.
        value: as the user gave it.
        choices: all that it may be.

    Raises:
        UserError: it is none of them.
    """
    if value not in choices:
        raise UserError(f"{key} must be one of {', '.join(map(str, choices))}, got {value!r}.")


def check_box_head(
    cfg: CfgNode, method: str, keys: Iterable[str] = tuple(_BOX_HEAD_WITHOUT_EFFECT)
) -> None:
    """
    Refuse what ``MODEL.ROI_BOX_HEAD`` asks for and a head would pass over.

    Args:
        cfg: of the whole model.
        method: name of the detector, for the sentence.
        keys: those that its head does not read; by default all that only Detectron2's own
            predictors do.

    Raises:
        UserError: one of them has another value than the one that says what the head does.
    """
    for key in keys:
        value, wanted = cfg.MODEL.ROI_BOX_HEAD[key], _BOX_HEAD_WITHOUT_EFFECT[key]
        if value != wanted:
            raise UserError(
                f"MODEL.ROI_BOX_HEAD.{key} {value!r} has no effect in {method}: set it to "
                f"{wanted!r}."
            )
