"""Two NMS runs over the same candidates, with boxes by hand."""

import pytest
import torch

from decoupled_rcnn import Candidates, dual_nms, select_candidates
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, ImageList
from detectron2.utils.events import EventStorage

A = [0.0, 0, 100, 100]
THREE = [A, [10.0, 0, 110, 100], [15.0, 0, 115, 100]]  # IoU AB .8182, AC .7391, BC .9048
NOT_NESTED = [A, [12.0, 0, 112, 100], [19.0, 0, 119, 100]]  # AB .7857, AC .6807, BC .8692
SCORES = [0.9, 0.8, 0.7]


def run(boxes, *, levels=(0, 0, 0), scores=SCORES, topk=(1000, 1000), thresh=(0.7, 0.85)):
    candidates = Candidates(
        Boxes(torch.tensor(boxes)), torch.tensor(scores), torch.tensor(levels), (200, 300)
    )
    return dual_nms(
        candidates,
        thresh_cls=thresh[0],
        thresh_reg=thresh[1],
        topk_cls=topk[0],
        topk_reg=topk[1],
    )


@pytest.mark.parametrize(("thresh", "expected"), [(0.7, 1), (0.85, 2), (0.95, 3)])
def test_denser_with_a_higher_threshold(thresh, expected):
    proposals = run(THREE, thresh=(0.7, thresh))
    assert proposals.for_cls.tolist() == [True] + [False] * (expected - 1)
    assert proposals.for_reg.tolist() == [True] * expected
    assert torch.equal(proposals.proposal_boxes.tensor, torch.tensor(THREE[:expected]))


def test_neither_set_contains_the_other():
    proposals = run(NOT_NESTED)
    assert len(proposals) == 3
    assert proposals.for_cls.tolist() == [True, False, True]
    assert proposals.for_reg.tolist() == [True, True, False]
    assert torch.equal(proposals.objectness_logits, torch.tensor(SCORES))


def test_the_union_is_sorted_by_score():
    proposals = run(NOT_NESTED[::-1], scores=SCORES[::-1])
    assert torch.equal(proposals.objectness_logits, torch.tensor(SCORES))
    assert torch.equal(proposals.proposal_boxes.tensor, torch.tensor(NOT_NESTED))
    assert proposals.for_reg.tolist() == [True, True, False]


def test_levels_do_not_suppress_each_other():
    proposals = run(THREE, levels=(0, 1, 1))
    assert proposals.for_cls.tolist() == proposals.for_reg.tolist() == [True, True]
    assert torch.equal(proposals.proposal_boxes.tensor, torch.tensor(THREE[:2]))


def test_each_set_has_its_own_limit():
    far = [[0.0, 0, 10, 10], [20.0, 0, 30, 10], [40.0, 0, 50, 10]]
    proposals = run(far, topk=(1, 2))
    assert proposals.for_cls.tolist() == [True, False]
    assert proposals.for_reg.tolist() == [True, True]


