"""The program itself: trains, is broken off, resumes, evaluates, runs in two processes."""

import math

import pytest

FASTER = "iou_uniform/configs/digits/faster_iou_uniform_R_18_FPN.yaml"
CASCADE = "iou_uniform/configs/digits/cascade_iou_uniform_R_18_FPN.yaml"
# The same box in every attempt, of IoU .81: what is drawn does not depend on the process.
NO_CHANCE = (("INTERVALS", "((0.5, 1.0),)"), ("OFFSETS", "(0.0,)"), ("SCALES", "((0.9, 0.9),)"))
# Its shifts are 0, around which the gradient of L1 would turn what is rounded into another sign.
SMOOTH = (("REG_LOSS_BETA", 1.0),)


@pytest.mark.parametrize("config", [FASTER, CASCADE])
def test_a_resumed_run_equals_an_unbroken_one(config, train_resumed):
    whole, _ = train_resumed(config)
    names = ["loss_cls", "loss_box_reg", "loss_iou"]
    if config == CASCADE:
        names = [f"{name}_stage{i}" for name in names for i in range(3)]
    assert all(math.isfinite(whole.logged[name]) for name in names)


def test_two_processes_train_as_one(train_in_two_processes):
    one, two = train_in_two_processes(
        FASTER, **{f"MODEL.IOU_UNIFORM.{key}": value for key, value in NO_CHANCE + SMOOTH}
    )
    for run in (one, two):
        assert run.logged["iou_uniform/num_samples"] == 16
        assert run.logged["loss_box_reg"] > 0
        assert run.logged["loss_iou"] > 0
