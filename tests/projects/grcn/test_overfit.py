"""A small detector learns two images by heart, from given proposals."""

import pytest

OVERRIDES = {
    "MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 32,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.5,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 32,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 32,
}


@pytest.mark.parametrize("config", ["digits/split_C4", "digits/grcn_C4", "digits/det_C4"])
def test_all_losses_fall_and_the_objects_are_found(config, build_tiny, learn_by_heart, fall):
    history = learn_by_heart(build_tiny(config, OVERRIDES), steps=160, min_iou=0.65)
    for name in history[0]:
        if name.startswith("loss_"):
            assert fall(history, name) < 0.6, name
