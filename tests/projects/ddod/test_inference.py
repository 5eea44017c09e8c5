"""From outputs to detections."""

import math

import pytest
import torch

from ddod.inference import DenseInference
from detectron2.modeling.box_regression import Box2BoxTransform

CODER = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))


def detect(anchors, probs, quality=None, size=(100, 100), **options):
    anchors = torch.tensor(anchors).float()
    logits = torch.tensor(probs).logit()
    if quality is not None:
        quality = torch.tensor(quality).logit()
    inference = DenseInference(CODER, **options)
    return inference([anchors], [logits], [torch.zeros(len(anchors), 4)], [quality], size)


APART = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]


def test_the_threshold_is_on_the_probability_and_the_quality_ranks():
    found = detect(APART, [[0.6], [0.06], [0.04]], [0.5, 0.5, 0.99])
    assert found.scores.tolist() == pytest.approx([0.3, 0.03], abs=1e-6)
    assert found.pred_boxes.tensor.tolist() == APART[:2]
    found = detect(APART, [[0.6], [0.7], [0.04]], [0.9, 0.5, 0.99], score_fusion="sqrt")
    assert found.scores.tolist() == pytest.approx([0.54**0.5, 0.35**0.5], abs=1e-6)
    found = detect(APART, [[0.6], [0.06], [0.04]])
    assert found.scores.tolist() == pytest.approx([0.6, 0.06], abs=1e-6)


def test_boxes_are_clipped_to_the_image_before_nms():
    """Both boxes are the whole image once they are clipped."""
    found = detect([[-90, -90, 110, 110], [-5, -5, 190, 190]], [[0.9], [0.8]], [0.5, 0.5])
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 100, 100]]


@pytest.mark.parametrize("nms_type, count", [("hard", 3), ("soft", 4)])
def test_nms_is_within_a_class(nms_type, count):
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 5]]
    probs = [[0.9, 0.001], [0.8, 0.7], [0.5, 0.001]]
    found = detect(boxes, probs, [0.9] * 3, nms_type=nms_type)
    assert len(found) == count
    assert (found.scores[:-1] >= found.scores[1:]).all()
    kept = set(zip(found.pred_classes.tolist(), found.pred_boxes.tensor[:, 3].tolist()))
    assert kept >= {(0, 10.0), (1, 9.0), (0, 5.0)}
    if nms_type == "soft":
        assert found.scores.min().item() == pytest.approx(0.72 * 0.1, abs=1e-6)


def test_soft_nms_by_hand():
    """The second box has IoU 0.9 with the first, the third 0.5 with it."""
    boxes, probs = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 5]], [[0.9], [0.8], [0.6]]
    linear = detect(boxes, probs, nms_type="soft")
    assert linear.scores.tolist() == pytest.approx([0.9, 0.6, 0.8 * 0.1])
    assert linear.pred_boxes.tensor[:, 3].tolist() == [10, 5, 9]
    high = detect(boxes, probs, nms_type="soft", nms_thresh=0.4)
    # 5/9 of the third and second overlap; the third comes second and lowers what is left again.
    assert high.scores.tolist() == pytest.approx([0.9, 0.3, 0.08 * 4 / 9])
    options = {"soft_nms_method": "gaussian", "soft_nms_sigma": 0.25, "soft_nms_min_score": 0.1}
    smooth = detect(boxes, probs, nms_type="soft", **options)
    assert smooth.scores.tolist() == pytest.approx([0.9, 0.6 * math.exp(-1)])


def test_the_box_of_a_survivor_is_the_mean_of_those_it_suppresses():
    boxes = [[0, 0, 10, 10], [0, 0, 10, 8], [40, 0, 50, 10]]
    found = detect(boxes, [[0.9], [0.6], [0.3]], [0.5] * 3, nms_type="vote")
    assert found.scores.tolist() == pytest.approx([0.45, 0.15])
    assert found.pred_boxes.tensor[0].tolist() == pytest.approx([0, 0, 10, 9.2])
    assert found.pred_boxes.tensor[1].tolist() == pytest.approx(boxes[2])


def test_powers_of_probability_and_quality():
    found = detect(APART, [[0.6], [0.7], [0.3]], [0.9, 0.4, 0.9], score_fusion="power")
    expected = [0.6**0.8 * 0.9**1.2, 0.3**0.8 * 0.9**1.2, 0.7**0.8 * 0.4**1.2]
    assert found.scores.tolist() == pytest.approx(expected)
    options = {"score_fusion": "power", "score_powers": (1.0, 0.0)}
    found = detect(APART, [[0.6], [0.7], [0.3]], [0.9, 0.4, 0.9], **options)
    assert found.scores.tolist() == pytest.approx([0.7, 0.6, 0.3])


def test_candidates_are_pairs_or_locations():
    probs = [[0.9, 0.8], [0.7, 0.001], [0.6, 0.001]]
    options = {"topk_candidates": 2, "nms_thresh": 1.0}
    pairs = detect(APART, probs, [0.5, 0.9, 0.99], **options)
    assert pairs.pred_boxes.tensor[:, 0].tolist() == [0, 0]
    locations = detect(APART, probs, [0.5, 0.9, 0.99], topk_mode="location", **options)
    assert locations.scores.tolist() == pytest.approx([0.63, 0.45, 0.4], abs=1e-6)
    assert locations.pred_boxes.tensor[:, 0].tolist() == [20, 0, 0]


def test_most_detections_of_an_image():
    boxes = [[20 * i, 0, 20 * i + 10, 10] for i in range(5)]
    assert len(detect(boxes, [[0.5]] * 5, max_detections=3)) == 3
    empty = detect(boxes, [[0.01]] * 5, [0.5] * 5)
    assert len(empty) == 0
    assert empty.pred_boxes.tensor.shape == (0, 4)
