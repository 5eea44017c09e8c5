"""The config node of the KL loss."""

from detectron2.config import CfgNode


def add_kl_loss_config(cfg: CfgNode) -> None:
    """Add the node ``MODEL.KL_LOSS`` with its defaults to ``cfg``; nothing else is touched."""
    cfg.MODEL.KL_LOSS = node = CfgNode()
    # Standard deviation of the start of the layer that predicts log variances: section 3.2.
    node.INIT_STD = 0.0001
