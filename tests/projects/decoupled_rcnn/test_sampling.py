"""Samples of the regressors, with counts by hand."""

import logging
from collections import Counter

import pytest
import torch

from decoupled_rcnn import match_positives, sample_positives, split_proposals
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou

MATCHER = Matcher([0.5], [0, 1])
GT = [0.0, 0, 100, 100]
SIZE = (400, 400)


def shifted(num, step=0.01, start=1.0):
    """Boxes that overlap GT by more than 0.9, none of them GT itself."""
    shift = start + step * torch.arange(num, dtype=torch.float32)
    return torch.tensor(GT) + torch.stack([shift, shift * 0, shift, shift * 0], dim=1)


def background(num):
    return torch.tensor([[200.0, 200, 300, 300]]).expand(num, 4)


def sample(boxes, objects, make_target, **kwargs):
    (found,), total = sample_positives(
        [Boxes(boxes)], [make_target(objects, SIZE)], MATCHER, **{"batch_size": 512, **kwargs}
    )
    return found, total


def test_positives_by_hand(make_target):
    boxes = torch.tensor(
        [
            [0.0, 0, 100, 50],  # half of the first object: just enough
            [0.0, 0, 100, 49],
            [210.0, 200, 300, 300],  # the second object
            [400.0, 400, 400, 400],
        ]
    )
    target = make_target([(GT, 2), ([200, 200, 300, 300], 0)], SIZE)
    (found,) = match_positives([Boxes(boxes)], [target], MATCHER)
    assert torch.equal(found.proposal_boxes.tensor, boxes[[0, 2]])
    assert found.gt_classes.tolist() == [2, 0]
    assert torch.equal(found.gt_boxes.tensor, target.gt_boxes.tensor)


def test_more_positives_than_the_mini_batch_holds(make_target):
    boxes = torch.cat([background(50), shifted(700)])
    found, total = sample(boxes, [(GT, 1)], make_target)
    assert (len(found), total) == (512, 512)
    assert pairwise_iou(found.proposal_boxes, Boxes(torch.tensor([GT]))).min() >= 0.5
    drawn = found.proposal_boxes.tensor[:, 0]
    assert len(drawn.unique()) == 512
    other, _ = sample(boxes, [(GT, 1)], make_target)
    assert not torch.equal(drawn, other.proposal_boxes.tensor[:, 0])


def test_fewer_positives_are_all_used(make_target):
    boxes = torch.cat([shifted(40), background(600)])
    found, total = sample(boxes, [(GT, 1)], make_target)
    assert torch.equal(found.proposal_boxes.tensor, shifted(40))
    assert total == 512  # the background fills up the mini-batch


def test_few_proposals_make_a_small_mini_batch(make_target):
    found, total = sample(torch.cat([shifted(3), background(4)]), [(GT, 1)], make_target)
    assert (len(found), total) == (3, 7)


def test_without_an_object_the_mini_batch_is_background(make_target):
    found, total = sample(background(600), [], make_target)
    assert (len(found), total) == (0, 512)
    assert found.gt_boxes.tensor.shape == (0, 4)
    assert sample(background(0), [], make_target)[1] == 0


def test_ground_truth_is_no_sample_unless_asked_for(make_target):
    def holds_gt(found):
        return (found.proposal_boxes.tensor == torch.tensor(GT)).all(dim=1).any().item()

    found, total = sample(shifted(9), [(GT, 1)], make_target)
    assert not holds_gt(found) and total == 9
    found, total = sample(shifted(9), [(GT, 1)], make_target, append_gt=True)
    assert holds_gt(found) and total == 10


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [(700, 900, (128, 512)), (40, 900, (40, 512)), (700, 30, (128, 158)), (5, 6, (5, 11))],
)
def test_an_ordinary_mini_batch(positive, negative, expected, make_target):
    """A quarter positives at most; background fills up the rest, positives never do."""
    boxes = torch.cat([shifted(positive), background(negative)])
    found, total = sample(boxes, [(GT, 1)], make_target, positive_fraction=0.25)
    assert (len(found), total) == expected


def test_every_positive_is_drawn_equally_often(make_target):
    counts = torch.zeros(20)
    for _ in range(500):
        found, _ = sample(shifted(20, step=1.0), [(GT, 1)], make_target, batch_size=5)
        counts[(found.proposal_boxes.tensor[:, 0] - 1).round().long()] += 1
    assert counts.sum() == 2500
    # Mean 125, standard deviation 9.7.
    assert 80 < counts.min() and counts.max() < 170


def test_images_are_sampled_apart(make_target):
    targets = [make_target([(GT, 1)], SIZE), make_target([], SIZE), make_target([(GT, 0)], SIZE)]
    boxes = [Boxes(b) for b in (shifted(8), background(3), torch.cat([shifted(2), background(9)]))]
    found, total = sample_positives(boxes, targets, MATCHER, batch_size=5)
    assert [len(f) for f in found] == [5, 0, 2]
    assert total == 5 + 3 + 5


def test_proposals_are_split_by_their_marks(random_proposals):
    proposals = random_proposals(4)
    proposals.for_cls = torch.tensor([True, False, True, False])
    proposals.for_reg = torch.tensor([True, True, False, False])
    (for_cls,), (for_reg,) = split_proposals([proposals])
    boxes = proposals.proposal_boxes.tensor
    assert torch.equal(for_cls.proposal_boxes.tensor, boxes[[0, 2]])
    assert torch.equal(for_reg.proposal_boxes.tensor, boxes[[0, 1]])
    assert set(for_cls.get_fields()) == {"proposal_boxes", "objectness_logits"}
    assert proposals.has("for_cls")


def test_proposals_without_marks_serve_both_tasks(random_proposals, caplog, monkeypatch):
    monkeypatch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())  # as never told yet
    proposals = [random_proposals(4)]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            for_cls, for_reg = split_proposals(proposals)
            assert for_cls == for_reg == proposals
    assert len([r for r in caplog.records if "same set" in r.message]) == 1
