"""Whole models: what goes in, what comes out, and the plumbing of dense detectors."""

import importlib.util
import math
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import DenseDetector, GeneralizedRCNN, RetinaNet
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

PARITY = runpy.run_path(str(Path(__file__).with_name("parity.py")))
MODELS = sorted(PARITY["MODELS"])
EMBEDDED = importlib.util.find_spec("detectron2._left_out") is not None
USER_ERROR = (ValueError, AssertionError)


def tiny(name, **overrides):
    """A tiny stock model and two inputs."""
    return PARITY["build"](name, "tiny", **overrides), PARITY["make_inputs"]("tiny")


# Two-stage and dense models alike


@pytest.mark.parametrize("name", MODELS)
def test_detections_have_the_size_that_the_input_asks_for(name):
    model, inputs = tiny(name)
    PARITY["spread_predictions"](model, inputs)
    image = inputs[0]["image"]
    height, width = image.shape[1:]
    with torch.no_grad():
        same = model([{"image": image}])[0]["instances"]
        twice = model([{"image": image, "height": 2 * height, "width": 2 * width}])[0]["instances"]
    assert same.image_size == (height, width)
    assert twice.image_size == (2 * height, 2 * width)
    torch.testing.assert_close(twice.pred_boxes.tensor, 2 * same.pred_boxes.tensor)
    assert set(same.get_fields()) == {"pred_boxes", "scores", "pred_classes"}
    assert same.scores.tolist() == sorted(same.scores.tolist(), reverse=True)
    assert same.pred_classes.max() < PARITY["NUM_CLASSES"]


@pytest.mark.parametrize("name", MODELS)
def test_an_image_gives_the_same_detections_alone_and_in_a_batch(name):
    model, inputs = tiny(name)
    PARITY["spread_predictions"](model, inputs)
    with torch.no_grad():
        batch = model([inputs[0], inputs[0]])
        alone = model([inputs[0]])[0]["instances"]
    for result in batch:
        torch.testing.assert_close(result["instances"].scores, alone.scores, rtol=1e-4, atol=1e-5)
        assert result["instances"].pred_classes.tolist() == alone.pred_classes.tolist()


@pytest.mark.parametrize("name", MODELS)
def test_training_without_any_object_gives_finite_gradients(name):
    model, inputs = tiny(name)
    for x in inputs:
        x["instances"] = x["instances"][torch.zeros(0, dtype=torch.long)]
    with EventStorage():
        losses = model.train()(inputs)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", MODELS)
def test_pixel_statistics_follow_the_device_but_stay_out_of_checkpoints(name):
    model, _ = tiny(name)
    buffers = dict(model.named_buffers())
    assert buffers["pixel_mean"].shape == buffers["pixel_std"].shape == (3, 1, 1)
    assert not any("pixel" in key or "anchor_generator" in key for key in model.state_dict())
    assert model.device == torch.device("cpu")


# Two-stage models


def test_losses_of_a_two_stage_model():
    model, inputs = tiny("faster_rcnn_fpn")
    with EventStorage():
        losses = model.train()(inputs)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}


def test_inference_without_postprocessing_and_with_given_boxes():
    model, inputs = tiny("faster_rcnn_fpn")
    PARITY["spread_predictions"](model, inputs)
    with torch.no_grad():
        raw = model.inference(inputs, do_postprocess=False)
        scaled = model.inference(inputs)
        given = model.inference(inputs, detected_instances=raw, do_postprocess=False)
    assert isinstance(raw[0], Instances)
    assert raw[0].image_size == tuple(inputs[0]["image"].shape[1:])
    assert len(raw[0]) == len(scaled[0]["instances"])
    assert given[0].scores.tolist() == raw[0].scores.tolist()
    model.train()
    with pytest.raises((RuntimeError, AssertionError)):
        model.inference(inputs)


