"""Sampling, box heads, predictors, losses and detections of regions."""

import importlib.util
import math

import pytest
import torch
from torch import nn

from detectron2.config import configurable, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    Res5ROIHeads,
    ROIHeads,
    StandardROIHeads,
    build_roi_heads,
    select_foreground_proposals,
)
from detectron2.modeling.roi_heads.fast_rcnn import (
    fast_rcnn_inference,
    fast_rcnn_inference_single_image,
)
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

EMBEDDED = importlib.util.find_spec("detectron2._left_out") is not None
USER_ERROR = (ValueError, AssertionError)
SIZE = (100, 100)


# Detections


def test_detections_by_hand():
    boxes = torch.tensor(
        [
            [0.0, 0, 20, 20, 50, 50, 70, 70],  # one box per class
            [0.0, 0, 20, 19, 50, 50, 70, 69],
            [60.0, 60, 130, 90, 0, 0, 20, 20],
        ]
    )
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.05, 0.35], [0.7, 0.25, 0.05]])
    detections, rows = fast_rcnn_inference_single_image(boxes, scores, SIZE, 0.1, 0.5, 10)
    # Row 0 loses class 0 to row 1; row 1 has no class above the threshold but 0.
    assert detections.scores.tolist() == pytest.approx([0.7, 0.6, 0.3, 0.25])
    assert detections.pred_classes.tolist() == [0, 0, 1, 1]
    assert rows.tolist() == [2, 1, 0, 2]
    assert detections.pred_boxes.tensor.tolist() == [
        [60, 60, 100, 90],  # clipped
        [0, 0, 20, 19],
        [50, 50, 70, 70],
        [0, 0, 20, 20],
    ]
    assert detections.image_size == SIZE


def test_classes_can_share_a_box_without_suppressing_each_other():
    boxes = torch.tensor([[0.0, 0, 20, 20]])
    scores = torch.tensor([[0.4, 0.5, 0.1]])
    detections, rows = fast_rcnn_inference_single_image(boxes, scores, SIZE, 0.05, 0.5, 10)
    assert detections.pred_classes.tolist() == [1, 0]
    assert rows.tolist() == [0, 0]


def test_the_threshold_itself_does_not_pass_and_topk_limits():
    boxes = torch.tensor([[0.0, 0, 9, 9], [30.0, 0, 39, 9], [60.0, 0, 69, 9]])
    scores = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.75, 0.25]])
    detections, _ = fast_rcnn_inference_single_image(boxes, scores, SIZE, 0.25, 0.5, 10)
    assert detections.scores.tolist() == [0.75, 0.5]
    detections, _ = fast_rcnn_inference_single_image(boxes, scores, SIZE, 0.25, 0.5, 1)
    assert detections.scores.tolist() == [0.75]
    detections, _ = fast_rcnn_inference_single_image(boxes, scores, SIZE, 0.0, 0.5, -1)
    assert len(detections) == 3


def test_non_finite_regions_give_nothing():
    boxes = torch.tensor([[0.0, 0, 9, 9], [math.nan, 0, 39, 9], [60.0, 0, 69, 9]])
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [math.inf, 0.1]])
    detections, _ = fast_rcnn_inference_single_image(boxes, scores, SIZE, 0.05, 0.5, 10)
    assert detections.scores.tolist() == pytest.approx([0.9])


def test_images_without_regions_or_detections():
    detections, rows = fast_rcnn_inference(
        [torch.zeros(0, 8), torch.zeros(1, 8)],
        [torch.zeros(0, 3), torch.tensor([[0.0, 0.0, 1.0]])],
        [SIZE, (50, 60)],
        0.05,
        0.5,
        10,
    )
    assert [len(d) for d in detections] == [0, 0]
    assert detections[0].pred_boxes.tensor.shape == (0, 4)
    assert detections[1].image_size == (50, 60)
    assert [len(r) for r in rows] == [0, 0]


# The predictor


