"""A seeded step and its detections against numbers that both Detectron2 gave.

Made with Detectron2 main of June 2026 and with the embedded runtime, which agreed to all digits:
with wrong numbers the test prints those that it found.
"""

import pytest

OBJECTS = ([([10, 10, 50, 40], 0), ([30, 5, 80, 60], 2)], [([20, 20, 41, 51], 1)])
VARIANTS = {
    "three_stages": {},
    "cascade_cls": {"CASCADE_CLS": True, "CLS_AGNOSTIC": (True, True, True)},
}
GOLDEN = {
    "three_stages": {
        "loss_cls": 1.2193679,
        "loss_box_reg_stage0": 0.023616211,
        "loss_box_reg_stage1": 0.025982978,
        "loss_box_reg_stage2": 0.019837089,
        "loss_rpn_cls": 0.70299006,
        "loss_rpn_loc": 0.0036274027,
        "gradient": 18.419859,
        "scores": [24.865355, 25.529501],
    },
    "cascade_cls": {
        "loss_cls_stage0": 1.1973938,
        "loss_cls_stage1": 0.41929722,
        "loss_cls_stage2": 0.26075321,
        "loss_box_reg_stage0": 0.016740022,
        "loss_box_reg_stage1": 0.012242389,
        "loss_box_reg_stage2": 0.013423911,
        "loss_rpn_cls": 0.70299006,
        "loss_rpn_loc": 0.0036274027,
        "gradient": 18.277098,
        "scores": [21.247782, 22.046401],
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_gradients_and_detections(variant, build_tiny, make_batch, seeded_step):
    model = build_tiny(REG_APPEND_GT=True, **VARIANTS[variant])
    figures, outputs = seeded_step(model, make_batch(*OBJECTS))
    expected = dict(GOLDEN[variant])
    scores = [found.scores.sum().item() for found in outputs]
    assert scores == pytest.approx(expected.pop("scores"), rel=1e-4)
    assert figures == pytest.approx(expected, rel=1e-4), figures
