"""One model with fixed inputs, stepped from outside: inference or a training step."""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch

from clsloc.checkpoint import Checkpointer
from clsloc.engine.checks import class_count_key, get_value
from clsloc.errors import UserError
from clsloc.gauges.parts import PartClock, Seconds, watched
from clsloc.gauges.survivors import fixed_survivors
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

Kind = Literal["inference", "train_step"]
PartTimer = Callable[[str], AbstractContextManager]


class Workload:
    """The model of a config on synthetic images."""

    def __init__(
        self,
        cfg: CfgNode,
        *,
        size: tuple[int, int],
        batch: int = 1,
        num_gt: int = 10,
        survivors: int | None = None,
        weights: str = "",
        amp: bool = False,
        channels_last: bool = False,
        seed: int = 0,
    ) -> None:
        """
        Args:
            cfg: the model's, on the device of ``MODEL.DEVICE``.
            size: height and width of the images.
            batch: images in a step.
            num_gt: objects in each image.
            survivors: see :func:`~clsloc.gauges.survivors.fixed_survivors`; None: the scores are
                those of the weights.
            weights: a file; random weights if empty.
            amp: mixed precision, also if ``SOLVER.AMP.ENABLED`` says so: float16 on CUDA, bfloat16
                on a CPU, where training does not have it.
            channels_last: the memory format of the weights, which feature maps follow.

        Raises:
            UserError: a layer does not have this precision on this device.
        """
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.BASE_LR = 0.0  # a step costs the same and leaves the weights as they are
        torch.manual_seed(seed)
        self.model = build_model(cfg)
        if weights:
            Checkpointer(self.model, complete=True).load(weights)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(cfg, self.model)
        self.device = torch.device(cfg.MODEL.DEVICE)
        key = class_count_key(cfg)
        self.num_classes = int(get_value(cfg, key)) if key else 1
        self.inputs = synthetic_inputs(size, batch, num_gt, self.num_classes, seed)
        self.survivors = survivors
        self._level_cells: list[int] = []
        self.amp = amp or cfg.SOLVER.AMP.ENABLED
        on_cuda = self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp and on_cuda)
        if not weights:
            with calibrated_norms(self.model):
                self._infer()

    def measure(self, kind: Kind) -> float:
        """Run one step; returns its seconds."""
        run = self._step(kind)
        self._wait()
        start = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - start

    def measure_parts(self, kind: Kind) -> Seconds:
        """Run one step that waits for the device at every boundary; returns the seconds of each
        of :data:`~clsloc.gauges.parts.PARTS`, which add up to those of the step."""
        clock = PartClock(self._wait)
        with watched(self.model, clock), clock.part("other"):
            self._step(kind)(clock.part)
        return clock.seconds

    @property
    def precision(self) -> str:
        """In which the model computes, such as "float32"; with mixed precision the lower one."""
        dtype = torch.get_autocast_dtype(self.device.type) if self.amp else torch.float32
        return str(dtype).removeprefix("torch.")

    def peak_memory_mb(self) -> float:
        """The peak since the process began (CPU: resident memory; CUDA: allocated), in MiB."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return resident_peak_mb()

    def _step(self, kind: Kind) -> Callable[..., Any]:
        return self._infer if kind == "inference" else self._train

    def _infer(self, _: PartTimer = nullcontext) -> list[dict[str, Any]]:
        self.model.eval()
        survivors = nullcontext()
        if self.survivors is not None:
            survivors = fixed_survivors(
                self.model,
                self.num_classes,
                self.survivors,
                len(self.inputs),
                self._level_cells,
            )
        with survivors, torch.no_grad(), self._mixed_precision():
            return self.model(self.inputs)

    def _train(self, part: PartTimer = nullcontext) -> None:
        self.model.train()
        self.optimizer.zero_grad()
        with EventStorage(), self._mixed_precision():
            loss = sum(self.model(self.inputs).values())
        with part("backward"):
            self.scaler.scale(loss).backward()
        with part("optimizer"):
            self.scaler.step(self.optimizer)
            self.scaler.update()

    @contextmanager
    def _mixed_precision(self) -> Iterator[None]:
        try:
            with torch.autocast(self.device.type, enabled=self.amp):
                yield
        except RuntimeError as error:
            if not self.amp or "not implemented for" not in str(error):
                raise
            raise UserError(
                f"A layer cannot compute in {self.precision} on {self.device.type} ({error}); "
                "leave out --amp."
            ) from error

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextmanager
def calibrated_norms(model: torch.nn.Module) -> Iterator[None]:
    """A pass inside gives each batch norm of ``model`` the statistics of its own input.

    Frozen norms that were never trained do nothing: behind random weights features grow by
    thousands, boxes explode, and of a thousand proposals NMS leaves three.
    """

    def calibrate(norm: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if inputs[0].numel():
            x = inputs[0].detach().float()
            norm.running_mean.copy_(x.mean(dim=(0, 2, 3)))
            norm.running_var.copy_(x.var(dim=(0, 2, 3), correction=0).clamp(min=1e-6))

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, FrozenBatchNorm2d | torch.nn.BatchNorm2d):
                stack.callback(module.register_forward_pre_hook(calibrate).remove)
        yield


def resident_peak_mb() -> float:
    """The largest resident memory of this process so far, in MiB."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            (line,) = (line for line in file if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    except (OSError, ValueError):
        # Elsewhere than on Linux; there it would also count the process from which this one
        # was started.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def synthetic_inputs(
    size: tuple[int, int], batch: int, num_gt: int, num_classes: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Noise images with ``num_gt`` random boxes each, in the model's input format."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    inputs = []
    for _ in range(batch):
        centers = torch.rand(num_gt, 2, generator=generator) * 0.8 + 0.1
        halves = torch.rand(num_gt, 2, generator=generator) * 0.15 + 0.03
        boxes = torch.cat([centers - halves, centers + halves], dim=1).clamp(0, 1)
        instances = Instances(size)
        instances.gt_boxes = Boxes(boxes * torch.tensor([width, height, width, height]))
        instances.gt_classes = torch.randint(num_classes, (num_gt,), generator=generator)
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        inputs.append({"image": image, "height": height, "width": width, "instances": instances})
    return inputs