def make_predictor(num_classes=2, channels=8, **overrides):
    transform = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
    shape = ShapeSpec(channels=channels)
    return FastRCNNOutputLayers(
        shape, box2box_transform=transform, num_classes=num_classes, **overrides
    )


def make_regions(boxes, classes=None, gt_boxes=None):
    regions = Instances(SIZE, proposal_boxes=Boxes(torch.tensor(boxes).view(-1, 4)))
    if classes is not None:
        regions.gt_classes = torch.tensor(classes).long()
    if gt_boxes is not None:
        regions.gt_boxes = Boxes(torch.tensor(gt_boxes).view(-1, 4))
    return regions


REGIONS = [[0.0, 0, 10, 10], [20.0, 0, 40, 10]]
TARGETS = [[1.0, 0, 11, 10], [0.0, 0, 0, 0]]  # the second is background


def losses_of(predictor, predictions, regions):
    with EventStorage() as storage:
        losses = predictor.losses(predictions, regions)
        scalars = {name: value for name, (value, _) in storage.latest().items()}
    return losses, scalars


def test_losses_by_hand():
    logits = torch.tensor([[0.0, 0, 0], [0.0, 0, 2]])
    deltas = torch.zeros(2, 8)
    deltas[0, 4:] = torch.tensor([0.4, 0.0, 0.0, -0.2])  # class 1
    deltas[0, :4] = 100.0  # class 0 does not matter
    regions = [make_regions(REGIONS, [1, 2], TARGETS)]
    losses, scalars = losses_of(make_predictor(), (logits, deltas), regions)
    cls = (math.log(3) + math.log(2 + math.exp(2)) - 2) / 2
    assert losses["loss_cls"].item() == pytest.approx(cls)
    # The target is a shift by a tenth of the width: |0.4 - 0.1| + |-0.2|, over two regions.
    assert losses["loss_box_reg"].item() == pytest.approx(0.5 / 2)
    assert scalars == {
        "fast_rcnn/cls_accuracy": 0.5,
        "fast_rcnn/fg_cls_accuracy": 0.0,
        "fast_rcnn/false_negative": 0.0,
    }


def test_classification_statistics_by_hand():
    boxes = [[10.0 * i, 0, 10 * i + 10, 10] for i in range(5)]
    regions = [make_regions(boxes, [0, 1, 1, 0, 2], boxes)]
    predicted = torch.tensor([0, 1, 0, 2, 2])  # right, right, wrong, missed, right
    logits = nn.functional.one_hot(predicted, 3).float()
    _, scalars = losses_of(make_predictor(), (logits, torch.zeros(5, 8)), regions)
    assert scalars == {
        "fast_rcnn/cls_accuracy": 3 / 5,
        "fast_rcnn/fg_cls_accuracy": 2 / 4,
        "fast_rcnn/false_negative": 1 / 4,
    }


def test_class_agnostic_boxes_and_other_losses_by_hand():
    regions = [make_regions(REGIONS, [1, 2], TARGETS)]
    predictions = torch.zeros(2, 3), torch.zeros(2, 4)
    smooth = make_predictor(cls_agnostic_bbox_reg=True, smooth_l1_beta=0.5)
    losses, _ = losses_of(smooth, predictions, regions)
    assert losses["loss_box_reg"].item() == pytest.approx(0.5 * 0.1**2 / 0.5 / 2)
    giou = make_predictor(cls_agnostic_bbox_reg=True, box_reg_loss_type="giou")
    losses, _ = losses_of(giou, predictions, regions)
    assert losses["loss_box_reg"].item() == pytest.approx((1 - 90 / 110) / 2, rel=1e-5)


