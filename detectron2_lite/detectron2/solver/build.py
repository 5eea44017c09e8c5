"""The optimizer with its parameter groups, gradient clipping, and the learning-rate schedule."""

import logging
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from torch import nn

from detectron2.config import CfgNode
from detectron2.solver.lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler

_GradientClipper = Callable[[torch.Tensor | Iterable[torch.Tensor]], None]

_NORM_MODULES = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


class GradientClipType(Enum):
    """What ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` limits, for each parameter by itself."""

    VALUE = "value"
    NORM = "norm"


def _create_gradient_clipper(cfg: CfgNode) -> _GradientClipper:
    """The clipping function that a ``CLIP_GRADIENTS`` node describes."""
    clip_type, limit, norm_type = GradientClipType(cfg.CLIP_TYPE), cfg.CLIP_VALUE, cfg.NORM_TYPE

    def clip(parameters: torch.Tensor | Iterable[torch.Tensor]) -> None:
        if clip_type is GradientClipType.VALUE:
            nn.utils.clip_grad_value_(parameters, limit)
        else:
            nn.utils.clip_grad_norm_(parameters, limit, norm_type)

    return clip


def _generate_optimizer_class_with_gradient_clipping(
    optimizer: type[torch.optim.Optimizer],
    *,
    per_param_clipper: _GradientClipper | None = None,
    global_clipper: _GradientClipper | None = None,
) -> type[torch.optim.Optimizer]:
    """A subclass of an optimizer class whose ``step`` clips gradients first.

    Args:
        optimizer: the class to extend.
        per_param_clipper: called with each parameter.
        global_clipper: called once with the list of all parameters; not together with the other.
    """
    assert per_param_clipper is None or global_clipper is None, (
        "Clip either each parameter or all together, not both."
    )

    def step(self: torch.optim.Optimizer, closure: Callable | None = None) -> Any:
        parameters = [p for group in self.param_groups for p in group["params"]]
        if per_param_clipper is not None:
            for parameter in parameters:
                per_param_clipper(parameter)
        else:
            global_clipper(parameters)
        return optimizer.step(self, closure)

    return type(optimizer.__name__ + "WithGradientClip", (optimizer,), {"step": step})


def maybe_add_gradient_clipping(
    cfg: CfgNode, optimizer: type[torch.optim.Optimizer] | torch.optim.Optimizer
) -> type[torch.optim.Optimizer] | torch.optim.Optimizer:
    """Make an optimizer (or a class of optimizers) clip gradients, if the config says so.

    Args:
        cfg: ``SOLVER.CLIP_GRADIENTS`` is read.
        optimizer: an instance, which changes its class, or a class, which stays as it is.

    Returns:
        The same instance, or a subclass of the class; ``optimizer`` itself without clipping.
    """
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        return optimizer
    is_instance = isinstance(optimizer, torch.optim.Optimizer)
    base = type(optimizer) if is_instance else optimizer
    assert issubclass(base, torch.optim.Optimizer), f"{base} is not a torch optimizer."
    clipping = _generate_optimizer_class_with_gradient_clipping(
        base, per_param_clipper=_create_gradient_clipper(cfg.SOLVER.CLIP_GRADIENTS)
    )
    if not is_instance:
        return clipping
    optimizer.__class__ = clipping
    return optimizer


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD over the model's trainable parameters as the ``SOLVER`` node describes."""
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    optimizer = torch.optim.SGD(
        groups,
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        weight_decay=solver.WEIGHT_DECAY,
        foreach=True,
    )
    return maybe_add_gradient_clipping(cfg, optimizer)


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer, with the usual exceptions for norms and biases.

    What is ``None`` is left to the optimizer's own default. Later rules win: the module's kind,
    ``lr_factor_func``, then ``overrides`` (to which the rules on biases belong).

    Args:
        model: its trainable parameters are listed, each once.
        base_lr: learning rate of every parameter; needed for a factor to act on.
        weight_decay: weight decay of every parameter.
        weight_decay_norm: weight decay of the parameters of normalisation layers.
        bias_lr_factor: multiplies ``base_lr`` for parameters called ``bias``.
        weight_decay_bias: weight decay of parameters called ``bias``.
        lr_factor_func: full parameter name -> factor on the learning rate.
        overrides: parameter's own name (``"weight"``) -> options to set for it.

    Returns:
        Groups, as few as there are different sets of options.
    """
    defaults = _without_none(lr=base_lr, weight_decay=weight_decay)
    norm_options = _without_none(weight_decay=weight_decay_norm)
    overrides = _add_bias_override(overrides, base_lr, bias_lr_factor, weight_decay_bias)
    if lr_factor_func is not None and base_lr is None:
        raise ValueError("lr_factor_func needs base_lr to multiply.")

    groups, seen = [], set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            options = dict(defaults)
            if isinstance(module, _NORM_MODULES):
                options.update(norm_options)
            if lr_factor_func is not None:
                options["lr"] *= lr_factor_func(f"{module_name}.{name}")
            options.update(overrides.get(name, {}))
            groups.append({"params": [parameter], **options})
    return reduce_param_groups(groups)


def _without_none(**options: float | None) -> dict[str, float]:
    return {name: value for name, value in options.items() if value is not None}


def _add_bias_override(
    overrides: dict[str, dict[str, float]] | None,
    base_lr: float | None,
    bias_lr_factor: float | None,
    weight_decay_bias: float | None,
) -> dict[str, dict[str, float]]:
    bias = _without_none(weight_decay=weight_decay_bias)
    if bias_lr_factor is not None and bias_lr_factor != 1.0:
        if base_lr is None:
            raise ValueError(f"bias_lr_factor={bias_lr_factor} needs base_lr to multiply.")
        bias["lr"] = base_lr * bias_lr_factor
    overrides = dict(overrides or {})
    if bias:
        if "bias" in overrides:
            raise ValueError(
                f"overrides['bias']={overrides['bias']} conflicts with {bias}, which follow from "
                "bias_lr_factor and weight_decay_bias; give one of them."
            )
        overrides["bias"] = bias
    return overrides


def _expand_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One group per parameter; where it is in several groups, later ones win per option."""
    options: dict[Any, dict[str, Any]] = {}
    for group in params:
        shared = {name: value for name, value in group.items() if name != "params"}
        for parameter in group["params"]:
            options.setdefault(parameter, {"params": [parameter]}).update(shared)
    return list(options.values())


