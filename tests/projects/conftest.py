"""What tests of all projects share: batches made by hand, and whole runs of the program on four
small images."""

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
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage

SIZE = (64, 96)
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


# The two images that small detectors learn by heart: (box, class) of each object.
HEART = ([([12, 10, 44, 42], 0), ([50, 20, 90, 60], 2)], [([20, 8, 70, 48], 1)])
COLORS = ((200.0, 40.0, 40.0), (40.0, 200.0, 40.0), (40.0, 40.0, 200.0))


def make_target(objects, size=SIZE) -> Instances:
    """Ground truth from a list of (box, class)."""
    target = Instances(size)
    boxes = torch.tensor([box for box, _ in objects], dtype=torch.float32).reshape(-1, 4)
    target.gt_boxes = Boxes(boxes)
    target.gt_classes = torch.tensor([label for _, label in objects], dtype=torch.int64)
    return target


@pytest.fixture(name="make_target")
def _make_target():
    return make_target


@pytest.fixture
def make_batch():
    """A batch with one random image for each list of (box, class)."""

    def make(*annotations, seed=0, size=SIZE, sizes=()):
        generator = torch.Generator().manual_seed(seed)
        return [
            {
                "image": torch.randint(0, 255, (3, *size), generator=generator).float(),
                "height": size[0],
                "width": size[1],
                "instances": make_target(objects, size),
            }
            for objects, size in zip(annotations, sizes or [size] * len(annotations), strict=True)
        ]

    return make


def without_targets(batch):
    return [{k: v for k, v in item.items() if k != "instances"} for item in batch]


def detect(model, batch):
    model.eval()
    with torch.no_grad():
        return [output["instances"] for output in model(without_targets(batch))]


def assert_equal_detections(found, expected, tolerance=1e-4):
    for a, b in zip(found, expected, strict=True):
        assert len(a) == len(b)
        assert torch.equal(a.pred_classes, b.pred_classes)
        torch.testing.assert_close(a.scores, b.scores, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(
            a.pred_boxes.tensor, b.pred_boxes.tensor, rtol=tolerance, atol=tolerance
        )


@pytest.fixture(name="without_targets")
def _without_targets():
    return without_targets


@pytest.fixture(name="detect")
def _detect():
    return detect


@pytest.fixture(name="assert_equal_detections")
def _assert_equal_detections():
    return assert_equal_detections


@pytest.fixture
def check_views(make_batch):
    """Check that an R-CNN works with views of several sizes, and that a single view gives what it
    gives without views.

    `make_cfg` makes the config of the model with overrides; Detectron2's views keep no score below
    `least`.
    """

    def check(model, make_cfg, least=0.0):
        def detect_with_views(**keys):
            keys = {f"TEST.AUG.{key}": value for key, value in keys.items()}
            views = GeneralizedRCNNWithTTA(make_cfg(overrides=keys), model)
            return detect(views, batch)[0]

        batch, model = make_batch([]), model.eval()
        found = detect_with_views(MIN_SIZES=(64, 80))
        assert 0 < len(found) <= 100 and found.image_size == SIZE

        one_view = detect_with_views(MIN_SIZES=(64,), FLIP=False)
        one_view = one_view[one_view.pred_boxes.nonempty()]  # Detectron2 keeps those clipped away
        (found,) = detect(model, batch)
        assert_equal_detections([one_view], [found[found.scores > least]])

    return check


@pytest.fixture
def storage():
    with EventStorage(0) as storage:
        yield storage


@pytest.fixture
def learn_by_heart(make_batch):
    """Train a model on two images, with 20 given proposals around each object and 20 anywhere, and
    check that it then finds the objects; returns the losses and logged figures of each step.

    A dense detector takes no notice of the proposals.
    """

    def learn(model, *, steps=200, lr=0.02, min_score=0.4, min_iou=0.75):
        batch, generator = make_batch(*HEART), torch.Generator().manual_seed(0)
        for item in batch:
            _paint(item)
            item["proposals"] = _propose(item["instances"].gt_boxes.tensor, generator)
        history = _train(model.train(), batch, steps, lr)
        for found, objects in zip(detect(model, batch), HEART, strict=True):
            for box, label in objects:
                same = found[(found.pred_classes == label) & (found.scores > min_score)]
                assert len(same), (box, label)
                gt = Boxes(torch.tensor([box], dtype=torch.float32))
                assert pairwise_iou(gt, same.pred_boxes).max() > min_iou, (box, label)
        return history

    return learn


def _paint(item):
    """Fill each object with the colour of its class, on grey."""
    item["image"] = 110 + item["image"] * 0.05
    objects = item["instances"]
    for (x1, y1, x2, y2), label in zip(objects.gt_boxes.tensor.int(), objects.gt_classes):
        item["image"][:, y1:y2, x1:x2] = torch.tensor(COLORS[label])[:, None, None]


def _propose(gt_boxes, generator):
    sizes = (gt_boxes[:, 2:] - gt_boxes[:, :2]).repeat(1, 2)
    noise = torch.randn(20, len(gt_boxes), 4, generator=generator) * 0.12
    corners = torch.rand(20, 2, 2, generator=generator) * torch.tensor([96.0, 64.0])
    anywhere = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    boxes = Boxes(torch.cat([(gt_boxes + noise * sizes).flatten(0, 1), anywhere]))
    boxes.clip(SIZE)
    proposals = Instances(SIZE, proposal_boxes=boxes)
    proposals.objectness_logits = torch.zeros(len(boxes))
    return proposals


def _train(model, batch, steps, lr):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    history = []
    with EventStorage(0) as storage:
        for _ in range(steps):
            losses = model(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            logged = {name: value for name, (value, _) in storage.latest().items()}
            history.append(logged | {name: loss.item() for name, loss in losses.items()})
    return history


@pytest.fixture
def fall():
    """The share of a loss that is left: its mean over the last ten steps by that of the first."""

    def fall(history, name):
        first = sum(values[name] for values in history[:10])
        return sum(values[name] for values in history[-10:]) / first

    return fall


@pytest.fixture
def seeded_step(storage):
    """Losses and the size of the gradient of a model with seeded noise on its parameters, by name,
    and what it then detects."""

    def step(model, batch):
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.02)
        torch.manual_seed(1)
        losses = model.train()(batch)
        sum(losses.values()).backward()
        figures = {name: loss.item() for name, loss in losses.items()}
        gradients = [p.grad.norm() for p in model.parameters()]
        figures["gradient"] = torch.stack(gradients).norm().item()
        return figures, detect(model, batch)

    return step


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
