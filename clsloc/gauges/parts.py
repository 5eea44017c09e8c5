"""How the time of one step is shared out among the parts of a detector."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

from torch import nn

from clsloc import nms
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import fast_rcnn

PARTS = {
    "backbone": "with its feature pyramid",
    "proposals": "the region proposal network with its NMS, in training with its losses",
    "pooling": "all RoI poolers",
    "heads": "what else the RoI heads do, in training with its losses; the head of a dense "
    "detector",
    "post-processing": "thresholds and NMS; in a dense detector the decoding of boxes too",
    "losses": "of a dense detector, with the assignment",
    "backward": "",
    "optimizer": "",
    "other": "normalising and batching of images, rescaling of detections",
}

Seconds = dict[str, float]


class PartClock:
    """Adds up seconds by part. The time of a part within another one counts for the inner alone.

    Attributes:
        seconds: by part.
    """

    def __init__(self, wait: Callable[[], None]) -> None:
        """
        Args:
            wait: returns when the device has done all that it was told.
        """
        self.seconds: Seconds = {}
        self._wait = wait
        self._open: list[str] = []
        self._since = 0.0

    def start(self, part: str) -> None:
        self._charge()
        self._open.append(part)

    def stop(self) -> None:
        """End the part that was started last."""
        self._charge()
        self._open.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.start(name)
        yield
        self.stop()

    def _charge(self) -> None:
        self._wait()
        now = time.perf_counter()
        if self._open:
            part = self._open[-1]
            self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now


@contextmanager
def watched(model: nn.Module, clock: PartClock) -> Iterator[None]:
    """Inside, the clock tells which part of a detector is running: an R-CNN's or a dense one's."""
    modules = [
        (getattr(model, "backbone", None), "backbone"),
        (getattr(model, "proposal_generator", None), "proposals"),
        (getattr(model, "roi_heads", None), "heads"),
        (getattr(model, "head", None), "heads"),
        *((module, "pooling") for module in model.modules() if isinstance(module, ROIPooler)),
    ]
    # The first two are looked up in their modules by all that post-process regions.
    functions = [
        (fast_rcnn, "fast_rcnn_inference_single_image", "post-processing"),
        (nms, "soft_nms", "post-processing"),
        (model, "forward_inference", "post-processing"),
        (model, "forward_training", "losses"),
    ]
    with ExitStack() as stack:
        for module, part in modules:
            if module is not None:
                before = module.register_forward_pre_hook(lambda *_, part=part: clock.start(part))
                after = module.register_forward_hook(lambda *_: clock.stop())
                stack.callback(before.remove)
                stack.callback(after.remove)
        for owner, name, part in functions:
            if hasattr(owner, name):
                stack.enter_context(_timed(owner, name, part, clock))
        yield


@contextmanager
def _timed(owner: Any, name: str, part: str, clock: PartClock) -> Iterator[None]:
    """Inside, the function ``owner.name`` counts for a part."""
    function = getattr(owner, name)
    own = vars(owner).get(name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        with clock.part(part):
            return function(*args, **kwargs)

    setattr(owner, name, timed)
    try:
        yield
    finally:
        if own is None:  # a method of the class
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def median_parts(steps: Sequence[Seconds]) -> Seconds:
    """The median of each part over steps, in the order of :data:`PARTS`; parts that no step has
    are left out."""
    return {
        part: median(step.get(part, 0.0) for step in steps)
        for part in PARTS
        if any(part in step for step in steps)
    }
