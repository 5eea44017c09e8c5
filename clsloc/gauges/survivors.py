"""Sets how many regions survive the score threshold, the same for every model.

With random weights all or none survive, and NMS rather than the network is timed. Here k regions
of each image get one class each above the threshold, whatever the features say; the layers that
compute the scores still run.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from clsloc.errors import UserError

_REGRESSOR = re.compile(r"(^|[._])(reg|bbox_pred)$")
_HIGH, _LOW = 1.0, -12.0  # logits: exp(-12) is below any threshold in use


@contextmanager
def fixed_survivors(
    model: nn.Module,
    num_classes: int,
    count: int,
    batch: int,
    level_cells: list[int] | None = None,
) -> Iterator[None]:
    """Inside, the class layers of ``model`` in evaluation mode let ``count`` regions of each
    image pass, evenly spread, their classes in turn.

    Works for RoI heads, whose class layers are linear with ``num_classes + 1`` outputs, and for
    dense heads, whose class layers are convolutions called ``cls_score``. A level of these gets its
    share by its number of cells, which all are known from the second pass on; ``level_cells`` is
    where they are kept, for a caller that enters this anew for each pass.

    Raises:
        UserError: the model has no such layer.
    """
    rois = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == num_classes + 1
        and not _REGRESSOR.search(name)  # four deltas, where there are three classes
    ]
    dense = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and name.endswith("cls_score")
    ]
    if not rois and not dense:
        raise UserError(
            f"No layer of the model scores {num_classes} classes, so that survivors cannot be "
            "set; leave out --survivors and give trained weights."
        )
    hooks = [m.register_forward_hook(_RoIScores(num_classes, count * batch)) for m in rois]
    cells = [] if level_cells is None else level_cells
    hooks += [m.register_forward_hook(_DenseScores(num_classes, count, cells)) for m in dense]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _RoIScores:
    """Replaces (R, C + 1) class logits."""

    def __init__(self, num_classes: int, count: int) -> None:
        self.num_classes = num_classes
        self.count = count

    def __call__(self, module: nn.Module, _: object, output: torch.Tensor) -> torch.Tensor | None:
        if module.training:
            return None
        rows, classes = spread(self.count, len(output), self.num_classes, output.device)
        logits = torch.full_like(output, _LOW)
        logits[:, -1] = 0.0
        # Distinct scores: ties would make the order of NMS a matter of chance.
        logits[rows, classes] = torch.linspace(
            _HIGH, 0, len(rows), device=output.device, dtype=output.dtype
        )
        return logits


class _DenseScores:
    """Replaces the (N, A * C, H, W) logits of each level; a level gets its share of ``count``
    by its number of cells, of which ``cells`` collects those of all levels."""

    def __init__(self, num_classes: int, count: int, cells: list[int]) -> None:
        self.num_classes = num_classes
        self.count = count
        self._cells = cells

    def __call__(self, module: nn.Module, _: object, output: torch.Tensor) -> torch.Tensor | None:
        if module.training:
            return None
        cells = output.shape[-2] * output.shape[-1]
        if cells not in self._cells:
            self._cells.append(cells)  # the levels differ in size
        share = max(1, round(self.count * cells / sum(self._cells)))
        where, classes = spread(share, cells, self.num_classes, output.device)
        logits = torch.full_like(output, _LOW).flatten(2)
        logits[:, classes, where] = torch.linspace(
            _HIGH, 0, len(where), device=output.device, dtype=output.dtype
        )
        return logits.view_as(output)


def spread(
    count: int, total: int, num_classes: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """``count`` of ``total`` rows, evenly spread, and a class for each, in turn."""
    count = min(count, total)
    rows = (torch.arange(count, device=device) * total) // max(count, 1)
    return rows, torch.arange(count, device=device) % num_classes
