"""Parameter groups, gradient clipping and learning-rate schedules, on either Detectron2."""

import math

import pytest
import torch
from torch import nn

from detectron2.config import CfgNode, get_cfg
from detectron2.solver import (
    LRMultiplier,
    WarmupCosineLR,
    WarmupMultiStepLR,
    build_lr_scheduler,
    build_optimizer,
    get_default_optimizer_params,
)
from detectron2.solver.build import maybe_add_gradient_clipping, reduce_param_groups


def _solver_cfg(**options) -> CfgNode:
    cfg = get_cfg()
    for name, value in options.items():
        cfg.SOLVER[name] = value
    return cfg


def _rates(scheduler, optimizer, iterations: int) -> list[float]:
    """The learning rate that each iteration uses."""
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(iterations - 1):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def _sgd(lr: float = 1.0) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def _built_rates(**options) -> list[float]:
    cfg = _solver_cfg(BASE_LR=1.0, **options)
    optimizer = _sgd()
    return _rates(build_lr_scheduler(cfg, optimizer), optimizer, cfg.SOLVER.MAX_ITER)


# Schedules


def test_multi_step_after_linear_warmup():
    rates = _built_rates(MAX_ITER=10, STEPS=(6, 8), WARMUP_ITERS=4, WARMUP_FACTOR=0.2, GAMMA=0.5)
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 0.5, 0.5, 0.25, 0.25])


def test_steps_beyond_the_last_iteration_are_ignored():
    options = {"MAX_ITER": 6, "WARMUP_ITERS": 0}
    assert _built_rates(STEPS=(2, 9), **options) == _built_rates(STEPS=(2,), **options)


def test_constant_warmup():
    rates = _built_rates(
        MAX_ITER=6, STEPS=(5,), WARMUP_ITERS=3, WARMUP_FACTOR=0.3, WARMUP_METHOD="constant"
    )
    assert rates == pytest.approx([0.3, 0.3, 0.3, 1, 1, 0.1])


def test_warmup_cuts_off_the_beginning_of_a_cosine():
    rates = _built_rates(
        LR_SCHEDULER_NAME="WarmupCosineLR",
        MAX_ITER=8,
        WARMUP_ITERS=2,
        WARMUP_FACTOR=0.0,
        BASE_LR_END=0.1,
    )
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    # The warm-up leads to where the cosine is at its end.
    assert rates == pytest.approx([0.0, cosine[2] / 2, *cosine[2:]])


def test_rescaled_cosine_starts_after_the_warmup():
    rates = _built_rates(
        LR_SCHEDULER_NAME="WarmupCosineLR",
        MAX_ITER=8,
        WARMUP_ITERS=2,
        WARMUP_FACTOR=0.0,
        RESCALE_INTERVAL=True,
    )
    cosine = [(1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)]
    assert rates == pytest.approx([0.0, 0.5, *cosine])


def test_step_with_fixed_gamma_decays_at_equal_distances():
    rates = _built_rates(
        LR_SCHEDULER_NAME="WarmupStepWithFixedGammaLR",
        MAX_ITER=9,
        WARMUP_ITERS=0,
        NUM_DECAYS=2,
        GAMMA=0.5,
    )
    assert rates == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25])


@pytest.mark.parametrize("option", ["LR_SCHEDULER_NAME", "WARMUP_METHOD"])
def test_unknown_names_raise(option):
    with pytest.raises(ValueError, match="nonsense"):
        build_lr_scheduler(_solver_cfg(**{option: "nonsense"}), _sgd())


def test_schedule_keeps_the_ratio_of_groups():
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [parameters[0]], "lr": 1.0}, {"params": [parameters[1]], "lr": 3.0}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    scheduler = build_lr_scheduler(_solver_cfg(MAX_ITER=10, STEPS=(5,), WARMUP_ITERS=4), optimizer)
    for _ in range(7):
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(3 * first)
        optimizer.step()
        scheduler.step()


