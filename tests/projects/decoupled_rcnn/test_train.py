"""The program itself: trains, is broken off, resumes, evaluates, runs in two processes."""

import math

import pytest

CONFIG = "decoupled_rcnn/configs/digits/decoupled_cascade_R_18_FPN.yaml"


def test_a_resumed_run_equals_an_unbroken_one(train_resumed):
    whole, _ = train_resumed(CONFIG)
    assert all(math.isfinite(whole.logged[f"loss_box_reg_stage{k}"]) for k in range(3))
    assert whole.logged["decoupled/num_proposals_reg"] > 0


# The mini-batch of a process is that of its own images: ten proposals and an object in each.
@pytest.mark.parametrize("classifiers", [1, 3])
def test_two_processes_train_as_one(classifiers, train_in_two_processes):
    keys = {"POST_NMS_TOPK_REG_TRAIN": 10, "REG_APPEND_GT": True, "CASCADE_CLS": classifiers == 3}
    one, two = train_in_two_processes(
        CONFIG, **{f"MODEL.DECOUPLED.{key}": value for key, value in keys.items()}
    )
    assert one.logged["loss_box_reg_stage0"] > 0
    names = [f"decoupled/num_proposals_{task}" for task in ("cls", "reg")]
    assert [run.logged[name] for run in (one, two) for name in names] == [10] * 4