def test_training_pictures_are_drawn_every_period():
    model, inputs = tiny("faster_rcnn_fpn", **{"VIS_PERIOD": 2})
    for x in inputs:
        x["image"] = x["image"].byte()
    shown = []
    with EventStorage(0) as storage:
        for _ in range(3):
            model.train()(inputs)
            shown.append([(name, image.shape) for name, image, _ in storage._vis_data])
            storage.clear_images()
            storage.step()
    height, width = inputs[0]["image"].shape[1:]
    expected = [("Left: GT bounding boxes;  Right: Predicted proposals", (3, height, 2 * width))]
    assert shown == [expected, [], expected]


def test_proposals_can_come_with_the_input():
    model, inputs = tiny(
        "faster_rcnn_fpn", **{"MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals"}
    )
    assert model.proposal_generator is None
    for x in inputs:
        boxes = x["instances"].gt_boxes.clone()
        x["proposals"] = Instances(
            x["instances"].image_size,
            proposal_boxes=boxes,
            objectness_logits=torch.zeros(len(boxes)),
        )
    with EventStorage():
        assert set(model.train()(inputs)) == {"loss_cls", "loss_box_reg"}
    with torch.no_grad():
        assert len(model.eval()(inputs)) == 2
    del inputs[0]["proposals"]
    with pytest.raises(USER_ERROR):
        model(inputs)


def test_a_proposal_network_alone():
    model, inputs = tiny("faster_rcnn_fpn", **{"MODEL.META_ARCHITECTURE": "ProposalNetwork"})
    with EventStorage():
        assert set(model.train()(inputs)) == {"loss_rpn_cls", "loss_rpn_loc"}
    with torch.no_grad():
        result = model.eval()(inputs)[0]["proposals"]
    assert set(result.get_fields()) == {"proposal_boxes", "objectness_logits"}
    assert result.image_size == (inputs[0]["height"], inputs[0]["width"])


class FlatBackbone(Backbone):
    """Two maps: the image pooled by 8 and by 4, listed from coarse to fine."""

    size_divisibility = 8

    def forward(self, x):
        return {
            "coarse": nn.functional.avg_pool2d(x, 8),
            "fine": nn.functional.avg_pool2d(x, 4),
        }

    def output_shape(self):
        return {"coarse": ShapeSpec(channels=3, stride=8), "fine": ShapeSpec(channels=3, stride=4)}


def test_images_are_normalised_before_they_are_padded():
    model = DenseDetector(
        FlatBackbone(), nn.Identity(), pixel_mean=[10.0, 20.0, 30.0], pixel_std=[1.0, 2.0, 4.0]
    )
    image = torch.tensor([11.0, 24.0, 38.0])[:, None, None].expand(3, 9, 16)
    batch = model.preprocess_image([{"image": image}])
    assert batch.tensor.shape == (1, 3, 16, 16)
    assert batch.tensor[0, :, 0, 0].tolist() == [1, 2, 2]
    assert batch.tensor[0, :, 9:].abs().max() == 0
    assert batch.image_sizes == [(9, 16)]


def test_builders_and_registry_use_the_name_in_the_config():
    class Nothing(nn.Module):
        def __init__(self, cfg):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

    if "Nothing" not in META_ARCH_REGISTRY:
        META_ARCH_REGISTRY.register(Nothing)
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "Nothing"
    cfg.MODEL.DEVICE = "cpu"
    assert type(build_model(cfg)).__name__ == "Nothing"


@pytest.mark.skipif(not EMBEDDED, reason="the real Detectron2 has these models")
@pytest.mark.parametrize("name", ["PanopticFPN", "SemanticSegmentor"])
def test_left_out_models_say_so(name):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = name
    with pytest.raises(NotImplementedError, match="Detectron2"):
        build_model(cfg)


# Dense detectors


def test_permutation_by_hand():
    # Location (0, 1), second of two anchors, third of three numbers.
    x = torch.zeros(1, 6, 2, 2)
    x[0, 1 * 3 + 2, 0, 1] = 1
    rows = permute_to_N_HWA_K(x, 3)
    assert rows.shape == (1, 8, 3)
    assert rows.nonzero().tolist() == [[0, 1 * 2 + 1, 2]]


