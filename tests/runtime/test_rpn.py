"""The region proposal network and the selection of proposals."""

import math

import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead, build_proposal_generator
from detectron2.modeling.proposal_generator.proposal_utils import (
    add_ground_truth_to_proposals,
    add_ground_truth_to_proposals_single_image,
    find_top_rpn_proposals,
)
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

USER_ERROR = (ValueError, AssertionError)


def select(boxes, logits, **overrides):
    """find_top_rpn_proposals on one image of 100 x 100."""
    arguments = {
        "nms_thresh": 0.5,
        "pre_nms_topk": 10,
        "post_nms_topk": 10,
        "min_box_size": 0.0,
        "training": False,
        **overrides,
    }
    boxes = [torch.tensor([level]) for level in boxes]
    logits = [torch.tensor([level]) for level in logits]
    return find_top_rpn_proposals(boxes, logits, [(100, 100)], **arguments)[0]


def test_nms_works_within_levels_and_the_best_come_first():
    fine = [[0.0, 0, 10, 10], [0.0, 0, 10, 9], [50.0, 50, 60, 60]]
    coarse = [[0.0, 0, 10, 10]]
    result = select([fine, coarse], [[1.0, 3.0, 2.0], [2.5]])
    # The first box of the fine level overlaps a better one of its level; the coarse one stays.
    assert result.objectness_logits.tolist() == [3.0, 2.5, 2.0]
    assert result.proposal_boxes.tensor.tolist() == [fine[1], coarse[0], fine[2]]
    assert result.image_size == (100, 100)


def test_topk_is_per_level_before_nms_and_per_image_after():
    level = [[10.0 * i, 0, 10 * i + 5, 5] for i in range(5)]
    scores = [1.0, 5.0, 3.0, 2.0, 4.0]
    result = select([level, level], [scores, scores], pre_nms_topk=2)
    assert result.objectness_logits.tolist() == [5.0, 5.0, 4.0, 4.0]
    result = select([level, level], [scores, scores], pre_nms_topk=2, post_nms_topk=3)
    assert result.objectness_logits.tolist() == [5.0, 5.0, 4.0]


def test_boxes_are_clipped_before_small_ones_are_dropped():
    boxes = [[-5.0, -5, 20, 20], [95.0, 0, 200, 50], [30.0, 30, 35, 80]]
    result = select([boxes], [[3.0, 2.0, 1.0]], min_box_size=5.0)
    assert result.proposal_boxes.tensor.tolist() == [[0, 0, 20, 20]]


def test_a_level_and_an_image_may_give_nothing():
    result = select([[[0.0, 0, 0, 0]]], [[1.0]])
    assert len(result) == 0
    assert result.proposal_boxes.tensor.shape == (0, 4)


def test_non_finite_predictions_are_an_error_only_in_training():
    boxes = [[[0.0, 0, 10, 10], [math.nan, 0, 10, 10], [20.0, 20, 30, 30]]]
    logits = [[1.0, 3.0, math.inf]]
    assert select(boxes, logits).objectness_logits.tolist() == [1.0]
    with pytest.raises(FloatingPointError):
        select(boxes, logits, training=True)


def make_proposals(boxes, **fields):
    logits = torch.zeros(len(boxes))
    return Instances((100, 100), proposal_boxes=Boxes(boxes), objectness_logits=logits, **fields)


def test_ground_truth_joins_at_the_end_with_a_probability_of_almost_one():
    gt = Instances((100, 100), gt_boxes=Boxes([[1.0, 2, 3, 4]]), gt_classes=torch.tensor([3]))
    joined = add_ground_truth_to_proposals([gt], [make_proposals([[0.0, 0, 9, 9]])])[0]
    assert joined.proposal_boxes.tensor.tolist() == [[0, 0, 9, 9], [1, 2, 3, 4]]
    assert joined.objectness_logits[1].sigmoid().item() == pytest.approx(1.0)
    assert joined.objectness_logits[1].item() == pytest.approx(math.log(1e10), rel=1e-4)
    assert set(joined.get_fields()) == {"proposal_boxes", "objectness_logits"}


def test_ground_truth_may_be_boxes_and_may_be_empty():
    proposals = make_proposals([[0.0, 0, 9, 9]])
    joined = add_ground_truth_to_proposals_single_image(Boxes([[1.0, 2, 3, 4]]), proposals)
    assert len(joined) == 2
    joined = add_ground_truth_to_proposals_single_image(Boxes(torch.zeros(0, 4)), proposals)
    assert len(joined) == 1


def test_ground_truth_must_fit_the_proposals():
    proposals = make_proposals([[0.0, 0, 9, 9]], origin=torch.zeros(1))
    with pytest.raises(USER_ERROR, match="origin"):
        add_ground_truth_to_proposals([Boxes([[1.0, 2, 3, 4]])], [proposals])
    with pytest.raises(USER_ERROR):
        add_ground_truth_to_proposals([], [proposals])


