"""The program itself: trains, is broken off, resumes, evaluates, runs in two processes."""

import math

import pytest
import torch

CONFIGS = "ddod/configs/digits/{}_R_18_FPN.yaml"
TINY = {"MODEL.DDOD.NUM_CONVS": 1, "MODEL.DDOD.CONV_DIM": 32, "MODEL.DDOD.NUM_CLASSES": 3}
EMA = {"MODEL.DDOD.LOSS.NORMALIZER": "ema"}
ACC = "losses.reweighter.acc_cls"


@pytest.mark.parametrize("keys", [{}, EMA])
def test_a_resumed_run_equals_an_unbroken_one(keys, train_resumed):
    whole, resumed = train_resumed(CONFIGS.format("ddod_atss"), **TINY, **keys)
    assert all(math.isfinite(whole.logged[f"loss_{name}"]) for name in ("cls", "box_reg", "iou"))
    assert whole.logged["ddod/norm_cls"] >= 2
    # The counts of positives go on from those of the checkpoint.
    counts = [whole.weights(f)[ACC].sum() for f in ("model_0000001.pth", "model_final.pth")]
    assert 0 < counts[0] < counts[1] == resumed.weights()[ACC].sum()


def test_two_processes_train_as_one(train_in_two_processes):
    """Not with "ema": its average starts at 100 positives of a process, however many there are."""
    one, two = train_in_two_processes(CONFIGS.format("ddod_atss"), **TINY)
    counts = one.weights()[ACC]
    assert counts.sum() > 8
    assert torch.equal(two.weights()[ACC], counts)


def test_the_baseline_trains(train):
    assert math.isfinite(train(CONFIGS.format("atss_iou"), "run", **TINY).logged["total_loss"])


def test_a_resumed_run_of_faces_equals_an_unbroken_one(train_resumed):
    """With square crops, and a cosine that starts again at the step from which it resumes."""
    keys = {"SQUARE_CROP.SIZE": 64, "COLOR.BRIGHTNESS": 32.0, "COLOR.CONTRAST": 0.5}
    whole, _ = train_resumed(
        "ddod/configs/wider_face/small_data/ddod_face_R_18_FPN.yaml",
        **{f"CLSLOC.INPUT.{key}": value for key, value in keys.items()},
        **{**TINY, "MODEL.DDOD.CONV_DIM": 64},
        **{"SOLVER.WARMUP_ITERS": 0, "MODEL.RESNETS.NORM": "GN", "MODEL.WEIGHTS": ""},
    )
    assert whole.logged["loss_box_reg"] > 0
    # Of four steps in two cycles the last is in the middle of the second.
    assert whole.logged["lr"] == pytest.approx((0.01 + 0.0001) / 2)
