"""A small detector learns two images by heart, from given proposals."""

import pytest

OVERRIDES = {
    "MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals",
    "MODEL.DOUBLE_HEAD.CONV_DIM": 64,
    "MODEL.DOUBLE_HEAD.NONLOCAL.ZERO_INIT": "norm",
}


@pytest.mark.parametrize(
    "keys", [{}, {"LAMBDA_FC": 0.7, "LAMBDA_CONV": 0.8}], ids=["vanilla", "ext"]
)
def test_all_losses_fall_and_the_objects_are_found(keys, build_tiny, learn_by_heart, fall):
    model = build_tiny(OVERRIDES, seed=1, **keys)
    history = learn_by_heart(model, steps=250, lr=0.04, min_score=0.5, min_iou=0.7)
    names = [name for name in history[0] if name.startswith("loss_")]
    assert len(names) == (4 if keys else 2)
    for name in names:
        assert fall(history, name) < 0.75, name