@pytest.mark.parametrize("spread", [3000, 200, 40])
def test_the_best_of_many_are_those_of_nms(spread):
    """Whether NMS keeps nearly all of 9,000 boxes, or too few to fill the sets at once."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.rand(9000, 2, generator=generator) * spread
    sizes = 30 + 20 * torch.rand(9000, 2, generator=generator)
    boxes = torch.cat([centers, centers + sizes], dim=1)
    scores = torch.randn(9000, generator=generator)
    levels = torch.randint(3, (9000,), generator=generator)
    candidates = Candidates(Boxes(boxes), scores, levels, (spread + 50, spread + 50))
    found = dual_nms(candidates, thresh_cls=0.5, thresh_reg=0.8, topk_cls=700, topk_reg=1000)
    for mark, thresh, topk in ((found.for_cls, 0.5, 700), (found.for_reg, 0.8, 1000)):
        expected = batched_nms(boxes, scores, levels, thresh)[:topk]
        assert torch.equal(found[mark].proposal_boxes.tensor, boxes[expected])
        assert torch.equal(found[mark].objectness_logits, scores[expected])
    assert (found.for_cls.sum() < 700) == (spread == 40)


def test_no_candidate():
    none = torch.zeros(0, dtype=torch.int64)
    empty = Candidates(Boxes(torch.zeros(0, 4)), torch.zeros(0), none, (20, 30))
    proposals = dual_nms(empty, thresh_cls=0.7, thresh_reg=0.85, topk_cls=9, topk_reg=9)
    assert len(proposals) == 0
    assert proposals.for_cls.dtype == proposals.for_reg.dtype == torch.bool


def test_candidates_by_hand():
    level0 = torch.tensor([[[0.0, 0, 4, 4], [1, 1, 9, 9], [5, 5, 40, 9]]])
    level1 = torch.tensor([[[-50.0, 0, -20, 20], [0, 0, 8, 8]]])
    logits = [torch.tensor([[0.1, 0.3, 0.2]]), torch.tensor([[0.9, -0.5]])]
    (found,) = select_candidates([level0, level1], logits, [(20, 30)], pre_nms_topk=2)
    # The two best of each level; the third is clipped, the fourth lies outside.
    assert found.boxes.tensor.tolist() == [[1, 1, 9, 9], [5, 5, 30, 9], [0, 0, 8, 8]]
    torch.testing.assert_close(found.logits, torch.tensor([0.3, 0.2, -0.5]))
    assert found.levels.tolist() == [0, 0, 1]
    assert found.image_size == (20, 30)
    (found,) = select_candidates([level0, level1], logits, [(20, 30)], 2, min_box_size=6.0)
    assert found.boxes.tensor.tolist() == [[1, 1, 9, 9], [0, 0, 8, 8]]


@pytest.mark.parametrize("where", ["box", "score"])
def test_candidates_that_are_not_finite(where):
    boxes, logits = torch.ones(1, 2, 4), torch.zeros(1, 2)
    (boxes if where == "box" else logits).flatten()[1] = float("nan")
    with pytest.raises(FloatingPointError, match="diverged"):
        select_candidates([boxes], [logits], [(20, 30)], pre_nms_topk=2)


@pytest.fixture
def propose(build_tiny, make_batch):
    """Proposals of a tiny model in the given mode, with seeded weights."""

    def propose(name, training, **keys):
        model = build_tiny({"MODEL.PROPOSAL_GENERATOR.NAME": name}, **keys)
        for layer in (model.proposal_generator.rpn_head.objectness_logits, model.backbone.stem[0]):
            torch.nn.init.normal_(layer.weight, std=0.2)
        model.train(training)
        images = model.preprocess_image(make_batch([([10, 10, 50, 40], 0)], []))
        assert isinstance(images, ImageList)
        targets = [b["instances"] for b in make_batch([([10, 10, 50, 40], 0)], [])]
        with EventStorage(0):
            torch.manual_seed(0)
            features = model.backbone(images.tensor)
            return model.proposal_generator(images, features, targets)

    return propose


def test_at_inference_it_is_the_stock_rpn(propose):
    found, losses = propose("DecoupledRPN", training=False)
    expected, _ = propose("RPN", training=False)
    assert losses == {}
    for a, b in zip(found, expected, strict=True):
        assert set(a.get_fields()) == {"proposal_boxes", "objectness_logits"}
        assert len(a) > 20
        assert torch.equal(a.proposal_boxes.tensor, b.proposal_boxes.tensor)
        assert torch.equal(a.objectness_logits, b.objectness_logits)


def test_with_equal_thresholds_it_trains_on_the_stock_set(propose):
    equal = {"NMS_THRESH_CLS": 0.7, "NMS_THRESH_REG": 0.7, "POST_NMS_TOPK_REG_TRAIN": 50}
    found, losses = propose("DecoupledRPN", training=True, **equal)
    expected, stock_losses = propose("RPN", training=True)
    for a, b in zip(found, expected, strict=True):
        assert a.for_cls.all() and a.for_reg.all()
        assert len(a) > 20
        assert torch.equal(a.proposal_boxes.tensor, b.proposal_boxes.tensor)
        assert torch.equal(a.objectness_logits, b.objectness_logits)
        assert not a.proposal_boxes.tensor.requires_grad
        assert not a.objectness_logits.requires_grad
    assert {k: v.item() for k, v in losses.items()} == {
        k: v.item() for k, v in stock_losses.items()
    }


def test_the_set_to_classify_is_the_stock_set(propose):
    found, _ = propose("DecoupledRPN", training=True)
    expected, _ = propose("RPN", training=True)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a[a.for_cls].proposal_boxes.tensor, b.proposal_boxes.tensor)
        assert a.for_reg.sum() == 60
        assert not a.for_reg.equal(a.for_cls)


def test_small_proposals_are_left_out_in_training(build_tiny):
    rpn = build_tiny({"MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 20}).proposal_generator.train()
    small, large = [0.0, 0, 10, 10], [40.0, 0, 70, 30]
    anchors, logits = [Boxes(torch.tensor([small, large]))], [torch.tensor([[2.0, 1.0]])]
    (found,) = rpn.predict_proposals(anchors, logits, [torch.zeros(1, 2, 4)], [(90, 90)])
    assert found.proposal_boxes.tensor.tolist() == [large]
