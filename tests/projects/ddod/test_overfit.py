"""A small detector learns two images by heart."""

import pytest
import torch

from detectron2.structures import Boxes, pairwise_iou
from detectron2.utils.events import EventStorage

OBJECTS = ([([12, 10, 44, 42], 0), ([50, 20, 90, 60], 2)], [([20, 8, 70, 48], 1)])
COLORS = ((200.0, 40.0, 40.0), (40.0, 200.0, 40.0), (40.0, 40.0, 200.0))


def paint(item):
    """Fill each object with the colour of its class, on grey."""
    item["image"] = 110 + item["image"] * 0.05
    objects = item["instances"]
    for (x1, y1, x2, y2), label in zip(objects.gt_boxes.tensor.int(), objects.gt_classes):
        item["image"][:, y1:y2, x1:x2] = torch.tensor(COLORS[label])[:, None, None]


@pytest.mark.parametrize(
    "config", ["ddod_atss_R_50_FPN_1x", "ddod_fcos_R_50_FPN_1x", "ddod_retinanet_R_50_FPN_1x"]
)
def test_all_losses_fall_and_the_objects_are_found(config, build_tiny, make_batch):
    sides = [[24, 32], [48, 64], [96, 128], [192, 256], [384, 512]]
    if "retinanet" not in config:
        sides = [side[1:] for side in sides]
    model = build_tiny({"MODEL.ANCHOR_GENERATOR.SIZES": sides}, config=config, NORM="GN").train()
    batch = make_batch(*OBJECTS)
    for item in batch:
        paint(item)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    history = []
    with EventStorage(0):
        for _ in range(200):
            losses = model(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            history.append({name: loss.item() for name, loss in losses.items()})
    # The loss of a quality falls to its entropy only.
    for name, share in (("loss_cls", 0.5), ("loss_box_reg", 0.5), ("loss_iou", 0.95)):
        if name in history[0]:
            first = sum(losses[name] for losses in history[:10])
            last = sum(losses[name] for losses in history[-10:])
            assert last < share * first, name

    model.eval()
    with torch.no_grad():
        outputs = model([{k: v for k, v in item.items() if k != "instances"} for item in batch])
    for output, objects in zip(outputs, OBJECTS, strict=True):
        found = output["instances"]
        for box, label in objects:
            same = found[(found.pred_classes == label) & (found.scores > 0.3)]
            gt = Boxes(torch.tensor([box], dtype=torch.float32))
            assert len(same) and pairwise_iou(gt, same.pred_boxes).max() > 0.75, (box, label)
