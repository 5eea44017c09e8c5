"""What a training step trains on, written down while it runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detectron2.structures import Boxes

__all__ = ["SampleGroup", "is_recording", "record_samples", "recorded_samples"]


@dataclass
class SampleGroup:
    """
    Boxes of one batch that serve one purpose; one entry per image.

    Attributes:
        name: what they train.
        boxes: (R, 4), in the frame of the image as the model gets it.
        positive: (R,) bool, whether the box stands for an object.
        levels: (R,) the level of the pyramid, counted from 0; None where boxes have none.
    """

    name: str
    boxes: list[Tensor]
    positive: list[Tensor]
    levels: list[Tensor] | None = None


_active: list[SampleGroup] | None = None


def is_recording() -> bool:
    """Whether anybody wants to know; what is not at hand need not be computed otherwise."""
    return _active is not None


@torch.no_grad()
def record_samples(
    name: str,
    boxes: Sequence[Boxes | Tensor],
    positive: Sequence[Tensor] | None = None,
    levels: Sequence[Tensor] | None = None,
) -> None:
    """
    Note a group of samples, see `SampleGroup`; without `recorded_samples` nothing happens.

    Args:
        positive: None if all of them are.
    """
    if _active is None:
        return
    tensors = [b.tensor if isinstance(b, Boxes) else b for b in boxes]
    if positive is None:
        positive = [b.new_ones(len(b), dtype=torch.bool) for b in tensors]
    kept = None if levels is None else [level.cpu() for level in levels]
    _active.append(SampleGroup(name, [b.cpu() for b in tensors], [p.cpu() for p in positive], kept))


@contextmanager
def recorded_samples(model: nn.Module) -> Iterator[list[SampleGroup]]:
    """
    The list that the model's training steps fill inside of the context, group by group.

    A model notes what it draws by itself (`record_samples`). What Detectron2's own methods draw,
    the anchors of an RPN and the proposals of RoI heads, is noted as these are called.

    Args:
        model: a detector, not wrapped for several processes.
    """
    global _active
    before, _active = _active, []
    with ExitStack() as stack:
        rpn, heads = (getattr(model, name, None) for name in ("proposal_generator", "roi_heads"))
        if hasattr(rpn, "label_and_sample_anchors"):
            stack.enter_context(_watched(rpn, "label_and_sample_anchors", _record_anchors))
        if hasattr(heads, "label_and_sample_proposals"):
            note = _ProposalNotes(heads.num_classes)
            stack.enter_context(_watched(heads, "label_and_sample_proposals", note))
        try:
            yield _active
        finally:
            _active = before


@contextmanager
def _watched(
    module: nn.Module, method: str, note: Callable[[tuple[Any, ...], Any], None]
) -> Iterator[None]:
    """Call `note` with the arguments and the result of each call of a method of this object."""
    original = getattr(module, method)

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        note(args, result)
        return result

    setattr(module, method, watched)
    try:
        yield
    finally:
        delattr(module, method)  # that of the class remains


def _record_anchors(args: tuple[Any, ...], result: Any) -> None:
    levels = [boxes.tensor for boxes in args[0]]
    anchors = torch.cat(levels)
    numbers = torch.cat([torch.full((len(level),), i) for i, level in enumerate(levels)])
    labels = [label.cpu() for label in result[0]]
    rows = [(label >= 0).nonzero().flatten() for label in labels]
    record_samples(
        "RPN",
        [anchors.cpu()[r] for r in rows],
        [label[r] == 1 for label, r in zip(labels, rows, strict=True)],
        [numbers[r] for r in rows],
    )


class _ProposalNotes:
    """Numbers the calls in a step: a cascade samples at each stage."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def __call__(self, args: tuple[Any, ...], result: Any) -> None:
        stages = sum(group.name.startswith("RoI heads") for group in _active or ())
        record_samples(
            "RoI heads" + (f", stage {stages + 1}" if stages else ""),
            [p.proposal_boxes for p in result],
            [(p.gt_classes >= 0) & (p.gt_classes < self.num_classes) for p in result],
        )
