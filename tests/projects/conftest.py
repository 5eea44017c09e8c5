"""What tests of all projects share: whole runs of the program on four small images."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

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
# Every region is sampled and every image has as many, so that the losses of one process are the
# means of those of two; no layer has batch statistics.
EXHAUSTIVE = {
    "MODEL.RESNETS.NORM": "GN",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 4096,
    "MODEL.RPN.POSITIVE_FRACTION": 1.0,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 10,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 1.0,
    "DATASETS.TEST": "()",
}


@dataclass
class Run:
    """A finished training: its folder, every figure's last logged value, its weights by file."""

    folder: Path

    @property
    def logged(self) -> dict[str, float]:
        values = {}
        for line in (self.folder / "metrics.json").read_text().splitlines():
            values.update(json.loads(line))
        return values

    def weights(self, file: str = "model_final.pth") -> dict[str, Tensor]:
        return torch.load(self.folder / file, weights_only=True)["model"]


@pytest.fixture
def train(tmp_path, repo, forget_datasets):
    """Train a config, by its path from `projects/`, on four images with a box each; a `Run`.

    `keys` are overrides on top of `SMALL`.
    """
    _write_four_images(tmp_path)
    data = ["--coco", "four", str(tmp_path / "data.json"), str(tmp_path)]

    def train(config: str, folder: str, *flags: str, processes: int = 1, **keys: object) -> Run:
        run = Run(tmp_path / folder)
        overrides = {**SMALL, **keys, "OUTPUT_DIR": run.folder}
        words = ["--config-file", str(repo / "projects" / config), *data, *flags]
        words += [str(item) for pair in overrides.items() for item in pair]
        if processes == 1:
            main(argument_parser().parse_args(words))
            return run
        command = [sys.executable, "-m", "clsloc.train", "--num-gpus", str(processes), *words]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return run

    return train


def _write_four_images(folder: Path) -> None:
    images, annotations = [], []
    for i in range(4):
        image = np.full((64, 96, 3), 90, np.uint8)
        cv2.rectangle(image, (20 + i, 10), (60, 50), (255, 60 * i, 0), -1)
        cv2.imwrite(str(folder / f"{i}.png"), image)
        images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 96})
        box = {"bbox": [20 + i, 10, 40 - i, 40], "area": 1600, "iscrowd": 0}
        annotations.append({"id": i + 1, "image_id": i, "category_id": i % 3 + 1, **box})
    categories = [{"id": i + 1, "name": f"class {i}"} for i in range(3)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "data.json").write_text(json.dumps(content))


@pytest.fixture
def train_resumed(train, tmp_path):
    """Train a config without a break, and once more from its second step on; two `Run`s, which are
    checked to have ended with equal weights, and with others than those of the second step."""

    def train_resumed(config: str, **keys: object) -> tuple[Run, Run]:
        whole = train(config, "whole", **keys)
        (tmp_path / "broken").mkdir()
        name = "model_0000001.pth"
        (tmp_path / "broken" / name).write_bytes((whole.folder / name).read_bytes())
        (tmp_path / "broken" / "last_checkpoint").write_text(name)
        resumed = train(config, "broken", "--resume", **keys)
        assert "AP90" in json.dumps(json.loads((whole.folder / "results.json").read_text()))
        before, ended, found = whole.weights(name), whole.weights(), resumed.weights()
        assert ended.keys() == found.keys()
        assert [key for key in ended if not torch.equal(ended[key], found[key])] == []
        assert [key for key in ended if not torch.equal(before[key], ended[key])] != []
        return whole, resumed

    return train_resumed


@pytest.fixture
def train_in_two_processes(train):
    """Train a config in one process and in two, with the overrides of `EXHAUSTIVE`; two `Run`s,
    which are checked to have equal losses and weights."""

    def train_in_two_processes(config: str, **keys: object) -> tuple[Run, Run]:
        keys = {**EXHAUSTIVE, **keys}
        one, two = (train(config, f"by_{n}", processes=n, **keys) for n in (1, 2))
        # A name with a slash is a figure of the first process alone.
        losses = [
            {k: v for k, v in run.logged.items() if "loss" in k and "/" not in k}
            for run in (one, two)
        ]
        assert len(losses[0]) >= 4
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        found = two.weights()
        for name, value in one.weights().items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
        return one, two

    return train_in_two_processes