def test_sigmoid_cross_entropy_by_hand():
    predictor = make_predictor(use_sigmoid_ce=True)
    logits = torch.tensor([[0.0, 1.0, 9.0], [0.0, -1.0, 9.0]])
    regions = [make_regions(REGIONS, [1, 2], TARGETS)]
    losses, _ = losses_of(predictor, (logits, torch.zeros(2, 8)), regions)
    expected = (2 * math.log(2) + 2 * math.log(1 + math.exp(-1))) / 2
    assert losses["loss_cls"].item() == pytest.approx(expected)
    probs = predictor.predict_probs((logits, None), regions)
    assert probs[0][0, 1].item() == pytest.approx(1 / (1 + math.exp(-1)))


def test_loss_weights_by_name_or_for_all():
    regions = [make_regions(REGIONS, [1, 2], TARGETS)]
    predictions = torch.zeros(2, 3), torch.zeros(2, 8)
    plain, _ = losses_of(make_predictor(), predictions, regions)
    both, _ = losses_of(make_predictor(loss_weight=3.0), predictions, regions)
    one, _ = losses_of(make_predictor(loss_weight={"loss_box_reg": 2.0}), predictions, regions)
    for name, loss in plain.items():
        assert both[name].item() == pytest.approx(3 * loss.item())
    assert one["loss_cls"].item() == pytest.approx(plain["loss_cls"].item())
    assert one["loss_box_reg"].item() == pytest.approx(2 * plain["loss_box_reg"].item())


@pytest.mark.parametrize("regions", [make_regions([], []), make_regions(REGIONS, [2, 2])])
def test_no_region_or_no_foreground_still_has_gradients(regions):
    predictor = make_predictor()
    losses, _ = losses_of(predictor, predictor(torch.rand(len(regions), 8)), [regions])
    assert losses["loss_box_reg"].item() == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in predictor.parameters())


def test_losses_refuse_proposals_that_carry_gradients():
    regions = make_regions(REGIONS, [1, 2], TARGETS)
    regions.proposal_boxes.tensor.requires_grad_()
    predictions = torch.zeros(2, 3), torch.zeros(2, 8)
    with pytest.raises(USER_ERROR):
        losses_of(make_predictor(), predictions, [regions])


@pytest.mark.parametrize("num_classes", [1, 2, 4, 80])
@pytest.mark.parametrize("agnostic", [False, True])
def test_predictor_shapes_and_predictions_per_image(num_classes, agnostic):
    predictor = make_predictor(num_classes, cls_agnostic_bbox_reg=agnostic)
    regions = [make_regions(REGIONS, [0, num_classes]), make_regions([], [])]
    predictions = predictor(torch.rand(2, 8))
    box_columns = 4 if agnostic else 4 * num_classes
    boxes = predictor.predict_boxes(predictions, regions)
    probs = predictor.predict_probs(predictions, regions)
    assert [b.shape for b in boxes] == [(2, box_columns), (0, box_columns)]
    assert [p.shape for p in probs] == [(2, num_classes + 1), (0, num_classes + 1)]
    assert probs[0].sum(dim=1).tolist() == pytest.approx([1, 1])
    own = predictor.predict_boxes_for_gt_classes(predictions, regions)
    assert [b.shape for b in own] == [(2, 4), (0, 4)]
    assert own[0][0].tolist() == boxes[0][0, :4].tolist()
    detections, _ = predictor.inference(predictions, regions)
    assert len(detections) == 2


def test_predictor_starts_with_small_weights_and_flattens_its_input():
    torch.manual_seed(0)
    shape = ShapeSpec(channels=16, height=3, width=3)
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    predictor = FastRCNNOutputLayers(shape, box2box_transform=transform, num_classes=20)
    assert predictor.cls_score.weight.shape == (21, 144)
    assert predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert predictor.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.1)
    scores, deltas = predictor(torch.rand(5, 16, 3, 3))
    assert scores.shape == (5, 21)
    assert deltas.shape == (5, 80)


# The box head


