"""Boxes of crowds reach the model, beside the instances and transformed as they are."""

import numpy as np
import pytest
import torch
from PIL import Image

from clsloc.config import add_core_config
from clsloc.data.crowd_mapper import CrowdMapper
from clsloc.data.train_data import build_train_loader
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode


def annotation(box, crowd=0, **more):
    return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": crowd, **more}


@pytest.fixture
def sample(tmp_path):
    """An image of 40x60 with an object and two crowds, one of which has a mask of run lengths."""
    file = tmp_path / "image.png"
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(file)
    mask = {"segmentation": {"size": [40, 60], "counts": [0, 2400]}}
    crowds = [annotation([10, 0, 10, 20], 1, **mask), annotation([50, 30, 30, 30], 1)]
    annotations = [crowds[0], annotation([20, 10, 10, 10]), crowds[1]]
    size = {"height": 40, "width": 60}
    return {"file_name": str(file), "image_id": 1, "annotations": annotations, **size}


def config(flip):
    cfg = get_cfg()
    add_core_config(cfg)
    cfg.INPUT.MIN_SIZE_TRAIN = (80,)
    cfg.INPUT.RANDOM_FLIP = "horizontal" if flip else "none"
    return cfg


def test_crowds_are_scaled_and_clipped_with_the_image(sample):
    mapped = CrowdMapper(config(flip=False), is_train=True)(sample)
    assert mapped["crowd_boxes"].tolist() == [[20, 0, 40, 40], [100, 60, 120, 80]]
    assert mapped["crowd_boxes"].dtype == torch.float32
    assert mapped["instances"].gt_boxes.tensor.tolist() == [[40, 20, 60, 40]]
    assert len(sample["annotations"]) == 3


def test_crowds_are_flipped_with_the_image(sample):
    mapper, seen = CrowdMapper(config(flip=True), is_train=True), set()
    for _ in range(20):
        mapped = mapper(sample)
        flipped = mapped["instances"].gt_boxes.tensor[0, 0] == 60
        assert mapped["crowd_boxes"][0].tolist() == (
            [80, 0, 100, 40] if flipped else [20, 0, 40, 40]
        )
        seen.add(bool(flipped))
    assert seen == {True, False}


def test_other_samples_are_those_of_detectron2(sample):
    sample["annotations"] = sample["annotations"][1:2]
    assert "crowd_boxes" not in CrowdMapper(config(flip=False), is_train=True)(sample)
    assert "crowd_boxes" not in CrowdMapper(config(flip=False), is_train=False)(sample)


def test_the_training_loader_maps_so(sample):
    DatasetCatalog.register("crowded", lambda: [sample])
    cfg = config(flip=False)
    cfg.DATASETS.TRAIN = ("crowded",)
    cfg.SOLVER.IMS_PER_BATCH = 1
    cfg.DATALOADER.NUM_WORKERS = 0
    try:
        (mapped,) = next(iter(build_train_loader(cfg, seed=0)))
    finally:
        DatasetCatalog.remove("crowded")
    assert len(mapped["crowd_boxes"]) == 2
