"""A seeded step and its detections against numbers that both Detectron2 gave.

Made with Detectron2 main of June 2026 and with the embedded runtime, which agreed to all digits:
with wrong numbers the test prints those that it found.
"""

import pytest

OBJECTS = ([([10, 10, 50, 40], 0), ([30, 5, 80, 60], 2)], [([20, 20, 41, 51], 1)])
VARIANTS = {
    "faster": {},
    "cascade": {"config": "cascade_iou_uniform_R_50_FPN_1x"},
    "table_6": {"REG_BRANCH": "shared_with_cls", "REG_SAMPLES": "rpn", "IOU_SAMPLES": "rpn"},
}
FOREGROUND = {"MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.1]}  # not the objects alone
GOLDEN = {
    "faster": {
        "loss_cls": 1.4028572,
        "loss_box_reg": 0.53871018,
        "loss_iou": 0.35237607,
        "loss_rpn_cls": 0.69017726,
        "loss_rpn_loc": 0.0019582659,
        "gradient": 1.9638851,
        "scores_0": 3.0328629,
        "boxes_0": 14723.43,
        "scores_1": 2.9120488,
        "boxes_1": 15856.118,
    },
    "cascade": {
        "loss_cls_stage0": 1.4103168,
        "loss_box_reg_stage0": 0.5378074,
        "loss_iou_stage0": 0.40947661,
        "loss_cls_stage1": 0.66934395,
        "loss_box_reg_stage1": 0.59219247,
        "loss_iou_stage1": 0.23569572,
        "loss_cls_stage2": 0.34390265,
        "loss_box_reg_stage2": 0.4128516,
        "loss_iou_stage2": 0.13220821,
        "loss_rpn_cls": 0.69017726,
        "loss_rpn_loc": 0.0019582659,
        "gradient": 2.5031943,
        "scores_0": 0.97524333,
        "boxes_0": 15382.378,
        "scores_1": 1.2941819,
        "boxes_1": 15667.697,
    },
    "table_6": {
        "loss_cls": 1.4028572,
        "loss_box_reg": 1.7777433,
        "loss_iou": 0.29825237,
        "loss_rpn_cls": 0.69017726,
        "loss_rpn_loc": 0.0019582659,
        "gradient": 1.5274802,
        "scores_0": 3.0364501,
        "boxes_0": 14721.239,
        "scores_1": 2.9156342,
        "boxes_1": 15852.916,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_gradients_and_detections(variant, build_tiny, make_batch, seeded_step):
    # The stages of a cascade have thresholds of their own.
    model = build_tiny({} if variant == "cascade" else FOREGROUND, **VARIANTS[variant])
    figures, outputs = seeded_step(model, make_batch(*OBJECTS))
    for i, found in enumerate(outputs):
        assert len(found) > 0
        figures[f"scores_{i}"] = found.scores.sum().item()
        figures[f"boxes_{i}"] = found.pred_boxes.tensor.sum().item()
    assert figures == pytest.approx(GOLDEN[variant], rel=1e-4), figures