def test_box_head_layers_and_output_shape():
    shape = ShapeSpec(channels=8, height=7, width=7)
    head = FastRCNNConvFCHead(shape, conv_dims=[16, 16], fc_dims=[32, 24], conv_norm="BN")
    assert {name.split(".")[0] for name in head.state_dict()} == {"conv1", "conv2", "fc1", "fc2"}
    assert head.conv1.bias is None
    assert head.output_shape.channels == 24
    assert head(torch.rand(3, 8, 7, 7)).shape == (3, 24)
    assert head(torch.rand(0, 8, 7, 7)).shape == (0, 24)
    convs = FastRCNNConvFCHead(shape, conv_dims=[16], fc_dims=[])
    assert (convs.output_shape.channels, convs.output_shape.height) == (16, 7)
    assert convs(torch.rand(3, 8, 7, 7)).shape == (3, 16, 7, 7)
    with pytest.raises(USER_ERROR):
        FastRCNNConvFCHead(shape, conv_dims=[], fc_dims=[])


# Sampling


def make_sampler(**overrides):
    arguments = {
        "num_classes": 3,
        "batch_size_per_image": 8,
        "positive_fraction": 0.25,
        "proposal_matcher": Matcher([0.5], [0, 1]),
        **overrides,
    }
    return ROIHeads(**arguments)


def make_targets(boxes, classes):
    boxes = Boxes(torch.tensor(boxes).view(-1, 4))
    return Instances(SIZE, gt_boxes=boxes, gt_classes=torch.tensor(classes).long())


def make_proposals(boxes):
    boxes = torch.as_tensor(boxes).view(-1, 4)
    return Instances(SIZE, proposal_boxes=Boxes(boxes), objectness_logits=torch.zeros(len(boxes)))


def test_samples_are_labelled_and_keep_the_fields_of_their_object():
    targets = make_targets([[0.0, 0, 10, 10], [50.0, 50, 60, 60]], [2, 1])
    targets.gt_weight = torch.tensor([0.5, 0.7])
    proposals = make_proposals([[50.0, 50, 60, 59], [20.0, 20, 30, 30]])
    with EventStorage() as storage:
        heads = make_sampler(proposal_append_gt=False)
        sample = heads.label_and_sample_proposals([proposals], [targets])[0]
        scalars = {name: value for name, (value, _) in storage.latest().items()}
    assert sample.gt_classes.tolist() == [1, 3]  # foreground first; 3 is background
    assert sample.proposal_boxes.tensor[0].tolist() == [50, 50, 60, 59]
    assert sample.gt_boxes.tensor[0].tolist() == [50, 50, 60, 60]
    assert sample.gt_weight[0].item() == pytest.approx(0.7)
    assert scalars == {"roi_head/num_fg_samples": 1, "roi_head/num_bg_samples": 1}


def test_ground_truth_joins_the_proposals_and_fractions_hold():
    targets = make_targets([[0.0, 0, 10, 10]], [2])
    near = torch.tensor([[0.0, 0, 10, 9]]).repeat(20, 1)
    far = torch.tensor([[50.0, 50, 60, 60]]).repeat(20, 1)
    with EventStorage():
        heads = make_sampler()
        sample = heads.label_and_sample_proposals(
            [make_proposals(torch.cat([near, far]))], [targets]
        )[0]
        alone = heads.label_and_sample_proposals([make_proposals([])], [targets])[0]
    assert sample.gt_classes.tolist() == [2, 2] + [3] * 6
    assert alone.gt_classes.tolist() == [2]
    assert alone.proposal_boxes.tensor.tolist() == [[0, 0, 10, 10]]


def test_an_image_without_objects_gives_background():
    with EventStorage():
        sample = make_sampler().label_and_sample_proposals(
            [make_proposals(REGIONS)], [make_targets([], [])]
        )[0]
    assert sample.gt_classes.tolist() == [3, 3]
    assert not sample.has("gt_boxes")