def test_resumed_schedule_continues():
    options = {"MAX_ITER": 10, "STEPS": (6,), "WARMUP_ITERS": 3}
    optimizer = _sgd()
    scheduler = build_lr_scheduler(_solver_cfg(**options), optimizer)
    _rates(scheduler, optimizer, 6)
    state = scheduler.state_dict()
    # The schedule itself is configuration and not part of the state.
    assert set(state) == {"base_lrs", "last_epoch"}
    resumed_optimizer = _sgd()
    resumed = build_lr_scheduler(_solver_cfg(**options), resumed_optimizer)
    resumed.load_state_dict(state)
    resumed.step()
    scheduler.step()
    assert resumed.get_last_lr() == scheduler.get_last_lr()


def test_multiplier_has_to_be_a_param_scheduler():
    with pytest.raises(ValueError, match="ParamScheduler"):
        LRMultiplier(_sgd(), lambda where: 1.0, max_iter=10)


def test_older_schedulers():
    optimizer = _sgd()
    scheduler = WarmupMultiStepLR(optimizer, [3], warmup_factor=0.5, warmup_iters=2)
    assert _rates(scheduler, optimizer, 5) == pytest.approx([0.5, 0.75, 1, 0.1, 0.1])
    optimizer = _sgd()
    scheduler = WarmupCosineLR(optimizer, 4, warmup_factor=0.5, warmup_iters=2)
    expected = [0.5, 0.75 * (1 + math.cos(math.pi / 4)) / 2, 0.5]
    assert _rates(scheduler, optimizer, 3) == pytest.approx(expected)
    with pytest.raises(ValueError, match="5"):
        WarmupMultiStepLR(_sgd(), [9, 5])


# Parameter groups


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        self.fc = nn.Linear(2, 2)
        self.same_fc = self.fc
        self.tied = nn.Linear(2, 2, bias=False)
        self.tied.weight = self.fc.weight
        self.frozen = nn.Linear(2, 2)
        self.frozen.requires_grad_(False)


