"""The config node of the shared core; each project adds its own beside it."""

from detectron2.config import CfgNode


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
