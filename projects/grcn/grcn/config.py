"""The config node of G-RCN."""

from detectron2.config import CfgNode


def add_grcn_config(cfg: CfgNode) -> None:
    """Add the node ``MODEL.GRCN`` with its defaults to ``cfg``; nothing else is touched.

    The defaults are the baseline: one map for both tasks.
    """
    cfg.MODEL.GRCN = node = CfgNode()

    # --- where the maps of the two tasks part (section 3.1) ---
    # VGG16: blocks from this one on exist twice; 5 in the paper. 0: one map.
    node.SPLIT_BLOCK = 0
    # ResNet: how many of the last bottlenecks of conv4 exist twice; the paper has 2 of 6 in
    # ResNet-50 and 6 of 23 in ResNet-101. 0: one map.
    node.RES4_SPLIT = 0
    # Ours, not the paper's: top-down pyramids of their own for the two tasks on one ResNet.
    node.FPN_SPLIT = False
    # The last downsampling (VGG16: pool4; ResNet: the stride of conv4) of each task's map: "keep",
    # or "none" for stride 8. VGG16 can localise behind "conv", a 2x2 convolution of stride 2, or
    # "pool_s1", pooling of stride 1 (Table 3).
    node.CLS_DOWN = "keep"
    node.LOC_DOWN = "keep"

    # --- the head of each RoI ---
    # "shared": one for both tasks. "separate": one for each, detect-RF. "double": two side by
    # side, both read by both tasks, detect-S (Table 1).
    node.HEAD = "shared"
    # Stride of conv5 on a RoI: 1 for 7x7 cells. The head of He et al. has 2 for 14x14.
    node.RES5_STRIDE = 1
    # Dropout behind fc6 and fc7 of VGG16.
    node.VGG_DROPOUT = 0.5

    # --- ResNet-det (section 3.3): conv5 in the backbone, with stride 1 ---
    node.RES_DET = False
    # Its head: "fc2", two fully connected layers; "conv2", two 3x3 convolutions; "res5", three more
    # bottlenecks.
    node.RES_DET_HEAD = "fc2"

    # --- global context (section 3.2, Eq. 1) ---
    node.CONTEXT = CfgNode()
    # Which task's RoI features attend to the whole image.
    node.CONTEXT.CLS = False
    node.CONTEXT.LOC = False
    # Dimension of queries and keys, all attention heads together. 0: the channels of the map.
    node.CONTEXT.KEY_DIM = 0
    # The equation has one softmax.
    node.CONTEXT.NUM_HEADS = 1
    # The whole image is pooled to this many cells in height and width.
    node.CONTEXT.POOL = 14
    # Whether the values are projected; slightly worse (section 3.2).
    node.CONTEXT.VALUE_PROJ = False
    # Of the projections. The paper gives none; with Xavier's the softmax starts saturated.
    node.CONTEXT.INIT_STD = 0.01
