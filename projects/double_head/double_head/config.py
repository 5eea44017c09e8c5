"""The config node of Double-Head."""

from detectron2.config import CfgNode


def add_double_head_config(cfg: CfgNode) -> None:
    """Add the node ``MODEL.DOUBLE_HEAD`` with its defaults to ``cfg``; nothing else is touched."""
    cfg.MODEL.DOUBLE_HEAD = node = CfgNode()

    # --- conv tower ---
    # K, the blocks of the conv tower, non-local ones included: section 4.1, Table 2. 0: no conv
    # tower, the plain FPN detector.
    node.NUM_BLOCKS = 5
    # Channels behind the first block; bottlenecks are a quarter as wide inside.
    node.CONV_DIM = 1024
    # Normalisation behind each convolution: "BN", "SyncBN", "FrozenBN" or "GN".
    node.NORM = "BN"

    # --- what each tower looks at ---
    # Factor on the proposals before pooling, about their centres. The paper does not mention it;
    # 1.3 is what the authors' scripts pass, and 1.0 is the text to the letter.
    node.CONV_ROI_SCALE = 1.3
    node.FC_ROI_SCALE = 1.0

    # --- non-local blocks before the bottlenecks of the conv tower ---
    node.NONLOCAL = CfgNode()
    node.NONLOCAL.ENABLED = True
    # Channels of theta, phi and g; 512 gives the 2M parameters of section 4.1.
    node.NONLOCAL.INTER_DIM = 512
    # Channel groups with affinities of their own (authors' scripts).
    node.NONLOCAL.GROUPS = 4
    # "mean": affinities divided by the number of positions (authors' scripts); or "softmax".
    node.NONLOCAL.NORMALIZE = "mean"
    # Whether a ReLU follows the residual sum (authors' scripts).
    node.NONLOCAL.RELU = True
    # What is zero at the start, so that the block is the identity: "conv", the last convolution
    # (authors' scripts), or "norm", the weight of the norm behind it, which trains more gently.
    node.NONLOCAL.ZERO_INIT = "conv"

    # --- loss weights, Eq. 1-3 ---
    # A tower or predictor whose loss has no weight is not built.
    node.OMEGA_FC = 2.0
    node.OMEGA_CONV = 2.5
    # Share of classification in the fc tower and of localisation in the conv tower. Vanilla
    # Double-Head: 1 and 1. Double-Head-Ext: 0.7 and 0.8.
    node.LAMBDA_FC = 1.0
    node.LAMBDA_CONV = 1.0
    # The four weights themselves, (fc_cls, fc_reg, conv_cls, conv_reg); replace OMEGA and LAMBDA
    # when given.
    node.LOSS_WEIGHTS = []
    # A tower of its own for each of the two tasks: Double-FC and Double-Conv of Table 1.
    node.SEPARATE_TOWERS = False

    # --- inference ---
    # Where class scores come from: "fc", "conv", or a fusion of both: "max", "average",
    # "complementary" (Eq. 4). "auto": "complementary" where both towers classify.
    node.TEST_SCORE = "auto"
    # Where boxes come from: "fc" or "conv". "auto": "conv" where the conv tower regresses.
    node.TEST_BOX = "auto"
