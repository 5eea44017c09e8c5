"""A seeded step and its detections against numbers that both Detectron2 gave.

Made with Detectron2 main of June 2026 and with the embedded runtime, which agreed to all digits:
with wrong numbers the test prints those that it found.
"""

import pytest

OBJECTS = ([([10, 10, 50, 40], 0), ([30, 5, 80, 60], 2)], [([20, 20, 41, 51], 1)])
VARIANTS = {
    "vgg16": {"config": "coco/vgg16_grcn"},
    "resnet": {"config": "coco/R_50_grcn"},
    "resnet_det": {"config": "coco/R_50_det"},
    "two_heads": {"config": "coco/vgg16_detect_s"},
    "fpn": {"config": "coco/R_50_FPN_grcn"},
}
OVERRIDES = {
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.1],  # not the objects alone
    "MODEL.RESNETS.NORM": "LN",
}
GOLDEN = {
    "vgg16": {
        "loss_cls": 1.4402826,
        "loss_box_reg": 2.6550622,
        "loss_rpn_cls": 0.51650846,
        "loss_rpn_loc": 0.0021831314,
        "gradient": 3.2102966,
        "scores_0": 17.261206,
        "boxes_0": 9569.748,
        "scores_1": 16.084074,
        "boxes_1": 9135.998,
    },
    "resnet": {
        "loss_cls": 1.0905135,
        "loss_box_reg": 2.3117664,
        "loss_rpn_cls": 0.52421361,
        "loss_rpn_loc": 0.0032421513,
        "gradient": 7.9410763,
        "scores_0": 14.059168,
        "boxes_0": 9310.6914,
        "scores_1": 15.41037,
        "boxes_1": 10743.522,
    },
    "resnet_det": {
        "loss_cls": 1.3590602,
        "loss_box_reg": 2.4459772,
        "loss_rpn_cls": 0.52592963,
        "loss_rpn_loc": 0.0023499753,
        "gradient": 6.3055773,
        "scores_0": 14.190696,
        "boxes_0": 7102.6567,
        "scores_1": 14.917874,
        "boxes_1": 7689.7305,
    },
    "two_heads": {
        "loss_cls": 1.3587333,
        "loss_box_reg": 2.1727793,
        "loss_rpn_cls": 0.51890147,
        "loss_rpn_loc": 0.0026079614,
        "gradient": 3.2138362,
        "scores_0": 16.567158,
        "boxes_0": 8537.042,
        "scores_1": 16.069891,
        "boxes_1": 7715.2061,
    },
    "fpn": {
        "loss_cls": 1.4661481,
        "loss_box_reg": 3.7292497,
        "loss_rpn_cls": 0.56909633,
        "loss_rpn_loc": 0.0052803,
        "gradient": 48.071819,
        "scores_0": 20.431522,
        "boxes_0": 10838.797,
        "scores_1": 21.556051,
        "boxes_1": 11562.527,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_gradients_and_detections(variant, build_tiny, make_batch, seeded_step):
    model = build_tiny(overrides=OVERRIDES, **VARIANTS[variant])
    figures, outputs = seeded_step(model, make_batch(*OBJECTS))
    for i, found in enumerate(outputs):
        assert len(found) > 0
        figures[f"scores_{i}"] = found.scores.sum().item()
        figures[f"boxes_{i}"] = found.pred_boxes.tensor.sum().item()
    assert figures == pytest.approx(GOLDEN[variant], rel=1e-4), figures
