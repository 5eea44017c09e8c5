"""The config node of IoU-uniform R-CNN."""

from detectron2.config import CfgNode


def add_iou_uniform_config(cfg: CfgNode) -> None:
    """Add the node ``MODEL.IOU_UNIFORM`` with its defaults to ``cfg``; nothing else is touched."""
    cfg.MODEL.IOU_UNIFORM = node = CfgNode()

    # --- boxes drawn around the objects, section 3.1 ---
    # IoU intervals (low, high] that get equally many boxes.
    node.INTERVALS = ((0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 1.0))
    # For each interval: the largest shift of the centre, in sizes of the object, and the range of
    # the factors on width and height (authors' code; the paper names none).
    node.OFFSETS = (0.75, 0.5, 0.3, 0.125)
    node.SCALES = ((0.5, 2.0), (0.6, 1.6), (0.7, 1.4), (0.8, 1.25))
    # M of the paper. An interval gets this divided by the number of intervals, rounded down.
    node.SAMPLES_PER_GT = 64
    # Boxes drawn for each object and interval in a round, and rounds at most; 1 round is the
    # authors' code, which leaves the first interval short for about half of the objects.
    node.ATTEMPTS = 500
    node.MAX_ROUNDS = 4
    # Whether a box must overlap its object at least as much as any other.
    node.REQUIRE_OWN_GT = True
    # "per_gt": all of them. "match_rpn": in each image MATCH_FACTOR times as many as the
    # classifier has foreground samples, evenly over the intervals (Table 5).
    node.NUM_MODE = "per_gt"
    node.MATCH_FACTOR = 1.0
    # More in an image are cut down to this, evenly over the intervals: it bounds the memory in a
    # crowd. 100 objects stay below it.
    node.MAX_SAMPLES_PER_IMAGE = 6400

    # --- branches, and what they train on ---
    # Where boxes are regressed: "separate", with the IoU in a branch of its own, or
    # "shared_with_cls", in that of the classifier (Table 6).
    node.REG_BRANCH = "separate"
    # Boxes that regression and the IoU train on: "uniform", drawn around the objects, or "rpn",
    # the foreground samples of the classifier.
    node.REG_SAMPLES = "uniform"
    node.IOU_SAMPLES = "uniform"
    # Whether the IoU is predicted; scores are then class probability times IoU.
    node.WITH_IOU = True

    # --- inference ---
    # Eliminate feature offsets, section 3.3: predict the IoU from features pooled at the refined
    # box, rather than at the proposal.
    node.EFO = True
    # Whether predicted IoUs are clamped to [0, 1].
    node.IOU_CLAMP = False

    # --- losses ---
    # Weights of the regression loss (Eq. 2) for IoUs between consecutive edges. The paper has
    # (1, 1.5, 3, 3), the authors' code these.
    node.WEIGHT_EDGES = (0.5, 0.6, 0.7, 0.8, 1.0)
    node.INTERVAL_WEIGHTS = (1.0, 1.5, 2.0, 3.0)
    # Where smooth L1 turns from squared to absolute, and the weight of each loss (authors' code).
    # MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA is the baseline's; 0.0 is L1 in both.
    node.REG_LOSS_BETA = 1.0
    node.REG_LOSS_WEIGHT = 1.0
    node.IOU_LOSS_BETA = 0.5
    node.IOU_LOSS_WEIGHT = 1.0

    # --- Cascade R-CNN: one entry for each stage ---
    node.CASCADE = CfgNode()
    # The authors' last two intervals are open to above; here they end where the next begins.
    node.CASCADE.INTERVALS = (
        ((0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 1.0)),
        ((0.6, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 1.0)),
        ((0.7, 0.8), (0.8, 0.9), (0.9, 1.0)),
    )
    node.CASCADE.OFFSETS = (
        (0.75, 0.5, 0.3, 0.125),
        (0.5, 0.3, 0.125, 0.05),
        (0.3, 0.125, 0.05),
    )
    node.CASCADE.SCALES = (
        ((0.5, 2.0), (0.6, 1.6), (0.7, 1.4), (0.8, 1.25)),
        ((0.6, 1.6), (0.7, 1.4), (0.8, 1.25), (0.9, 1.111)),
        ((0.7, 1.4), (0.8, 1.25), (0.9, 1.111)),
    )
    node.CASCADE.SAMPLES_PER_GT = (64, 64, 60)
    # Weights of the losses of each stage.
    node.CASCADE.STAGE_LOSS_WEIGHTS = (1.0, 0.5, 0.25)
    # What is averaged over the stages for the score: "logit" (authors' code) or "prob".
    node.CASCADE.SCORE = "logit"
