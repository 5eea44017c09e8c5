"""The regression loss: a function of tensors, without a config or a logger."""

import torch
from torch import Tensor


def kl_regression_loss(deltas: Tensor, targets: Tensor, log_variance: Tensor) -> Tensor:
    """Divergence of a Gaussian prediction from the true box, up to constants (Eq. 9 and 10 of
    "Bounding Box Regression with Uncertainty for Accurate Object Detection", CVPR 2019).

    Args:
        deltas, targets: (R, 4), predicted and true box deltas.
        log_variance: (R, 4), alpha, the logarithm of the variance of each delta.

    Returns:
        The sum over rows and coordinates; 0, with a gradient, for no rows.
    """
    error = (deltas - targets).abs()
    # Quadratic below an error of 1, linear above, so that the gradient of a far box is bounded.
    distance = torch.where(error < 1, 0.5 * error**2, error - 0.5)
    return (torch.exp(-log_variance) * distance + 0.5 * log_variance).sum()
