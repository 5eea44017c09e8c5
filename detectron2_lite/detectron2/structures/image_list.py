"""A batch of images of different sizes, padded to one size."""

from typing import Any

import torch
from torch.nn import functional as F


class ImageList:
    """N images in one tensor, padded right and below, with their sizes before padding.

    Attributes:
        tensor: (N, H, W) or (N, C, H, W).
        image_sizes: N pairs (height, width).
    """

    def __init__(self, tensor: torch.Tensor, image_sizes: list[tuple[int, int]]) -> None:
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> torch.Tensor:
        """The ``idx``-th image without its padding: (H, W) or (C, H, W), sharing memory."""
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> "ImageList":
        """``tensor.to`` with these arguments; the sizes stay."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: list[torch.Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: dict[str, int] | None = None,
    ) -> "ImageList":
        """Pad images to the size of the largest and stack them.

        Args:
            tensors: N images (..., H, W) that agree in all other dimensions.
            size_divisibility: the padded height and width become multiples of it, if above 1.
            pad_value: what the padding holds.
            padding_constraints: a backbone's wishes. ``"size_divisibility"`` wins over the
                argument; ``"square_size"`` above 0 asks for squares of that side.

        The images are copied, also where nothing is padded.
        """
        assert len(tensors) > 0, "A batch of images needs at least one image."
        assert isinstance(tensors, (list, tuple)), f"Expected a list, got {type(tensors)}."
        for image in tensors:
            assert isinstance(image, torch.Tensor), f"Expected a tensor, got {type(image)}."
            assert image.shape[:-2] == tensors[0].shape[:-2], (
                "All images need the same number of channels, got "
                f"{tuple(image.shape)} beside {tuple(tensors[0].shape)}."
            )
        sizes = [(image.shape[-2], image.shape[-1]) for image in tensors]
        height, width = _padded_size(sizes, size_divisibility, padding_constraints or {})

        if len(tensors) == 1:
            image = tensors[0]
            padding = (0, width - image.shape[-1], 0, height - image.shape[-2])
            batch = F.pad(image, padding, value=pad_value)[None]
        else:
            shape = (len(tensors), *tensors[0].shape[:-2], height, width)
            batch = tensors[0].new_full(shape, pad_value)
            for i, image in enumerate(tensors):
                batch[i, ..., : image.shape[-2], : image.shape[-1]].copy_(image)
        return ImageList(batch.contiguous(), sizes)


def _padded_size(
    sizes: list[tuple[int, int]], divisibility: int, constraints: dict[str, int]
) -> tuple[int, int]:
    """(height, width) of the batch, under the constraints of ``ImageList.from_tensors``."""
    height, width = (max(side) for side in zip(*sizes, strict=True))
    square = constraints.get("square_size", 0)
    if square > 0:
        height = width = square
    divisibility = constraints.get("size_divisibility", divisibility)
    if divisibility > 1:
        height = -(-height // divisibility) * divisibility
        width = -(-width // divisibility) * divisibility
    return height, width
