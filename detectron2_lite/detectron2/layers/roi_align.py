"""RoIAlign: features of boxes on a fixed grid, by bilinear sampling."""

import torch
from torch import nn
from torchvision.ops import roi_align

__all__ = ["ROIAlign", "roi_align"]


class ROIAlign(nn.Module):
    """RoIAlign (Mask R-CNN, arXiv:1703.06870, section 3) as a module."""

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = True,
    ) -> None:
        """
        Args:
            output_size: side, or height and width, of the grid.
            spatial_scale: cells of the map per image pixel, 1 / stride.
            sampling_ratio: samples per grid cell and axis; 0 takes as many as pixels it covers.
            aligned: pixel (i, j) has its centre at (i + 0.5, j + 0.5); False leaves out the half,
                as the first implementations did.
        """
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """Pool R boxes from N maps.

        Args:
            input: (N, C, H, W).
            rois: (R, 5): index into ``input``, then XYXY in image pixels. R = 0 is fine.

        Returns:
            (R, C, output height, output width).
        """
        assert rois.dim() == 2 and rois.size(1) == 5, (
            f"RoIs need a tensor of shape (R, 5), got {tuple(rois.shape)}."
        )
        return roi_align(
            input,
            rois.to(dtype=input.dtype),
            self.output_size,
            self.spatial_scale,
            self.sampling_ratio,
            self.aligned,
        )

    def __repr__(self) -> str:
        return (
            f"ROIAlign(output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned})"
        )
