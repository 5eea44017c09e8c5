"""A small detector learns two images by heart, from given proposals."""

import pytest

OVERRIDES = {"MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals"}
FEW = {"SAMPLES_PER_GT": 16, "ATTEMPTS": 100}
CASCADE = {"ATTEMPTS": 100, "CASCADE.SAMPLES_PER_GT": (16, 16, 12)}


@pytest.mark.parametrize("method, keys", [("faster", FEW), ("cascade", CASCADE)])
def test_all_losses_fall_and_the_objects_are_found(method, keys, build_tiny, learn_by_heart, fall):
    config = f"{method}_iou_uniform_R_50_FPN_1x"
    history = learn_by_heart(build_tiny(OVERRIDES, config=config, **keys), lr=0.04)
    for name in history[0]:
        if name.startswith("loss_"):
            assert fall(history, name) < 0.75, name
