"""
Global context of RoIs, Eq. 1 of G-RCN.

Shape shorthand in this module:

    N: number of images in the minibatch
    R: number of RoIs of all images, R_i of image i
    D: channels of the map
    P: cells of a RoI, 49
    S: cells of the whole image, 196
    h: attention heads
"""

import torch
from torch import Tensor, nn

from clsloc.errors import UserError

__all__ = ["GlobalContext", "attention_entropy"]


class GlobalContext(nn.Module):
    """
    Every cell of a RoI attends to the cells of its whole image (section 3.2, Eq. 1).

        P' = P + softmax(P W_P^T (V W_K^T)^T / sqrt(k)) V

    P are the cells of a RoI, V those of the image from the same map. Keys and values are both V;
    values are not projected, as channels of P and V mean the same. With several heads, the
    projections and the channels of V are cut into as many groups, each with a softmax of its own.

    Runs in fp32 under automatic mixed precision: behind a ReLU without norm, features are large.
    """

    def __init__(
        self,
        channels: int,
        *,
        key_dim: int = 0,
        num_heads: int = 1,
        value_proj: bool = False,
        init_std: float = 0.01,
    ):
        """
        Args:
            channels: D.
            key_dim: k, of all heads together; 0 for D.
            num_heads: h, a divisor of both.
            value_proj: whether the values are projected.
            init_std: of the projections. For features of norm 100 and D = k = 512, the default
                gives logits a deviation of 1.0; Xavier's would give 19.5.
        """
        super().__init__()
        key_dim = key_dim or channels
        if key_dim % num_heads or channels % num_heads:
            raise UserError(
                f"MODEL.GRCN.CONTEXT.NUM_HEADS must divide KEY_DIM, {key_dim}, and the channels of "
                f"the map, {channels}, got {num_heads}."
            )
        self.num_heads = num_heads
        self.query = nn.Linear(channels, key_dim, bias=False)
        self.key = nn.Linear(channels, key_dim, bias=False)
        self.value = nn.Linear(channels, channels, bias=False) if value_proj else nn.Identity()
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=init_std)

    def forward(
        self, pooled: Tensor, whole: Tensor, sizes: list[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """
        Args:
            pooled: (R, D, height, width), the RoIs of all images in order; R may be 0.
            whole: (N, D, height, width), the pooled image of each.
            sizes: R_i of each image, R in total.

        Returns:
            `pooled` with context, of the same shape and dtype, and for each image the attention
            weights (h, R_i * P, S), whose rows sum to 1.
        """
        with torch.autocast(pooled.device.type, enabled=False):
            dtype = self.query.weight.dtype
            cells = pooled.to(dtype).flatten(2).mT
            images = whole.to(dtype).flatten(2).mT
            keys, values = self._keys(images), self._split(self.value(images))
            weights, added = [], []
            for image, rows in enumerate(cells.split(sizes)):
                weights.append((rows.flatten(0, 1) @ keys[image].mT).softmax(dim=-1))
                added.append((weights[-1] @ values[image]).transpose(0, 1).flatten(1))
            context = torch.cat(added).view(cells.shape).mT.reshape(pooled.shape)
            enriched = pooled.to(dtype) + context
        return enriched.to(pooled.dtype), weights

    def _keys(self, images: Tensor) -> Tensor:
        """
        (N, S, D) to (N, h, S, D): what the cells of RoIs are multiplied with as they are.

        W_P is applied to the S keys of an image in place of its R_i * P queries: the product is the
        same, and by far fewer multiplications.
        """
        keys = self._split(self.key(images))
        per_head = self.query.weight.unflatten(0, (self.num_heads, -1))
        return keys @ per_head * keys.shape[-1] ** -0.5

    def _split(self, x: Tensor) -> Tensor:
        """(N, S, channels) to (N, h, S, channels / h)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def attention_entropy(weights: list[Tensor]) -> Tensor:
    """
    Mean entropy of attention weights in nats: ln S where all cells count the same, 0 where one
    takes all; 0 for no rows.

    Args:
        weights: per image, (h, rows, S).
    """
    entropies = torch.cat([torch.special.entr(w).sum(dim=-1).flatten() for w in weights])
    return entropies.sum() / max(len(entropies), 1)