class Dense(DenseDetector):
    """Reports what reaches the seams."""

    box2box_transform = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))

    def forward_training(self, images, features, predictions, gt_instances):
        self.seen = features, predictions, gt_instances
        return {"loss": torch.zeros(())}

    def forward_inference(self, images, features, predictions):
        boxes = Boxes(torch.tensor([[0.0, 0, 4, 4]]))
        return [
            Instances(size, pred_boxes=boxes, scores=torch.ones(1)) for size in images.image_sizes
        ]


def make_dense(**kwargs):
    head = nn.Identity()
    return Dense(FlatBackbone(), head, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3, **kwargs)


def test_dense_seams_get_levels_from_fine_to_coarse():
    model = make_dense()
    assert model.head_in_features == ["fine", "coarse"]
    gt = Instances((16, 16), gt_boxes=Boxes(torch.zeros(0, 4)))
    inputs = [{"image": torch.rand(3, 16, 16), "instances": gt, "height": 32, "width": 16}]
    assert set(model.train()(inputs)) == {"loss"}
    features, predictions, gt_instances = model.seen
    assert [tuple(f.shape) for f in features] == [(1, 3, 4, 4), (1, 3, 2, 2)]
    assert [tuple(p.shape) for p in predictions] == [(1, 3, 4, 4), (1, 3, 2, 2)]
    assert len(gt_instances) == 1
    detections = model.eval()(inputs)[0]["instances"]
    assert detections.pred_boxes.tensor.tolist() == [[0, 0, 4, 8]]
    assert make_dense(head_in_features=["coarse"]).head_in_features == ["coarse"]
    with pytest.raises(USER_ERROR):
        model.train()([{"image": torch.rand(3, 16, 16)}])


def test_decoding_by_hand():
    anchors = Boxes(torch.tensor([[0.0, 0, 10, 10], [20.0, 20, 40, 40]]))
    scores = torch.tensor([[0.3, 0.9], [0.5, 0.2]])
    deltas = torch.tensor([[0.0, 0, 0, 0], [0.5, 0.0, 0, math.log(2)]])
    model = make_dense()
    levels = model._decode_multi_level_predictions(
        [anchors, anchors], [scores, scores], [deltas, deltas], 0.25, 2, (50, 50)
    )
    assert levels.scores.tolist() == pytest.approx([0.9, 0.5, 0.9, 0.5])
    assert levels.pred_classes.tolist() == [1, 0, 1, 0]
    assert levels.pred_boxes.tensor[0].tolist() == [0, 0, 10, 10]
    assert levels.pred_boxes.tensor[1].tolist() == pytest.approx([30, 10, 50, 50])
    none = model._decode_multi_level_predictions([anchors], [scores], [deltas], 0.95, 2, (50, 50))
    assert len(none) == 0


def test_moving_average_starts_at_the_initial_value():
    model = make_dense()
    assert model._ema_update("average", 20.0, 100.0) == pytest.approx(92.0)
    assert model._ema_update("average", 20.0, 100.0) == pytest.approx(84.8)
    assert model._ema_update("average", 0.0, 100.0, momentum=0.5) == pytest.approx(42.4)


# RetinaNet

ANCHORS = Boxes(torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 6], [30.0, 30, 40, 40]]))


