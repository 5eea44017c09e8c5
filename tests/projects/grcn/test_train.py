"""The program itself: trains, is broken off, resumes, evaluates, runs in two processes."""

import math

import pytest

GRCN = "grcn/configs/digits/grcn_C4.yaml"
DET = "grcn/configs/digits/det_C4.yaml"


@pytest.mark.parametrize("config", [GRCN, DET])
def test_a_resumed_run_equals_an_unbroken_one(config, train_resumed, monkeypatch):
    monkeypatch.setattr("grcn.roi_heads.LOG_PERIOD", 1)
    whole, _ = train_resumed(config)
    assert all(math.isfinite(whole.logged[f"loss_{name}"]) for name in ("cls", "box_reg"))
    assert ("grcn/context_entropy" in whole.logged) == (config == GRCN)


@pytest.mark.parametrize("config", [GRCN, DET])
def test_two_processes_train_as_one(config, train_in_two_processes):
    for run in train_in_two_processes(config):
        assert run.logged["loss_box_reg"] > 0