ANCHORS = torch.tensor(
    [[0.0, 0, 10, 10], [0.0, 0, 10, 8], [30.0, 30, 40, 40], [90.0, 90, 110, 110]]
)


class FixedAnchors(nn.Module):
    box_dim = 4
    num_anchors = [1]

    def forward(self, features):
        return [Boxes(ANCHORS)]


class ZeroHead(nn.Module):
    """Logits and deltas of 0 for the four anchors of a 1 x 4 map."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, features):
        images = len(features[0])
        return [self.scale * torch.ones(images, 1, 1, 4)], [
            self.scale * torch.ones(images, 4, 1, 4)
        ]


def make_rpn(**overrides):
    arguments = {
        "in_features": ["p2"],
        "head": ZeroHead(),
        "anchor_generator": FixedAnchors(),
        "anchor_matcher": Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        "box2box_transform": Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        "batch_size_per_image": 4,
        "positive_fraction": 0.5,
        "pre_nms_topk": (4, 4),
        "post_nms_topk": (4, 4),
        **overrides,
    }
    return RPN(**arguments)


def make_targets(*boxes):
    boxes = torch.tensor(boxes).view(-1, 4)
    return Instances((100, 100), gt_boxes=Boxes(boxes), gt_classes=torch.zeros(len(boxes)).long())


IMAGES = ImageList(torch.zeros(1, 3, 100, 100), [(100, 100)])
FEATURES = {"p2": torch.zeros(1, 8, 1, 4)}


def test_losses_by_hand():
    rpn = make_rpn()
    target = make_targets([0.0, 0, 10, 5])  # IoU 0.5 with anchor 0, 5/8 with anchor 1, else 0
    with EventStorage() as storage:
        proposals, losses = rpn(IMAGES, FEATURES, [target])
        scalars = {name: value for name, (value, _) in storage.latest().items()}
    # Anchor 1 is the best of its object, hence positive; anchor 0 lies between the thresholds.
    assert scalars == {"rpn/num_pos_anchors": 1, "rpn/num_neg_anchors": 2}
    assert losses["loss_rpn_cls"].item() == pytest.approx(3 * math.log(2) / 4)
    # Anchor 1 is 10 x 8 at (5, 4); the object 10 x 5 at (5, 2.5).
    target_deltas = [0, 1.5 / 8, 0, math.log(8 / 5)]
    assert losses["loss_rpn_loc"].item() == pytest.approx(sum(target_deltas) / 4)
    assert not proposals[0].proposal_boxes.tensor.requires_grad


def test_the_weight_of_the_box_loss_comes_on_top_of_that_of_both():
    cfg = get_cfg()
    cfg.MODEL.RPN.LOSS_WEIGHT, cfg.MODEL.RPN.BBOX_REG_LOSS_WEIGHT = 3.0, 2.0
    rpn = build_proposal_generator(cfg, {"res4": ShapeSpec(channels=8, stride=16)})
    assert rpn.loss_weight == {"loss_rpn_cls": 3, "loss_rpn_loc": 6}


def test_what_is_not_finite_takes_no_other_box_to_another_level():
    box = [10.0, 10, 50, 50]
    result = select([[[math.nan, 0, 9, 9], box], [box]], [[3.0, 2.0], [1.0]], nms_thresh=0.7)
    assert result.objectness_logits.tolist() == [2.0, 1.0]  # of two levels: none suppresses


def test_loss_weights_by_name_or_for_all():
    target = [make_targets([0.0, 0, 10, 10])]
    with EventStorage():
        plain = make_rpn()(IMAGES, FEATURES, target)[1]
        both = make_rpn(loss_weight=2.0)(IMAGES, FEATURES, target)[1]
        one = make_rpn(loss_weight={"loss_rpn_cls": 3.0})(IMAGES, FEATURES, target)[1]
    assert both["loss_rpn_cls"].item() == pytest.approx(2 * plain["loss_rpn_cls"].item())
    assert one["loss_rpn_cls"].item() == pytest.approx(3 * plain["loss_rpn_cls"].item())
    assert one["loss_rpn_loc"].item() == pytest.approx(plain["loss_rpn_loc"].item())


def test_losses_are_means_over_images():
    target = make_targets([0.0, 0, 10, 5])
    two_images = ImageList(torch.zeros(2, 3, 100, 100), [(100, 100)] * 2)
    with EventStorage():
        one = make_rpn()(IMAGES, FEATURES, [target])[1]
        two = make_rpn()(two_images, {"p2": torch.zeros(2, 8, 1, 4)}, [target, target])[1]
    for name, loss in one.items():
        assert two[name].item() == pytest.approx(loss.item())


def test_numbers_of_proposals_depend_on_the_mode():
    for overrides in ({"pre_nms_topk": (2, 4)}, {"post_nms_topk": (1, 3)}):
        rpn = make_rpn(nms_thresh=0.99, **overrides)
        wanted = next(iter(overrides.values()))
        with EventStorage():
            training = rpn(IMAGES, FEATURES, [make_targets([0.0, 0, 10, 10])])[0][0]
        assert (len(training), len(rpn.eval()(IMAGES, FEATURES)[0][0])) == wanted


def test_anchors_that_leave_the_image_can_be_ignored():
    targets = [make_targets([90.0, 90, 110, 110])]
    labels, _ = make_rpn(positive_fraction=1.0).label_and_sample_anchors([Boxes(ANCHORS)], targets)
    assert labels[0].tolist() == [0, 0, 0, 1]
    rpn = make_rpn(anchor_boundary_thresh=0.0)
    labels, _ = rpn.label_and_sample_anchors([Boxes(ANCHORS)], targets)
    assert labels[0].tolist() == [0, 0, 0, -1]


def test_sampling_keeps_the_wanted_numbers():
    anchors = [Boxes(torch.tensor([[0.0, 0, 10, 10], [50.0, 50, 60, 60]]).repeat_interleave(50, 0))]
    rpn = make_rpn(batch_size_per_image=16, positive_fraction=0.25)
    labels, boxes = rpn.label_and_sample_anchors(anchors, [make_targets([0.0, 0, 10, 10])])
    assert (labels[0] == 1).sum() == 4
    assert (labels[0] == 0).sum() == 12
    assert (labels[0][50:] != 1).all()
    assert boxes[0].shape == (100, 4)


def test_an_image_without_objects_is_all_background_and_has_gradients():
    rpn = make_rpn()
    labels, boxes = rpn.label_and_sample_anchors([Boxes(ANCHORS)], [make_targets()])
    assert labels[0].tolist() == [0, 0, 0, 0]
    assert boxes[0].tolist() == torch.zeros(4, 4).tolist()
    with EventStorage():
        _, losses = rpn(IMAGES, FEATURES, [make_targets()])
    assert losses["loss_rpn_loc"].item() == 0
    sum(losses.values()).backward()
    assert rpn.rpn_head.scale.grad.isfinite().all()


def test_training_needs_ground_truth_and_inference_gives_no_losses():
    with pytest.raises(USER_ERROR):
        make_rpn()(IMAGES, FEATURES, None)
    proposals, losses = make_rpn().eval()(IMAGES, FEATURES)
    assert losses == {}
    # Deltas of zero: the proposals are the anchors, clipped, without the overlapping one.
    boxes = sorted(proposals[0].proposal_boxes.tensor.tolist())
    assert boxes[0][:3] == [0, 0, 10]
    assert boxes[1:] == [[30, 30, 40, 40], [90, 90, 100, 100]]


def test_outputs_are_ordered_by_row_column_and_cell_anchor():
    cfg = get_cfg()
    cfg.MODEL.RPN.IN_FEATURES = ["p4"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 32]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    rpn = build_proposal_generator(cfg, {"p4": ShapeSpec(channels=8, stride=16)}).eval()
    with torch.no_grad():
        for parameter in rpn.rpn_head.parameters():
            parameter.zero_()
        rpn.rpn_head.conv.weight[0, 0, 1, 1] = 1.0
        rpn.rpn_head.objectness_logits.weight[1, 0] = 1.0  # the second cell anchor sees channel 0
    features = torch.zeros(1, 8, 3, 4)
    features[0, 0, 2, 1] = 5.0
    images = ImageList(torch.zeros(1, 3, 48, 64), [(48, 64)])
    best = rpn(images, {"p4": features})[0][0][0]
    assert best.objectness_logits.item() == 5.0
    # The anchor of 32 pixels at row 2, column 1, clipped to the image.
    assert best.proposal_boxes.tensor.tolist() == [[0.0, 16.0, 32.0, 48.0]]


@pytest.mark.parametrize(
    ("conv_dims", "names"),
    [
        ([-1], {"conv"}),
        ([12], {"conv"}),
        ([-1, 12], {"conv.conv0", "conv.conv1"}),
    ],
)
def test_head_has_the_names_of_checkpoints(conv_dims, names):
    head = StandardRPNHead(in_channels=8, num_anchors=3, conv_dims=conv_dims)
    names = names | {"objectness_logits", "anchor_deltas"}
    assert {name.rsplit(".", 1)[0] for name in head.state_dict()} == names
    logits, deltas = head([torch.zeros(2, 8, 5, 6), torch.zeros(2, 8, 3, 3)])
    assert [x.shape for x in logits] == [(2, 3, 5, 6), (2, 3, 3, 3)]
    assert [x.shape for x in deltas] == [(2, 12, 5, 6), (2, 12, 3, 3)]


def test_head_starts_with_small_weights():
    torch.manual_seed(0)
    head = StandardRPNHead(in_channels=64, num_anchors=3)
    for layer in (head.conv, head.objectness_logits, head.anchor_deltas):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.2)
        assert layer.bias.abs().max() == 0


def test_precomputed_proposals_need_no_generator():
    cfg = get_cfg()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    assert build_proposal_generator(cfg, {}) is None