def test_a_subclass_can_sample_otherwise():
    class Everything(ROIHeads):
        def _sample_proposals(self, matched_idxs, matched_labels, gt_classes):
            index = torch.arange(len(matched_idxs))
            return index, torch.where(matched_labels == 1, gt_classes[matched_idxs], 3)

    heads = Everything(
        num_classes=3,
        batch_size_per_image=1,
        positive_fraction=0.5,
        proposal_matcher=Matcher([0.5], [0, 1]),
        proposal_append_gt=False,
    )
    targets = make_targets([[0.0, 0, 10, 10]], [0])
    with EventStorage():
        sample = heads.label_and_sample_proposals([make_proposals(REGIONS)], [targets])[0]
    assert sample.gt_classes.tolist() == [0, 3]


def test_select_foreground():
    regions = make_regions([[0.0, 0, 9, 9]] * 4, [0, 3, -1, 2])
    kept, masks = select_foreground_proposals([regions], bg_label=3)
    assert kept[0].gt_classes.tolist() == [0, 2]
    assert masks[0].tolist() == [True, False, False, True]


# Whole RoI heads

INPUT_SHAPE = {
    "p2": ShapeSpec(channels=8, stride=4),
    "p3": ShapeSpec(channels=8, stride=8),
    "res4": ShapeSpec(channels=16, stride=16),
}


def make_cfg(name="StandardROIHeads", in_features=("p2", "p3")):
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NAME = name
    cfg.MODEL.ROI_HEADS.IN_FEATURES = list(in_features)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 4
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 4
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 2
    if name == "CascadeROIHeads":
        cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    return cfg


def make_features():
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(2, s.channels, 128 // s.stride, 128 // s.stride, generator=generator)
        for name, s in INPUT_SHAPE.items()
    }


ALL_HEADS = [
    ("StandardROIHeads", ("p2", "p3")),
    ("Res5ROIHeads", ("res4",)),
    ("CascadeROIHeads", ("p2", "p3")),
]
BATCH_PROPOSALS = [[10.0, 10, 40, 40], [50.0, 20, 90, 90], [5.0, 60, 45, 95]]


def run_training(heads, targets, features=None):
    heads.train()
    proposals = [make_proposals(BATCH_PROPOSALS) for _ in targets]
    with EventStorage() as storage:
        sampled, losses = heads(None, features or make_features(), proposals, targets)
        return sampled, losses, set(storage.latest())


def some_targets():
    return [
        make_targets([[12.0, 12, 40, 42], [50.0, 20, 88, 88]], [0, 2]),
        make_targets([[5.0, 60, 44, 95]], [1]),
    ]


@pytest.mark.parametrize(("name", "in_features"), ALL_HEADS)
@pytest.mark.parametrize("empty", ["none", "one", "all"])
def test_training_gives_losses_and_gradients(name, in_features, empty):
    torch.manual_seed(0)
    heads = build_roi_heads(make_cfg(name, in_features), INPUT_SHAPE)
    targets = some_targets()
    if empty != "none":
        targets[0] = make_targets([], [])
    if empty == "all":
        targets[1] = make_targets([], [])
    _, losses, events = run_training(heads, targets)
    stages = ["_stage0", "_stage1", "_stage2"] if name == "CascadeROIHeads" else [""]
    assert set(losses) == {f"{x}{s}" for x in ("loss_cls", "loss_box_reg") for s in stages}
    assert {"roi_head/num_fg_samples", "roi_head/num_bg_samples"} <= events
    sum(losses.values()).backward()
    for parameter in heads.parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()


@pytest.mark.parametrize(("name", "in_features"), ALL_HEADS)
def test_inference_gives_detections_and_no_losses(name, in_features):
    torch.manual_seed(0)
    heads = build_roi_heads(make_cfg(name, in_features), INPUT_SHAPE).eval()
    proposals = [make_proposals(BATCH_PROPOSALS), make_proposals([])]
    detections, losses = heads(None, make_features(), proposals)
    assert losses == {}
    assert set(detections[0].get_fields()) == {"pred_boxes", "scores", "pred_classes"}
    assert len(detections[0]) > 0
    assert len(detections[1]) == 0
    again = heads.forward_with_given_boxes(make_features(), detections)
    assert again[0].scores.tolist() == detections[0].scores.tolist()


