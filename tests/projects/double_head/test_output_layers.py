"""Predictors, losses and fusion, with values by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from double_head import DoubleHeadOutputLayers, HeadPlan
from double_head.plan import resolve_test_sources

EXT = {"fc_cls": 1.4, "fc_reg": 0.6, "conv_cls": 0.5, "conv_reg": 2.0}
SIZE = (200, 300)
# Deltas from the proposal to the object: shifts of a tenth of 100 x 50, growth by 1.2 in height.
PROPOSAL = [10.0, 20.0, 110.0, 70.0]
OBJECT = [20.0, 20.0, 120.0, 80.0]


def make_layers(weights=None, num_classes=3, score="auto", box="auto", **kwargs):
    weights = weights or EXT
    plan = HeadPlan(
        weights, False, {"fc": 1.0, "conv": 1.3}, *resolve_test_sources(weights, score, box)
    )
    shapes = {"fc": ShapeSpec(channels=8), "conv": ShapeSpec(channels=12)}
    transform = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    return DoubleHeadOutputLayers(
        shapes, plan=plan, box2box_transform=transform, num_classes=num_classes, **kwargs
    )


def make_proposals(boxes, classes=None, gt_boxes=None):
    proposals = Instances(SIZE)
    proposals.proposal_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    if classes is not None:
        proposals.gt_classes = torch.tensor(classes, dtype=torch.int64)
    if gt_boxes is not None:
        proposals.gt_boxes = Boxes(torch.tensor(gt_boxes))
    return proposals


def zeros(num_rows, num_classes=3):
    sizes = {"cls": num_classes + 1, "reg": 4 * num_classes}
    return {name: torch.zeros(num_rows, sizes[name.split("_")[1]]) for name in EXT}


def test_losses_by_hand(storage):
    proposals = make_proposals([PROPOSAL] * 4, [1, 3, 3, 3], [OBJECT] * 4)
    layers = make_layers({**dict.fromkeys(EXT, 1.0)})
    losses = layers.losses(zeros(4), [proposals])
    assert list(losses) == ["loss_cls_fc", "loss_box_reg_fc", "loss_cls_conv", "loss_box_reg_conv"]
    # Targets (1, 1, 0, 5 ln 1.2): 0.5 + 0.5 + 0 + 0.41551, over all four rows.
    box_loss = (0.5 + 0.5 + (5 * math.log(1.2)) ** 2 / 2) / 4
    assert box_loss == pytest.approx(1.41551 / 4, abs=1e-5)
    for kind in ("fc", "conv"):
        assert losses[f"loss_cls_{kind}"].item() == pytest.approx(math.log(4))
        assert losses[f"loss_box_reg_{kind}"].item() == pytest.approx(box_loss)


def test_losses_are_weighted(storage):
    proposals = [make_proposals([PROPOSAL] * 2, [1, 3], [OBJECT] * 2)]
    raw = make_layers(dict.fromkeys(EXT, 1.0)).losses(zeros(2), proposals)
    weighted = make_layers().losses(zeros(2), proposals)
    for name, weight in zip(raw, EXT.values()):
        torch.testing.assert_close(weighted[name], raw[name] * weight)
    # With raw losses of 1.0, 0.4, 1.2 and 0.5 the total is 1.64 + 1.60.
    assert sum(w * x for w, x in zip(EXT.values(), (1.0, 0.4, 1.2, 0.5))) == pytest.approx(3.24)


def test_only_the_deltas_of_the_matched_class_count(storage):
    proposals = [make_proposals([PROPOSAL], [2], [OBJECT])]
    layers = make_layers({"fc_cls": 1.0, "conv_reg": 1.0})
    predictions = zeros(1)
    predictions["conv_reg"][0, 8:] = torch.tensor([1.0, 1.0, 0.0, 5 * math.log(1.2)])
    predictions["conv_reg"][0, :8] = 1000
    loss = layers.losses(predictions, proposals)["loss_box_reg_conv"]
    assert loss.item() == pytest.approx(0, abs=1e-10)


def test_class_agnostic_regression(storage):
    layers = make_layers(cls_agnostic_bbox_reg=True)
    assert layers.predictors["conv_reg"].out_features == 4
    predictions = zeros(1) | {"conv_reg": torch.zeros(1, 4), "fc_reg": torch.zeros(1, 4)}
    proposals = [make_proposals([PROPOSAL], [2], [OBJECT])]
    losses = layers.losses(predictions, proposals)
    assert losses["loss_box_reg_conv"].item() == pytest.approx(2 * 1.41551, abs=1e-4)
    assert layers.predict_boxes(predictions, proposals)[0].tolist() == [PROPOSAL]


@pytest.mark.parametrize("num_rows", [0, 3])
def test_without_objects_box_losses_are_zero_and_have_a_gradient(num_rows, storage):
    layers = make_layers()
    proposals = [make_proposals([PROPOSAL] * num_rows, [3] * num_rows), make_proposals([], [])]
    predictions = {
        name: layers(name, torch.ones(num_rows, 8 if name.startswith("fc") else 12)) for name in EXT
    }
    losses = layers.losses(predictions, proposals)
    sum(losses.values()).backward()
    assert losses["loss_box_reg_fc"] == losses["loss_box_reg_conv"] == 0
    assert (losses["loss_cls_fc"] > 0) == (num_rows > 0)
    assert all(p.grad.isfinite().all() for p in layers.parameters())


def test_accuracies_of_both_towers_have_their_own_curves(storage):
    predictions = zeros(4)
    predictions["fc_cls"][range(4), [1, 3, 3, 0]] = 1.0
    predictions["conv_cls"][range(4), [1, 2, 3, 3]] = 1.0
    proposals = [make_proposals([PROPOSAL] * 4, [1, 2, 3, 3], [OBJECT] * 4)]
    make_layers().losses(predictions, proposals)
    curves = {name: value for name, (value, _) in storage.latest().items()}
    assert curves == {
        "double_head/fc/cls_accuracy": 0.5,
        "double_head/fc/fg_cls_accuracy": 0.5,
        "double_head/fc/false_negative": 0.5,
        "double_head/conv/cls_accuracy": 1.0,
        "double_head/conv/fg_cls_accuracy": 1.0,
        "double_head/conv/false_negative": 0.0,
    }


@pytest.mark.parametrize(
    ("score", "expected"),
    [("fc", 0.6), ("conv", 0.5), ("max", 0.6), ("average", 0.55), ("complementary", 0.8)],
)
def test_probabilities_are_fused_and_not_logits(score, expected):
    proposals = [make_proposals([PROPOSAL]), make_proposals([])]
    predictions = zeros(1) | {
        "fc_cls": torch.tensor([[0.6, 0.1, 0.1, 0.2]]).log() + 7,
        "conv_cls": torch.tensor([[0.5, 0.2, 0.1, 0.2]]).log() - 3,
    }
    for layers, override in ((make_layers(score=score), None), (make_layers(), score)):
        probs = layers.predict_probs(predictions, proposals, override)
        assert [p.shape for p in probs] == [(1, 4), (0, 4)]
        assert probs[0][0, 0].item() == pytest.approx(expected)


def test_boxes_are_decoded_from_the_proposals_as_they_are():
    predictions = zeros(2)
    predictions["conv_reg"][0, :4] = torch.tensor([1.0, 1.0, 0.0, 5 * math.log(1.2)])
    predictions["fc_reg"][1, 4:8] = torch.tensor([10.0, 0.0, 0.0, 0.0])
    proposals = [make_proposals([PROPOSAL]), make_proposals([PROPOSAL])]
    first, second = make_layers().predict_boxes(predictions, proposals)
    torch.testing.assert_close(first[0].reshape(3, 4)[0], torch.tensor(OBJECT))
    assert second[0].reshape(3, 4)[0].tolist() == PROPOSAL
    _, second = make_layers().predict_boxes(predictions, proposals, "fc")
    torch.testing.assert_close(second[0, 4:8], torch.tensor([110.0, 20.0, 210.0, 70.0]))


def test_predictors_start_small():
    layers = make_layers(num_classes=80)
    for name, layer in layers.predictors.items():
        std = 0.01 if name.endswith("cls") else 0.001
        assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
        assert not layer.bias.any()


def test_classification_loss_is_the_mean_over_all_rows(storage):
    predictions = zeros(5) | {"fc_cls": torch.randn(5, 4)}
    classes = [0, 3, 3, 2, 3]
    proposals = [
        make_proposals([PROPOSAL] * 2, classes[:2], [OBJECT] * 2),
        make_proposals([PROPOSAL] * 3, classes[2:], [OBJECT] * 3),
    ]
    loss = make_layers(dict.fromkeys(EXT, 1.0)).losses(predictions, proposals)["loss_cls_fc"]
    torch.testing.assert_close(loss, F.cross_entropy(predictions["fc_cls"], torch.tensor(classes)))