def make_retinanet(**overrides):
    arguments = {
        "backbone": FlatBackbone(),
        "head": nn.Identity(),
        "head_in_features": ["fine"],
        "anchor_generator": nn.Identity(),
        "box2box_transform": Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        "anchor_matcher": Matcher([0.4, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        "num_classes": 2,
        "pixel_mean": [0.0] * 3,
        "pixel_std": [1.0] * 3,
        **overrides,
    }
    return RetinaNet(**arguments)


def make_targets(boxes, classes):
    boxes = Boxes(torch.tensor(boxes).view(-1, 4))
    return Instances((50, 50), gt_boxes=boxes, gt_classes=torch.tensor(classes).long())


def test_anchor_labels():
    model = make_retinanet()
    labels, boxes = model.label_anchors(
        [ANCHORS], [make_targets([[0.0, 0, 10, 9]], [1]), make_targets([], [])]
    )
    assert labels[0].tolist() == [1, -1, 2]  # IoU 0.9, 2/3, 0; the class count is background
    assert boxes[0][0].tolist() == [0, 0, 10, 9]
    assert labels[1].tolist() == [2, 2, 2]
    assert boxes[1].shape == (3, 4)


def test_retinanet_losses_by_hand():
    model = make_retinanet()
    labels, boxes = model.label_anchors([ANCHORS], [make_targets([[0.0, 0, 10, 10]], [1])])
    with EventStorage() as storage:
        losses = model.losses(
            [ANCHORS], [torch.zeros(1, 3, 2)], labels, [torch.full((1, 3, 4), 0.1)], boxes
        )
        assert storage.latest()["num_pos_anchors"][0] == 1
    # Anchors 0 (class 1) and 2 (background); anchor 1 is ignored. At a logit of 0 each number
    # costs log(2) / 4, times 0.25 for the target and 0.75 for the three others.
    normalizer = 0.9 * 100 + 0.1 * 1
    expected = (0.25 + 3 * 0.75) * math.log(2) / 4 / normalizer
    assert losses["loss_cls"].item() == pytest.approx(expected)
    assert losses["loss_box_reg"].item() == pytest.approx(0.4 / normalizer)
    assert model.loss_normalizer == pytest.approx(normalizer)


def test_retinanet_detections_of_one_image():
    model = make_retinanet(max_detections_per_image=2)
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.01], [0.01, 0.7]])
    result = model.inference_single_image([ANCHORS], [scores], [torch.zeros(3, 4)], (50, 50))
    # Anchor 1 overlaps anchor 0 by 0.6 in the same class; three are left, and two allowed.
    assert result.scores.tolist() == pytest.approx([0.9, 0.7])
    assert result.pred_classes.tolist() == [0, 1]


def test_retinanet_head():
    torch.manual_seed(0)
    shapes = [ShapeSpec(channels=8, stride=8), ShapeSpec(channels=8, stride=16)]
    head = RetinaNetHead(
        input_shape=shapes, num_classes=3, num_anchors=2, conv_dims=[8, 8], prior_prob=0.02
    )
    assert {n.rsplit(".", 1)[0] for n in head.state_dict()} == {
        *(f"{tower}_subnet.{i}" for tower in ("cls", "bbox") for i in (0, 2)),
        "cls_score",
        "bbox_pred",
    }
    assert head.cls_score.bias.sigmoid().tolist() == pytest.approx([0.02] * 6)
    logits, deltas = head([torch.rand(1, 8, 4, 4), torch.rand(1, 8, 2, 2)])
    assert [tuple(x.shape) for x in logits] == [(1, 6, 4, 4), (1, 6, 2, 2)]
    assert [tuple(x.shape) for x in deltas] == [(1, 8, 4, 4), (1, 8, 2, 2)]


def test_batch_norm_of_the_retinanet_head_keeps_statistics_per_level():
    shapes = [ShapeSpec(channels=4, stride=8), ShapeSpec(channels=4, stride=16)]
    head = RetinaNetHead(input_shape=shapes, num_classes=1, num_anchors=1, conv_dims=[4], norm="BN")
    with torch.no_grad():
        for tower in (head.cls_subnet, head.bbox_subnet):
            tower[0].bias.fill_(1.0)
            tower[0].weight.zero_()
            tower[0].weight[:, :, 1, 1] = 1.0  # the output is 1 plus the sum of the channels
    head.train()([torch.zeros(2, 4, 8, 8), torch.ones(2, 4, 4, 4)])
    means = [v.tolist() for n, v in head.named_buffers() if n.endswith("running_mean")]
    # Two towers, two levels each; the momentum is 0.1.
    assert means == [pytest.approx([0.1] * 4), pytest.approx([0.5] * 4)] * 2


def test_generalized_rcnn_needs_a_format_to_draw():
    model, _ = tiny("faster_rcnn_fpn")
    with pytest.raises(USER_ERROR):
        GeneralizedRCNN(
            backbone=model.backbone,
            proposal_generator=model.proposal_generator,
            roi_heads=model.roi_heads,
            pixel_mean=[0.0],
            pixel_std=[1.0],
            vis_period=5,
        )