def reduce_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge groups with equal options and split what is in several groups.

    Few large groups let the optimizer update many tensors at once.

    Args:
        params: groups as torch optimizers take them.

    Returns:
        Groups in the order in which their options first appear.
    """
    merged: dict[tuple, list] = {}
    for group in _expand_param_groups(params):
        options = tuple((name, value) for name, value in group.items() if name != "params")
        merged.setdefault(options, []).extend(group["params"])
    return [{"params": parameters, **dict(options)} for options, parameters in merged.items()]


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The schedule named by ``SOLVER.LR_SCHEDULER_NAME``, after the warm-up of ``SOLVER``."""
    solver = cfg.SOLVER
    warmed_up = WarmupParamScheduler(
        _build_multiplier(solver),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=warmed_up, max_iter=solver.MAX_ITER)


def _build_multiplier(solver: CfgNode) -> ParamScheduler:
    name = solver.LR_SCHEDULER_NAME
    if name == "WarmupMultiStepLR":
        steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
        if len(steps) != len(solver.STEPS):
            logging.getLogger(__name__).warning(
                f"SOLVER.STEPS {tuple(solver.STEPS)} beyond SOLVER.MAX_ITER {solver.MAX_ITER} "
                "are ignored."
            )
        return MultiStepParamScheduler(
            values=[solver.GAMMA**k for k in range(len(steps) + 1)],
            milestones=steps,
            num_updates=solver.MAX_ITER,
        )
    if name == "WarmupCosineLR":
        end_value = solver.BASE_LR_END / solver.BASE_LR
        assert 0.0 <= end_value <= 1.0, (
            f"SOLVER.BASE_LR_END {solver.BASE_LR_END} has to lie between 0 and SOLVER.BASE_LR "
            f"{solver.BASE_LR}."
        )
        return CosineParamScheduler(1, end_value)
    if name == "WarmupStepWithFixedGammaLR":
        return StepWithFixedGammaParamScheduler(
            base_value=1.0,
            gamma=solver.GAMMA,
            num_decays=solver.NUM_DECAYS,
            num_updates=solver.MAX_ITER,
        )
    raise ValueError(
        f"Unknown SOLVER.LR_SCHEDULER_NAME {name!r}; use WarmupMultiStepLR, WarmupCosineLR or "
        "WarmupStepWithFixedGammaLR."
    )
