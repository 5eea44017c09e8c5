"""A seeded step and its detections against numbers that both Detectron2 gave.

Made with Detectron2 main of June 2026 and with the embedded runtime, which agreed to all digits:
with wrong numbers the test prints those that it found.
"""

import pytest
import torch

from detectron2.utils.events import EventStorage

OBJECTS = ([([10, 10, 50, 40], 0), ([30, 5, 80, 60], 2)], [([20, 20, 41, 51], 1)])
GOLDEN = {
    "atss_iou_R_50_FPN_1x": {
        "loss_cls": 0.57093507,
        "loss_box_reg": 1.2686806,
        "loss_iou": 0.82163692,
        "gradient": 6.2874622,
        "scores": 4.8584778,
    },
    "atss_centerness_R_50_FPN_1x": {
        "loss_cls": 0.57093507,
        "loss_box_reg": 1.1725965,
        "loss_centerness": 0.75729018,
        "gradient": 5.3708529,
        "scores": 4.8584778,
    },
    "retinanet_R_50_FPN_1x": {
        "loss_cls": 0.6009804,
        "loss_box_reg": 0.69996905,
        "gradient": 1.3711029,
        "scores": 14.822436,
    },
    "ddod_atss_R_50_FPN_1x": {
        "loss_cls": 0.50333291,
        "loss_box_reg": 1.2841793,
        "loss_iou": 0.67691773,
        "gradient": 5.4076056,
        "scores": 4.3189505,
    },
    "ddod_fcos_R_50_FPN_1x": {
        "loss_cls": 0.59493417,
        "loss_box_reg": 1.4762576,
        "loss_iou": 0.80720419,
        "gradient": 13.051458,
        "scores": 10.637925,
    },
    "ddod_retinanet_R_50_FPN_1x": {
        "loss_cls": 0.61161101,
        "loss_box_reg": 0.94427675,
        "gradient": 1.0757176,
        "scores": 14.591345,
    },
}


@pytest.mark.parametrize("config", GOLDEN)
def test_losses_gradients_and_detections(config, build_tiny, make_batch):
    model = build_tiny(config=config, **{"TEST.SCORE_THRESH": 0.02}).train()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.02)
        model.head.cls_score.bias += 2.0  # some detections
    batch = make_batch(*OBJECTS)
    with EventStorage(0):
        losses = model(batch)
    sum(losses.values()).backward()
    found = {name: loss.item() for name, loss in losses.items()}
    found["gradient"] = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
    model.eval()
    with torch.no_grad():
        outputs = [output["instances"] for output in model(batch)]
    assert min(len(output) for output in outputs) > 5
    found["scores"] = sum(output.scores.sum().item() for output in outputs)
    assert found == pytest.approx(GOLDEN[config], rel=1e-4), found