def _options(groups: list[dict], model: nn.Module) -> dict[str, dict]:
    """Options by parameter name; fails if a parameter is in two groups."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    result = {}
    for group in groups:
        for parameter in group["params"]:
            assert names[parameter] not in result
            result[names[parameter]] = {k: v for k, v in group.items() if k != "params"}
    return result


TRAINABLE = {"conv.weight", "conv.bias", "norm.weight", "norm.bias", "fc.weight", "fc.bias"}


def test_every_trainable_parameter_is_in_one_group_once():
    model = _Model()
    groups = get_default_optimizer_params(model, base_lr=0.1)
    assert len(groups) == 1
    assert set(_options(groups, model)) == TRAINABLE


def test_weight_decay_of_norms_and_biases():
    model = _Model()
    groups = get_default_optimizer_params(
        model, weight_decay=0.3, weight_decay_norm=0.2, weight_decay_bias=0.1
    )
    decays = {name: group["weight_decay"] for name, group in _options(groups, model).items()}
    assert decays == {
        "conv.weight": 0.3,
        "conv.bias": 0.1,
        "norm.weight": 0.2,
        "norm.bias": 0.1,  # the rule on biases wins
        "fc.weight": 0.3,
        "fc.bias": 0.1,
    }
    assert len(groups) == 3


def test_the_first_place_of_a_shared_parameter_decides():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2), nn.GroupNorm(1, 2))
    model[2].weight = model[1].bias
    groups = get_default_optimizer_params(model, weight_decay=0.3, weight_decay_bias=0.1)
    decays = {name: group["weight_decay"] for name, group in _options(groups, model).items()}
    assert decays == {"0.weight": 0.3, "1.weight": 0.3, "1.bias": 0.1, "2.bias": 0.1}


def test_learning_rate_factors():
    model = _Model()
    groups = get_default_optimizer_params(
        model,
        base_lr=1.0,
        bias_lr_factor=2.0,
        lr_factor_func=lambda name: 0.5 if name.startswith("conv") else 1.0,
    )
    rates = {name: group["lr"] for name, group in _options(groups, model).items()}
    assert rates["conv.weight"] == 0.5
    assert rates["conv.bias"] == rates["fc.bias"] == 2.0
    assert rates["fc.weight"] == rates["norm.weight"] == 1.0


def test_overrides_by_name():
    model = _Model()
    groups = get_default_optimizer_params(model, base_lr=1.0, overrides={"weight": {"momentum": 0}})
    options = _options(groups, model)
    assert options["fc.weight"] == {"lr": 1.0, "momentum": 0}
    assert options["fc.bias"] == {"lr": 1.0}


@pytest.mark.parametrize(
    "arguments",
    [
        {"bias_lr_factor": 2.0},
        {"lr_factor_func": lambda name: 1.0},
        {"weight_decay_bias": 0.1, "overrides": {"bias": {"lr": 1.0}}},
    ],
)
def test_contradictory_arguments_raise(arguments):
    with pytest.raises(ValueError, match=r"base_lr|bias"):
        get_default_optimizer_params(_Model(), **arguments)


def test_groups_with_equal_options_are_merged():
    groups = [
        {"params": ["a", "b"], "lr": 1.0},
        {"params": ["c"], "lr": 2.0},
        {"params": ["d"], "lr": 1.0},
        {"params": ["b"], "lr": 2.0},  # the later group wins
    ]
    assert reduce_param_groups(groups) == [
        {"params": ["a", "d"], "lr": 1.0},
        {"params": ["b", "c"], "lr": 2.0},
    ]


def test_build_optimizer_follows_the_config():
    model = _Model()
    cfg = _solver_cfg(
        BASE_LR=0.5, WEIGHT_DECAY=0.01, WEIGHT_DECAY_NORM=0.0, MOMENTUM=0.8, BIAS_LR_FACTOR=2.0
    )
    optimizer = build_optimizer(cfg, model)
    options = _options(optimizer.param_groups, model)
    assert type(optimizer) is torch.optim.SGD
    assert options["fc.weight"]["weight_decay"] == 0.01
    assert options["norm.weight"]["weight_decay"] == 0.0
    assert options["fc.bias"]["lr"] == 1.0
    assert all(group["momentum"] == 0.8 for group in options.values())


# Gradient clipping


def _clip_cfg(**options) -> CfgNode:
    cfg = get_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    for name, value in options.items():
        cfg.SOLVER.CLIP_GRADIENTS[name] = value
    return cfg


def _step(optimizer_class, gradients: list[list[float]]) -> list[list[float]]:
    """How far a step with learning rate 1 moves each parameter."""
    parameters = [nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    optimizer = optimizer_class(parameters, lr=1.0)
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = torch.tensor(gradient)
    optimizer.step()
    return [(-parameter).tolist() for parameter in parameters]


def test_clip_each_value():
    cfg = _clip_cfg(CLIP_TYPE="value", CLIP_VALUE=1.0)
    moved = _step(maybe_add_gradient_clipping(cfg, torch.optim.SGD), [[3.0, -0.5], [-4.0]])
    assert moved == [[1.0, -0.5], [-1.0]]


def test_clip_the_norm_of_each_parameter():
    cfg = _clip_cfg(CLIP_TYPE="norm", CLIP_VALUE=1.0, NORM_TYPE=2.0)
    moved = _step(maybe_add_gradient_clipping(cfg, torch.optim.SGD), [[3.0, 4.0], [0.5]])
    assert moved[0] == pytest.approx([0.6, 0.8], rel=1e-5)
    assert moved[1] == [0.5]


def test_clipping_can_be_added_to_an_optimizer_that_exists():
    cfg = _clip_cfg(CLIP_TYPE="value", CLIP_VALUE=0.25)
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    model = _Model()
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.SGD)
    before = model.fc.bias.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = 0.25 * cfg.SOLVER.BASE_LR
    torch.testing.assert_close(before - model.fc.bias, torch.full((2,), moved))


def test_no_clipping_by_default():
    assert maybe_add_gradient_clipping(get_cfg(), torch.optim.SGD) is torch.optim.SGD
