"""The config node of DDOD."""

from detectron2.config import CfgNode


def add_ddod_config(cfg: CfgNode) -> None:
    """Add the node ``MODEL.DDOD`` with its defaults to ``cfg``; nothing else is touched.

    The defaults are DDOD on ATSS.
    """
    cfg.MODEL.DDOD = node = CfgNode()
    node.NUM_CLASSES = 80
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]

    # --- head ---
    # Convolutions of each of the two towers, and their channels.
    node.NUM_CONVS = 4
    node.CONV_DIM = 256
    # Normalisation in the towers; "" for none (RetinaNet), then the convolutions have biases.
    node.NORM = "GN"
    # Probability of every class at the start.
    node.PRIOR_PROB = 0.01
    # Whether each level has a learnt factor on its box regression.
    node.LEVEL_SCALE = True
    # What is predicted beside the classes to rank detections: "iou", "centerness" or "none".
    node.QUALITY = "iou"
    # Box regression: "delta" of R-CNN with these weights, or "ltrb", distances of the centre to
    # the four sides in strides (FCOS).
    node.CODER = "delta"
    node.BBOX_REG_WEIGHTS = [10.0, 10.0, 5.0, 5.0]
    # Bias of the box regression at the start: 1.5 for "ltrb".
    node.REG_BIAS_INIT = 0.0

    # --- deformable convolution of each tower: section 4.2, Table 6 ---
    node.DCN = CfgNode()
    # Which convolution of each tower is deformable, from 1; 0: none.
    node.DCN.POSITION = 1
    # The second version, whose taps are weighed; the authors use the first.
    node.DCN.MODULATED = False
    node.DCN.DEFORM_GROUPS = 1
    # "torchvision", "sampling" (faster on CPUs), or "auto", which chooses by the device.
    node.DCN.IMPL = "auto"

    # --- label assignment: section 4.1, Tables 1 and 5 ---
    node.ASSIGN = CfgNode()
    # "cost": by predictions, for each task; "atss": by the IoU of anchors; "iou": by thresholds.
    node.ASSIGN.MODE = "cost"
    # Exponents of the IoU in the cost, Eq. 1.
    node.ASSIGN.ALPHA_CLS = 0.8
    node.ASSIGN.ALPHA_REG = 0.5
    # Regression learns from the labels of classification.
    node.ASSIGN.SHARED = False
    # Candidates of a level, for each anchor of a location or in all.
    node.ASSIGN.TOPK = 9
    node.ASSIGN.TOPK_PER_ANCHOR = True
    # Candidates are nearest in "distance" (authors' code) or of best "cost" (text).
    node.ASSIGN.TOPK_METRIC = "distance"
    # Thresholds (negative, positive) of mode "iou".
    node.ASSIGN.IOU_CLS = [0.4, 0.5]
    node.ASSIGN.IOU_REG = [0.4, 0.5]
    # In mode "iou" every object keeps its best anchors.
    node.ASSIGN.LOW_QUALITY = True
    # Anchors on what pads an image to the size of the batch are not trained.
    node.ASSIGN.MASK_PADDING = True
    # Anchors of which a larger share than this lies in a crowd (``iscrowd``) are not trained;
    # below 0 crowds are background, as in the authors' code.
    node.ASSIGN.IGNORE_IOF_THR = -1.0

    # --- weights of the levels: section 4.3, Tables 2 and 7 ---
    node.REWEIGHT = CfgNode()
    # "none", "linear", "sum", "sum_literal" or "interp" (Eq. 3 and 4).
    node.REWEIGHT.TYPE = "interp"
    # Smallest and largest weight; "linear": those of the finest and of the coarsest level.
    node.REWEIGHT.RANGE = [1.0, 2.0]
    # Count the positives since the start of training rather than those of the batch.
    node.REWEIGHT.MOVING_AVERAGE = True
    # Count those of all processes.
    node.REWEIGHT.SYNC = True

    # --- losses ---
    node.LOSS = CfgNode()
    node.LOSS.FOCAL_ALPHA = 0.25
    node.LOSS.FOCAL_GAMMA = 2.0
    node.LOSS.CLS_WEIGHT = 1.0
    # "giou" or "diou" on boxes, "smooth_l1" on deltas, there with this beta (0: L1).
    node.LOSS.BOX_TYPE = "giou"
    node.LOSS.BOX_WEIGHT = 2.0
    node.LOSS.SMOOTH_L1_BETA = 0.0
    node.LOSS.QUALITY_WEIGHT = 1.0
    # Losses are divided by the number of positives of the batch ("num_pos") or by its
    # exponential moving average ("ema", as Detectron2's RetinaNet).
    node.LOSS.NORMALIZER = "num_pos"

    # --- inference ---
    node.TEST = CfgNode()
    # Threshold on the class probability, before the quality is multiplied.
    node.TEST.SCORE_THRESH = 0.05
    # Most candidates of a level before NMS: "pair" counts (anchor, class) pairs, "location"
    # anchors by their best class (authors' code).
    node.TEST.TOPK_CANDIDATES = 1000
    node.TEST.TOPK_MODE = "pair"
    # IoU threshold of NMS; "hard"; "soft", which lowers scores; or "vote": the box of a survivor is
    # the mean, weighed by scores, of those it suppresses and its own.
    node.TEST.NMS_THRESH = 0.6
    node.TEST.NMS_TYPE = "hard"
    # Soft-NMS: "linear" (above the threshold) or "gaussian" with its sigma; a lowered score below
    # the smallest one drops the box.
    node.TEST.SOFT_NMS_METHOD = "linear"
    node.TEST.SOFT_NMS_SIGMA = 0.5
    node.TEST.SOFT_NMS_MIN_SCORE = 0.001
    # Score from probability p and quality q: "product" p q; "sqrt", its square root; or "power",
    # p^a q^b with these exponents (those of TinaFace).
    node.TEST.SCORE_FUSION = "product"
    node.TEST.SCORE_POWERS = [0.8, 1.2]
    # Detections that are lower, in pixels of the original image, are dropped (WIDER FACE: 9).
    node.TEST.MIN_HEIGHT = 0.0

    # --- pyramid ---
    node.FPN = CfgNode()
    # "fpn"; "pafpn" with a second path from fine to coarse maps; or "ssh" with bilinear upsampling
    # and the context module of SSH behind every map (WIDER FACE).
    node.FPN.TYPE = "fpn"
    # P6 is convolved from "p5" or, as in RetinaNet, from "res5".
    node.FPN.P6_FROM = "p5"
    # A ReLU between P6 and P7.
    node.FPN.RELU_BEFORE_P7 = False
