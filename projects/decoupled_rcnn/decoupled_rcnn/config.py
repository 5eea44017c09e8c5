"""The config node of Decoupled R-CNN."""

from detectron2.config import CfgNode


def add_decoupled_rcnn_config(cfg: CfgNode) -> None:
    """Add the node ``MODEL.DECOUPLED`` with its defaults to ``cfg``; nothing else is touched.

    A tuple with an entry for each regression stage may be longer than `NUM_REG_STAGES`.
    """
    cfg.MODEL.DECOUPLED = node = CfgNode()

    # --- decoupled sampling in training: section IV-A ---
    # IoU thresholds of the two NMS runs over the same candidates. Inference has one run, at
    # MODEL.RPN.NMS_THRESH. 0.85 is the best of Table III.
    node.NMS_THRESH_CLS = 0.7
    node.NMS_THRESH_REG = 0.85
    # Proposals for regression that are kept; those for classification: RPN.POST_NMS_TOPK_TRAIN.
    node.POST_NMS_TOPK_REG_TRAIN = 1000
    # Samples of the regressor: "positive", all positives up to the size of the mini-batch;
    # "random", the positives of an ordinary random mini-batch (Table I); "shared", the positives
    # among the samples of the classifier (Table II, FPN with unshared layers).
    node.REG_SAMPLER = "positive"
    # Size of the mini-batch of an image: the most samples, and what their loss is divided by.
    node.REG_BATCH_SIZE_PER_IMAGE = 512
    # Largest share of positives; read by "random" alone.
    node.REG_POSITIVE_FRACTION = 0.25
    # Whether ground truth boxes join the proposals for regression. The authors' code has none.
    node.REG_APPEND_GT = False

    # --- heads: sections IV-A and IV-B ---
    # One stack of fully connected layers for both tasks (Table II); needs NUM_REG_STAGES 1.
    node.SHARED_FC = False
    # Regressors in sequence, S. 1 is "without cascaded regression".
    node.NUM_REG_STAGES = 3
    # A box is a positive of a stage if its IoU with an object is at least this.
    node.REG_IOUS = (0.5, 0.5, 0.5)
    # Weights of dx, dy, dw, dh, in place of MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS (authors' code:
    # standard deviations 0.1, 0.05, 0.033 and twice).
    node.BBOX_REG_WEIGHTS = (
        (10.0, 10.0, 5.0, 5.0),
        (20.0, 20.0, 10.0, 10.0),
        (30.0, 30.0, 15.0, 15.0),
    )
    # One box for all classes, in place of MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG. The published
    # parameter counts prove this default.
    node.CLS_AGNOSTIC = (False, True, True)
    # The regressors' head: "FastRCNNConvFCHead", or "DoubleConvRegHead", the conv tower of
    # Double-Head (Table XI). The classifier's is MODEL.ROI_BOX_HEAD.NAME.
    node.REG_HEAD = "FastRCNNConvFCHead"
    # Factor on the boxes before pooling for the regressors; 1.3 goes with "DoubleConvRegHead".
    node.REG_ROI_SCALE = 1.0

    # --- loss: Eq. 8 ---
    # Weight of all regression losses: 0.5 with a cascade (Table VI), 1 on VOC without.
    node.LOSS_LAMBDA = 0.5
    # Weight of each stage beside it. Eq. 8 has none, (1, 1, 1); these are the authors' code's.
    node.STAGE_LOSS_WEIGHTS = (1.0, 0.5, 0.25)
    # What the sum over positives is divided by: "batch", the mini-batch, the same for all stages;
    # or "positives", their number.
    node.REG_LOSS_NORM = "batch"

    # --- cascaded classification: Table X ---
    # A classifier at each stage, on the classification samples as the regressors refine them.
    node.CASCADE_CLS = False
    # IoU at which the samples of each classifier are labelled; the first must be that of
    # MODEL.ROI_HEADS.IOU_THRESHOLDS.
    node.CLS_IOUS = (0.5, 0.6, 0.7)

    # --- inference ---
    # The regressor that boxes come from, counted from 0; -1 is the last.
    node.TEST_REG_STAGE = -1
    # The classifiers that scores come from, counted from 0; the mean of several. (): all.
    node.TEST_CLS_STAGES = ()
    # Soft-NMS in place of NMS (Table IX), with the IoU of MODEL.ROI_HEADS.NMS_THRESH_TEST.
    node.SOFT_NMS = False
    # "linear" (authors' code) or "gaussian", and the width of the latter.
    node.SOFT_NMS_METHOD = "linear"
    node.SOFT_NMS_SIGMA = 0.5
    # A detection whose score falls below is dropped.
    node.SOFT_NMS_MIN_SCORE = 0.001
