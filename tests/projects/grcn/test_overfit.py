"""A small detector learns two images by heart, from given proposals."""

import pytest
import torch

from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage

OBJECTS = ([([12, 10, 44, 42], 0), ([50, 20, 90, 60], 2)], [([20, 8, 70, 48], 1)])
COLORS = ((200.0, 40.0, 40.0), (40.0, 200.0, 40.0), (40.0, 40.0, 200.0))
OVERRIDES = {
    "MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 32,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.5,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 32,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 32,
}


def paint(item):
    """Fill each object with the colour of its class, on grey."""
    item["image"] = 110 + item["image"] * 0.05
    objects = item["instances"]
    for (x1, y1, x2, y2), label in zip(objects.gt_boxes.tensor.int(), objects.gt_classes):
        item["image"][:, y1:y2, x1:x2] = torch.tensor(COLORS[label])[:, None, None]


def propose(item, generator):
    """20 boxes around each object and 20 anywhere."""
    gt_boxes = item["instances"].gt_boxes.tensor
    sizes = (gt_boxes[:, 2:] - gt_boxes[:, :2]).repeat(1, 2)
    noise = torch.randn(20, len(gt_boxes), 4, generator=generator) * 0.12
    corners = torch.rand(20, 2, 2, generator=generator) * torch.tensor([96.0, 64.0])
    anywhere = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    boxes = Boxes(torch.cat([(gt_boxes + noise * sizes).flatten(0, 1), anywhere]))
    boxes.clip((64, 96))
    item["proposals"] = Instances((64, 96), proposal_boxes=boxes)
    item["proposals"].objectness_logits = torch.zeros(len(boxes))


@pytest.mark.parametrize("config", ["digits/split_C4", "digits/grcn_C4", "digits/det_C4"])
def test_all_losses_fall_and_the_objects_are_found(config, build_tiny, make_batch):
    model = build_tiny(config, OVERRIDES).train()
    batch, generator = make_batch(*OBJECTS), torch.Generator().manual_seed(0)
    for item in batch:
        paint(item)
        propose(item, generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    history = []
    with EventStorage(0):
        for _ in range(160):
            losses = model(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            history.append({name: loss.item() for name, loss in losses.items()})
    for name in history[0]:
        first = sum(losses[name] for losses in history[:10])
        last = sum(losses[name] for losses in history[-10:])
        assert last < 0.6 * first, name

    model.eval()
    with torch.no_grad():
        outputs = model([{k: v for k, v in item.items() if k != "instances"} for item in batch])
    for output, objects in zip(outputs, OBJECTS, strict=True):
        found = output["instances"]
        for box, label in objects:
            same = found[(found.pred_classes == label) & (found.scores > 0.4)]
            gt = Boxes(torch.tensor([box], dtype=torch.float32))
            assert pairwise_iou(gt, same.pred_boxes).max() > 0.65, (box, label)
