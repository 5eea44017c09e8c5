"""The program itself: trains, is broken off, resumes, evaluates, runs in two processes."""

import math

import pytest

VANILLA = "double_head/configs/digits/double_head_R_18_FPN.yaml"
EXT = "double_head/configs/digits/double_head_ext_R_18_FPN.yaml"
TINY_TOWER = {"MODEL.DOUBLE_HEAD.CONV_DIM": 32, "MODEL.DOUBLE_HEAD.NONLOCAL.INTER_DIM": 8}
GN = {  # has 32 groups
    "MODEL.DOUBLE_HEAD.NORM": "GN",
    "MODEL.DOUBLE_HEAD.CONV_DIM": 128,
    "MODEL.FPN.OUT_CHANNELS": 32,
}


@pytest.mark.parametrize("config", [VANILLA, EXT])
def test_a_resumed_run_equals_an_unbroken_one(config, train_resumed):
    whole, _ = train_resumed(config, **TINY_TOWER)
    names = ["cls_fc", "box_reg_conv"] + ["box_reg_fc", "cls_conv"] * (config == EXT)
    assert all(math.isfinite(whole.logged[f"loss_{name}"]) for name in names)


def test_two_processes_train_as_one(train_in_two_processes):
    train_in_two_processes(EXT, **{**TINY_TOWER, **GN})
