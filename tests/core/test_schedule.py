"""The cosine that starts again, against values by hand."""

import math

import pytest
import torch

from clsloc.engine import setup_cfg
from clsloc.engine.schedule import build_lr_scheduler
from clsloc.errors import UserError
from detectron2.solver import build_lr_scheduler as build_detectron2_scheduler

KEYS = {
    "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineRestartsLR",
    "SOLVER.BASE_LR": 1.0,
    "SOLVER.BASE_LR_END": 0.01,
    "SOLVER.MAX_ITER": 12,
    "SOLVER.WARMUP_ITERS": 0,
    "CLSLOC.SOLVER.CYCLES": 3,
}


def make(build=build_lr_scheduler, **keys):
    items = {**KEYS, **{key.replace("__", "."): value for key, value in keys.items()}}
    cfg = setup_cfg(overrides=[item for pair in items.items() for item in pair])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    return build(cfg, optimizer)


def rates(scheduler, count):
    found = []
    for _ in range(count):
        found.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def cosine(share, end=0.01):
    return end + (1 - end) * (1 + math.cos(math.pi * share)) / 2


def test_cycles_by_hand():
    cycle = [1.0, cosine(0.25), 0.505, cosine(0.75)]
    assert rates(make(), 12) == pytest.approx(cycle * 3)


def test_the_warm_up_cuts_off_the_beginning_of_the_first_cycle():
    found = rates(make(SOLVER__WARMUP_ITERS=2, SOLVER__WARMUP_FACTOR=0.1), 12)
    cycle = [1.0, cosine(0.25), 0.505, cosine(0.75)]
    assert found == pytest.approx([0.1, (0.1 + 0.505) / 2, *cycle[2:], *cycle * 2])


def test_every_cycle_of_the_faces_starts_at_its_iteration():
    """Shares of 322,000 iterations are no exact numbers: none may fall into the cycle before."""
    scheduler = make(
        SOLVER__BASE_LR=0.0075,
        SOLVER__BASE_LR_END=0.000075,
        SOLVER__MAX_ITER=322000,
        SOLVER__WARMUP_ITERS=500,
        CLSLOC__SOLVER__CYCLES=20,
    )
    for cycle in range(1, 20):
        scheduler.last_epoch = 16100 * cycle
        assert scheduler.get_lr() == pytest.approx([0.0075])
        scheduler.last_epoch -= 1
        assert scheduler.get_lr() == pytest.approx([0.000075], rel=1e-4)
    scheduler.last_epoch = 16100 * 7 + 8050
    assert scheduler.get_lr() == pytest.approx([0.0037875])


def test_a_resumed_schedule_goes_on():
    whole = make()
    expected = rates(whole, 12)
    first, second = make(), make()
    assert rates(first, 7) == expected[:7]
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert rates(second, 5) == expected[7:]


def test_one_cycle_is_the_cosine_of_detectron2():
    plain = make(build_detectron2_scheduler, SOLVER__LR_SCHEDULER_NAME="WarmupCosineLR")
    assert rates(make(CLSLOC__SOLVER__CYCLES=1), 12) == rates(plain, 12)
    plain = make(SOLVER__LR_SCHEDULER_NAME="WarmupCosineLR")
    assert rates(make(CLSLOC__SOLVER__CYCLES=1), 12) == rates(plain, 12)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"CLSLOC__SOLVER__CYCLES": 0}, "CYCLES is at least 1 and at most .* 12, got 0"),
        ({"CLSLOC__SOLVER__CYCLES": 13}, "got 13"),
        ({"SOLVER__BASE_LR_END": 2.0}, "between 0 and SOLVER.BASE_LR 1, got 2"),
    ],
)
def test_impossible_cycles_are_refused(keys, message):
    with pytest.raises(UserError, match=message):
        make(**keys)
