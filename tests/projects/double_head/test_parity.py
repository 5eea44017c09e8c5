"""A seeded step and its detections against numbers that both Detectron2 gave.

Made with Detectron2 main of June 2026 and with the embedded runtime, which agreed to all digits:
with wrong numbers the test prints those that it found.
"""

import pytest

OBJECTS = ([([10, 10, 50, 40], 0), ([30, 5, 80, 60], 2)], [([20, 20, 41, 51], 1)])
VARIANTS = {"vanilla": {}, "ext": {"LAMBDA_FC": 0.7, "LAMBDA_CONV": 0.8}}
GOLDEN = {
    "vanilla": {
        "loss_cls_fc": 2.7555501,
        "loss_box_reg_conv": 0.0092603397,
        "loss_rpn_cls": 0.69254798,
        "loss_rpn_loc": 0.0020184815,
        "gradient": 3.252625,
        "scores": [25.100414, 25.126316],
    },
    "ext": {
        "loss_cls_fc": 1.9288851,
        "loss_box_reg_fc": 0.00019534679,
        "loss_cls_conv": 0.77447969,
        "loss_box_reg_conv": 0.0048764055,
        "loss_rpn_cls": 0.69254798,
        "loss_rpn_loc": 0.0020184815,
        "gradient": 5.3125677,
        "scores": [43.903069, 43.953991],
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_gradients_and_detections(variant, build_tiny, make_batch, seeded_step):
    model = build_tiny(**VARIANTS[variant])
    figures, outputs = seeded_step(model, make_batch(*OBJECTS))
    expected = dict(GOLDEN[variant])
    scores = [found.scores.sum().item() for found in outputs]
    assert scores == pytest.approx(expected.pop("scores"), rel=1e-4)
    assert figures == pytest.approx(expected, rel=1e-4), figures
