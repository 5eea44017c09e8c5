"""Boxes with a variance for each coordinate, the sixth paper of docs/extending.md."""

from kl_loss.config import add_kl_loss_config
from kl_loss.loss import kl_regression_loss
from kl_loss.roi_heads import KLLossOutputLayers, KLLossROIHeads

__all__ = ["KLLossOutputLayers", "KLLossROIHeads", "add_kl_loss_config", "kl_regression_loss"]
