"""The program itself: trains, is broken off, resumes, evaluates."""

import json
import math

import cv2
import numpy as np
import pytest
import torch

from clsloc.engine import argument_parser, main

SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.FPN.NORM": "",
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "DATASETS.TRAIN": "('four',)",
    "DATASETS.TEST": "('four',)",
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "TEST.EVAL_PERIOD": 0,
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MIN_SIZE_TEST": 64,
}


@pytest.fixture
def start(tmp_path, repo, forget_datasets):
    """Parsed arguments for a run of the digits recipe on four images with a box each."""
    images, annotations = [], []
    for i in range(4):
        image = np.full((64, 96, 3), 90, np.uint8)
        cv2.rectangle(image, (20 + i, 10), (60, 50), (255, 60 * i, 0), -1)
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
        images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 96})
        box = {"bbox": [20 + i, 10, 40 - i, 40], "area": 1600, "iscrowd": 0}
        annotations.append({"id": i + 1, "image_id": i, "category_id": i % 3 + 1, **box})
    categories = [{"id": i + 1, "name": f"class {i}"} for i in range(3)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "data.json").write_text(json.dumps(content))
    config = repo / "projects/decoupled_rcnn/configs/digits/decoupled_cascade_R_18_FPN.yaml"

    def start(folder, *flags):
        keys = {**SMALL, "OUTPUT_DIR": tmp_path / folder}
        overrides = [str(item) for pair in keys.items() for item in pair]
        data = ["--coco", "four", str(tmp_path / "data.json"), str(tmp_path)]
        return argument_parser().parse_args(
            ["--config-file", str(config), *flags, *data, *overrides]
        )

    return start


def weights(file):
    return torch.load(file, weights_only=True)["model"]


def test_a_resumed_run_equals_an_unbroken_one(start, tmp_path):
    results = main(start("whole"))
    assert set(results["bbox"]) >= {"AP", "AP50", "AP60", "AP70", "AP80", "AP90"}
    logged = {}
    for line in (tmp_path / "whole" / "metrics.json").read_text().splitlines():
        logged.update(json.loads(line))
    assert all(math.isfinite(logged[f"loss_box_reg_stage{k}"]) for k in range(3))
    assert logged["decoupled/num_proposals_reg"] > 0

    (tmp_path / "broken").mkdir()
    for name in ("model_0000001.pth", "last_checkpoint"):
        (tmp_path / "broken" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    (tmp_path / "broken" / "last_checkpoint").write_text("model_0000001.pth")
    main(start("broken", "--resume"))
    whole, resumed = (weights(tmp_path / name / "model_final.pth") for name in ("whole", "broken"))
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    before = weights(tmp_path / "whole" / "model_0000001.pth")
    name = "roi_heads.reg_predictors.0.bbox_pred.bias"
    assert not torch.equal(before[name], whole[name])