def test_checkpoint_names():
    names = {n.rsplit(".", 1)[0] for n in StandardROIHeads(make_cfg(), INPUT_SHAPE).state_dict()}
    assert names == {"box_head.fc1", "box_predictor.cls_score", "box_predictor.bbox_pred"}
    cascade = CascadeROIHeads(make_cfg("CascadeROIHeads"), INPUT_SHAPE)
    names = {n.rsplit(".", 1)[0] for n in cascade.state_dict()}
    assert {f"box_head.{s}.fc1" for s in range(3)} < names
    assert {f"box_predictor.{s}.cls_score" for s in range(3)} < names
    res5 = Res5ROIHeads(make_cfg("Res5ROIHeads", ["res4"]), INPUT_SHAPE)
    names = {n.rsplit(".", 1)[0] for n in res5.state_dict()}
    assert {"res5.0.shortcut", "res5.0.conv1.norm", "res5.2.conv3"} < names


def test_training_can_hand_on_predicted_boxes():
    torch.manual_seed(0)
    cfg = make_cfg()
    cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES = True
    heads = build_roi_heads(cfg, INPUT_SHAPE)
    with torch.no_grad():
        heads.box_predictor.bbox_pred.bias.fill_(1.0)
    sampled, _, _ = run_training(heads, some_targets())
    known = torch.tensor(BATCH_PROPOSALS)
    boxes = sampled[0].proposal_boxes.tensor
    assert not boxes.requires_grad
    assert not any((known == box).all(dim=1).any() for box in boxes)


def test_a_subclass_replaces_parts_at_the_seams():
    class DoublePredictor(FastRCNNOutputLayers):
        def losses(self, predictions, proposals):
            return {k: 2 * v for k, v in super().losses(predictions, proposals).items()}

    class Heads(StandardROIHeads):
        @configurable
        def __init__(self, *, extra, **kwargs):
            super().__init__(**kwargs)
            self.extra = extra

        @classmethod
        def _init_box_head(cls, cfg, input_shape):
            ret = super()._init_box_head(cfg, input_shape)
            ret["box_predictor"] = DoublePredictor(cfg, ret["box_head"].output_shape)
            return {**ret, "extra": nn.Identity()}

        def _forward_box(self, features, proposals):
            result = super()._forward_box(features, proposals)
            return {**result, "loss_extra": torch.ones(())} if self.training else result

    if "SeamHeads" not in ROI_HEADS_REGISTRY:
        Heads.__name__ = "SeamHeads"
        ROI_HEADS_REGISTRY.register(Heads)
    torch.manual_seed(0)
    plain = build_roi_heads(make_cfg(), INPUT_SHAPE)
    heads = build_roi_heads(make_cfg("SeamHeads"), INPUT_SHAPE)
    heads.load_state_dict(plain.state_dict())
    torch.manual_seed(1)
    _, losses, _ = run_training(heads, some_targets())
    torch.manual_seed(1)
    _, expected, _ = run_training(plain, some_targets())
    assert losses["loss_extra"] == 1
    assert losses["loss_cls"].item() == pytest.approx(2 * expected["loss_cls"].item())
    assert isinstance(heads.extra, nn.Identity)


def test_cascade_logs_every_stage():
    heads = build_roi_heads(make_cfg("CascadeROIHeads"), INPUT_SHAPE)
    _, _, events = run_training(heads, some_targets())
    for stage in (1, 2):
        assert f"stage{stage}/roi_head/num_fg_samples" in events
    for stage in range(3):
        assert f"stage{stage}/fast_rcnn/cls_accuracy" in events


