"""Says where training stood when it went wrong."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

_SHOWN_FILES = 16


class StepRecorder:
    """Remembers the image files and the losses of the latest training step of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.files: list[str] = []
        self._losses: dict[str, torch.Tensor] = {}
        model.register_forward_pre_hook(self._before)
        model.register_forward_hook(self._after)

    def _before(self, module: nn.Module, inputs: tuple) -> None:
        if module.training:
            self._losses = {}
            batch = inputs[0] if inputs and isinstance(inputs[0], Sequence) else []
            self.files = [str(sample.get("file_name", "?")) for sample in batch]

    def _after(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        if module.training and isinstance(output, dict):
            # Detached, so that no graph outlives its step.
            self._losses = {name: loss.detach() for name, loss in output.items()}

    def losses(self) -> dict[str, float]:
        """The losses by name; empty if the step did not come that far."""
        return {name: float(loss) for name, loss in self._losses.items()}

    def describe(self, iteration: int, learning_rate: float) -> str:
        """One line: iteration (from 1), learning rate, every loss, the image files."""
        losses = self.losses()
        shown = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        files = ", ".join(self.files[:_SHOWN_FILES])
        rest = f" and {len(self.files) - _SHOWN_FILES} more" * (len(self.files) > _SHOWN_FILES)
        return (
            f"iteration {iteration + 1}, learning rate {learning_rate:.4g}, "
            f"losses: {shown or 'none yet'}; images: {files or 'none yet'}{rest}"
        )


def divergence_sentence(description: str) -> str:
    """For a loss, a prediction or a gradient that is not finite."""
    return (
        f"Training diverged at {description}. Lower SOLVER.BASE_LR or lengthen "
        "SOLVER.WARMUP_ITERS, turn on SOLVER.CLIP_GRADIENTS, and look at the boxes of these "
        "images with tools/check_dataset.py."
    )
