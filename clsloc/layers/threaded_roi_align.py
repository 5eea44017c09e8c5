"""RoIAlign that uses all threads of a CPU."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch
import torchvision  # noqa: F401  (registers the operators)
from torch import Tensor

from detectron2.layers import ROIAlign

__all__ = ["ThreadedROIAlign"]


class ThreadedROIAlign(ROIAlign):
    """
    Detectron2's `ROIAlign`, with its arguments. On CPUs torchvision's operator works in a single
    thread, so that pooling, its backward pass above all, takes more of a step the more cores there
    are. Channels do not depend on each other: each thread pools some of them, and output and
    gradients are bit for bit the same.
    """

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """
        Args:
            input: (N, C, H, W).
            rois: (R, 5), the index of the image and absolute XYXY; R may be 0.

        Returns:
            (R, C, output height, output width).
        """
        threads = min(torch.get_num_threads(), input.shape[1])
        if threads == 1 or not len(rois) or input.device.type != "cpu":
            return super().forward(input, rois)
        if input.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(input, rois)
        settings = (self.spatial_scale, *self.output_size, self.sampling_ratio, self.aligned)
        return _ROIAlign.apply(input, rois.to(input.dtype), settings, threads)


class _ROIAlign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rois: Tensor, settings: tuple, threads: int) -> Tensor:
        ctx.save_for_backward(rois)
        ctx.shape, ctx.settings, ctx.threads = x.shape, settings, threads

        def pool(part: Tensor) -> Tensor:
            return torch.ops.torchvision.roi_align(part.contiguous(), rois, *settings)

        return torch.cat(_in_threads(pool, x.chunk(threads, dim=1)), dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (rois,) = ctx.saved_tensors
        scale, height, width, *rest = ctx.settings
        images, _, *size = ctx.shape

        def spread(part: Tensor) -> Tensor:
            return torch.ops.torchvision._roi_align_backward(
                part.contiguous(), rois, scale, height, width, images, part.shape[1], *size, *rest
            )

        return (
            torch.cat(_in_threads(spread, grad.chunk(ctx.threads, dim=1)), dim=1),
            None,
            None,
            None,
        )


def _in_threads(function: Callable[[Tensor], Tensor], parts: tuple[Tensor, ...]) -> list[Tensor]:
    def run(part: Tensor) -> Tensor:
        with torch.no_grad():  # a state of each thread
            return function(part)

    return list(_workers(len(parts)).map(run, parts))


@lru_cache(maxsize=1)
def _workers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="roi_align")