def test_a_cascade_stage_sends_a_third_of_its_gradient_to_the_features():
    torch.manual_seed(0)
    heads = build_roi_heads(make_cfg("CascadeROIHeads"), INPUT_SHAPE).train()
    features = make_features()
    maps = [features[name].requires_grad_() for name in ("p2", "p3")]
    regions = [make_regions(BATCH_PROPOSALS, [0, 2, 1]) for _ in range(2)]
    through_stage = heads._run_stage(maps, regions, 0)[0].square().sum()
    pooled = heads.box_pooler(maps, [x.proposal_boxes for x in regions])
    plain = heads.box_predictor[0](heads.box_head[0](pooled))[0].square().sum()
    assert through_stage.item() == pytest.approx(plain.item())
    expected = torch.autograd.grad(plain, maps)[0] / 3
    torch.testing.assert_close(torch.autograd.grad(through_stage, maps)[0], expected)


def test_cascade_scores_are_the_mean_over_stages():
    torch.manual_seed(0)
    heads = build_roi_heads(make_cfg("CascadeROIHeads"), INPUT_SHAPE).eval()
    biases = ([2.0, 0, 0, 0], [0.0, 2, 0, 0], [0.0, 0, 0, 0])
    with torch.no_grad():
        for predictor, bias in zip(heads.box_predictor, biases, strict=True):
            predictor.cls_score.weight.zero_()
            predictor.cls_score.bias.copy_(torch.tensor(bias))
    detections, _ = heads(None, make_features(), [make_proposals(BATCH_PROPOSALS[:1])] * 2)
    high, low = math.exp(2) / (math.exp(2) + 3), 1 / (math.exp(2) + 3)
    by_class = dict(zip(detections[0].pred_classes.tolist(), detections[0].scores.tolist()))
    assert by_class[0] == pytest.approx((high + low + 0.25) / 3)
    assert by_class[2] == pytest.approx((low + low + 0.25) / 3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False),
        ("MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.4]),
        ("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", (0.5, 0.6)),
    ],
)
def test_cascade_refuses_settings_that_contradict(key, value):
    cfg = make_cfg("CascadeROIHeads")
    cfg.merge_from_list([key, value])
    with pytest.raises(USER_ERROR):
        CascadeROIHeads(cfg, INPUT_SHAPE)


def test_training_needs_targets_and_given_boxes_need_evaluation():
    heads = build_roi_heads(make_cfg(), INPUT_SHAPE)
    with pytest.raises(USER_ERROR):
        heads(None, make_features(), [make_proposals(BATCH_PROPOSALS)] * 2)
    with pytest.raises((RuntimeError, AssertionError)):
        heads.forward_with_given_boxes(make_features(), [make_proposals([])])


@pytest.mark.skipif(not EMBEDDED, reason="the real Detectron2 has these parts")
@pytest.mark.parametrize("key", ["MODEL.MASK_ON", "MODEL.KEYPOINT_ON"])
@pytest.mark.parametrize(("name", "in_features"), ALL_HEADS)
def test_left_out_branches_say_so(key, name, in_features):
    cfg = make_cfg(name, in_features)
    cfg.merge_from_list([key, True])
    with pytest.raises(NotImplementedError, match="Detectron2"):
        build_roi_heads(cfg, INPUT_SHAPE)


def test_boxes_that_become_empty_leave_the_cascade_in_training_alone():
    heads = build_roi_heads(make_cfg("CascadeROIHeads"), INPUT_SHAPE)
    boxes = torch.tensor([[0.0, 0, 10, 10], [5.0, 5, 5, 9], [60.0, 0, 70, 10]])  # the last outside
    for training, expected in ((True, [0]), (False, [0, 1, 2])):
        (kept,) = heads.train(training)._create_proposals_from_boxes([boxes], [(50, 50)])
        clipped = torch.tensor([[0.0, 0, 10, 10], [5.0, 5, 5, 9], [50.0, 0, 50, 10]])
        assert torch.equal(kept.proposal_boxes.tensor, clipped[expected])
