"""A small detector learns two images by heart."""

import pytest


@pytest.mark.parametrize(
    "config", ["ddod_atss_R_50_FPN_1x", "ddod_fcos_R_50_FPN_1x", "ddod_retinanet_R_50_FPN_1x"]
)
def test_all_losses_fall_and_the_objects_are_found(config, build_tiny, learn_by_heart, fall):
    sides = [[24, 32], [48, 64], [96, 128], [192, 256], [384, 512]]
    if "retinanet" not in config:
        sides = [side[1:] for side in sides]
    model = build_tiny({"MODEL.ANCHOR_GENERATOR.SIZES": sides}, config=config, NORM="GN")
    history = learn_by_heart(model, min_score=0.3)
    # The loss of a quality falls to its entropy only.
    for name, share in (("loss_cls", 0.5), ("loss_box_reg", 0.5), ("loss_iou", 0.95)):
        if name in history[0]:
            assert fall(history, name) < share, name
