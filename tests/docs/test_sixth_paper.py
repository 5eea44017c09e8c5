"""The worked example of docs/extending.md: what its text promises holds."""

import math
import sys
from pathlib import Path

import pytest
import torch

from clsloc.engine import argument_parser, main, setup_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

FOLDER = Path(__file__).parents[2] / "docs" / "sixth_paper"
CONFIG = FOLDER / "configs" / "digits" / "kl_loss_R_18_FPN.yaml"


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import kl_loss

    yield kl_loss
    for name in [name for name in sys.modules if name.split(".")[0] == "kl_loss"]:
        sys.modules.pop(name)
    from detectron2.modeling import ROI_HEADS_REGISTRY

    ROI_HEADS_REGISTRY._obj_map.pop("KLLossROIHeads")


def test_the_loss_by_hand(on_path):
    deltas = torch.tensor([[0.5, 3.0, 0.0, -2.0]])
    alpha = torch.tensor([[0.0, math.log(2), 1.0, 0.0]])
    # .125; half of 2.5 and half of log 2; half of 1; 1.5
    expected = 0.125 + 1.25 + math.log(2) / 2 + 0.5 + 1.5
    assert on_path.kl_regression_loss(deltas, torch.zeros(1, 4), alpha).item() == pytest.approx(
        expected, rel=1e-6
    )


def test_no_row_gives_zero_with_a_gradient(on_path):
    empty = torch.zeros(0, 4, requires_grad=True)
    loss = on_path.kl_regression_loss(empty, empty, empty)
    loss.backward()
    assert loss.item() == 0 and empty.grad.shape == (0, 4)


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("boxes", [[[10, 10, 60, 50]], []])
def test_every_parameter_has_a_finite_gradient(on_path, agnostic, boxes):
    cfg = setup_cfg(
        config_file=str(CONFIG),
        config_functions=[on_path.add_kl_loss_config],
        overrides=["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", agnostic, "MODEL.DEVICE", "cpu"],
    )
    model = build_model(cfg).train()
    instances = Instances((64, 96))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    with EventStorage(0):
        losses = model([{"image": torch.rand(3, 64, 96) * 255, "instances": instances}])
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert bool(boxes) == bool(model.roi_heads.box_predictor.log_variance.weight.grad.any())

    model.eval()
    with torch.no_grad():
        found = model([{"image": torch.rand(3, 64, 96) * 255, "height": 64, "width": 96}])
    assert found[0]["instances"].pred_boxes.tensor.shape[1] == 4


def test_it_trains_by_its_program(on_path, tmp_path):
    words = ["--config-file", CONFIG, "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", 2]
    words += ["SOLVER.IMS_PER_BATCH", 2, "DATASETS.TEST", "()", "OUTPUT_DIR", tmp_path / "out"]
    args = argument_parser().parse_args([str(word) for word in words])
    main(args, [on_path.add_kl_loss_config])
    assert (tmp_path / "out" / "model_final.pth").exists()
    assert "loss_box_reg" in (tmp_path / "out" / "metrics.json").read_text()
