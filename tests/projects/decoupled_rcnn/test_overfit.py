"""A small detector learns two images by heart, from given proposals."""

import pytest
import torch

OVERRIDES = {
    "MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals",
    "MODEL.FPN.OUT_CHANNELS": 32,
}


@pytest.mark.parametrize("stages", [1, 3])
def test_all_losses_fall_and_the_objects_are_found(stages, build_tiny, learn_by_heart, fall):
    history = learn_by_heart(build_tiny(OVERRIDES, NUM_REG_STAGES=stages), min_score=0.5)
    assert sum(name.startswith("loss_") for name in history[0]) == stages + 1
    assert fall(history, "loss_cls") < 0.75
    assert fall(history, "loss_box_reg_stage0") < 0.75
    if stages > 1:  # each stage begins with better boxes than the one before
        names = [f"decoupled/mean_iou_in_stage{k}" for k in range(stages)]
        mean = torch.tensor([[step[name] for name in names] for step in history[-20:]]).mean(dim=0)
        assert mean[0] + 0.03 < mean[1]
        assert mean[1] < mean[2] + 0.02
