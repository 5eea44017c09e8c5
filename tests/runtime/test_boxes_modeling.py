"""Anchors, box transforms, matcher, sampler, pooler and postprocessing, on either Detectron2."""

import math

import pytest
import torch

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator, detector_postprocess
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import (
    Box2BoxTransform,
    Box2BoxTransformLinear,
    _dense_box_regression_loss,
)
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, Instances


def _random_boxes(count: int, size: float = 50) -> torch.Tensor:
    corner = torch.rand(count, 2) * size
    return torch.cat([corner, corner + 1 + torch.rand(count, 2) * size], dim=1)


# --- anchors -------------------------------------------------------------------------------------


def test_cell_anchors_have_the_area_and_the_ratio():
    generator = DefaultAnchorGenerator(sizes=[[8, 16]], aspect_ratios=[[0.5, 2.0]], strides=[4])
    cell = generator.generate_cell_anchors((8, 16), (0.5, 2.0))
    width, height = (cell[:, 2:] - cell[:, :2]).unbind(1)
    torch.testing.assert_close(width * height, torch.tensor([64.0, 64, 256, 256]))
    torch.testing.assert_close(height / width, torch.tensor([0.5, 2, 0.5, 2]))
    torch.testing.assert_close(cell[:, :2], -cell[:, 2:])


def test_anchors_go_row_by_row():
    generator = DefaultAnchorGenerator(
        sizes=[[2], [4]], aspect_ratios=[[1.0]], strides=[4, 8], offset=0.5
    )
    assert generator.num_anchors == generator.num_cell_anchors == [1, 1]
    first, second = generator([torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 1)])
    assert first.get_centers().tolist() == [[2, 2], [6, 2], [2, 6], [6, 6]]
    assert first.tensor[0].tolist() == [1, 1, 3, 3]
    assert second.tensor.tolist() == [[2, 2, 6, 6]]
    assert not generator.state_dict(), "anchors are not part of a checkpoint"


def test_anchor_generator_from_config():
    cfg = get_cfg()
    generator = build_anchor_generator(cfg, [ShapeSpec(stride=8), ShapeSpec(stride=16)])
    assert generator.num_anchors == [15, 15] and generator.box_dim == 4
    with pytest.raises(AssertionError):
        DefaultAnchorGenerator(sizes=[[1], [2], [3]], aspect_ratios=[[1.0]], strides=[4, 8])
    with pytest.raises(AssertionError):
        DefaultAnchorGenerator(sizes=[[1]], aspect_ratios=[[1.0]], strides=[4], offset=1.0)


# --- box transforms ------------------------------------------------------------------------------


def test_deltas_by_hand():
    source = torch.tensor([[0.0, 0, 10, 20]])
    target = torch.tensor([[1.0, 2, 21, 12]])
    # Centres (5, 10) and (11, 7); twice as wide, half as high.
    deltas = Box2BoxTransform((10, 10, 5, 5)).get_deltas(source, target)
    expected = [10 * 6 / 10, 10 * -3 / 20, 5 * math.log(2), -5 * math.log(2)]
    torch.testing.assert_close(deltas, torch.tensor([expected]))
    linear = Box2BoxTransformLinear(normalize_by_size=False).get_deltas(source, target)
    assert linear.tolist() == [[4, 8, 16, 2]]
    normalized = Box2BoxTransformLinear().get_deltas(source, target)
    torch.testing.assert_close(normalized, torch.tensor([[0.4, 0.4, 1.6, 0.1]]))


@pytest.mark.parametrize(
    "transform",
    [
        Box2BoxTransform((10, 10, 5, 5)),
        Box2BoxTransformLinear(),
        Box2BoxTransformLinear(normalize_by_size=False),
    ],
)
def test_apply_deltas_undoes_get_deltas(transform):
    source = _random_boxes(10)
    centre = (source[:, :2] + source[:, 2:]) / 2
    target = torch.cat([centre - torch.rand(10, 2) * 9, centre + torch.rand(10, 2) * 9], dim=1)
    deltas = transform.get_deltas(source, target)
    torch.testing.assert_close(transform.apply_deltas(deltas, source), target)
    assert transform.apply_deltas(deltas[:0], source[:0]).shape == (0, 4)
    with pytest.raises(AssertionError):
        transform.get_deltas(Boxes(source), Boxes(target))


def test_apply_deltas_of_several_classes():
    transform, source = Box2BoxTransform((1, 1, 1, 1)), _random_boxes(3)
    deltas = torch.randn(3, 8)
    both = transform.apply_deltas(deltas, source)
    torch.testing.assert_close(both[:, :4], transform.apply_deltas(deltas[:, :4], source))
    torch.testing.assert_close(both[:, 4:], transform.apply_deltas(deltas[:, 4:], source))


def test_apply_deltas_limits_growth_and_computes_in_float():
    transform, source = Box2BoxTransform((1, 1, 1, 1)), torch.tensor([[0.0, 0, 16, 16]])
    grown = transform.apply_deltas(torch.tensor([[0.0, 0, 100, 100]]), source)
    torch.testing.assert_close(grown, torch.tensor([[-492.0, -492, 508, 508]]))
    assert transform.apply_deltas(torch.zeros(1, 4).half(), source.half()).dtype == torch.float32


def test_linear_transform_takes_no_negative_distance():
    source = torch.tensor([[0.0, 0, 10, 20]])
    transform = Box2BoxTransformLinear(normalize_by_size=False)
    assert transform.apply_deltas(torch.tensor([[-3.0, 2, 1, -5]]), source).tolist() == [
        [5, 8, 6, 10]
    ]


def test_deltas_refuse_sources_without_width():
    with pytest.raises(AssertionError):
        Box2BoxTransform((1, 1, 1, 1)).get_deltas(torch.zeros(1, 4), torch.ones(1, 4))


def _dense_inputs(fg_mask: torch.Tensor) -> dict:
    transform, targets = Box2BoxTransform((1, 1, 1, 1)), [_random_boxes(3), _random_boxes(3)]
    anchors = _random_boxes(3)
    exact = torch.stack([transform.get_deltas(anchors, target) for target in targets])
    return {
        "anchors": [Boxes(anchors[:2]), Boxes(anchors[2:])],
        "box2box_transform": transform,
        "pred_anchor_deltas": [
            (exact[:, :2] + 0.25).requires_grad_(),
            (exact[:, 2:] + 0.25).requires_grad_(),
        ],
        "gt_boxes": targets,
        "fg_mask": fg_mask,
    }


def test_dense_box_regression_loss_counts_foreground_only():
    fg_mask = torch.tensor([[True, False, True], [False, False, True]])
    inputs = _dense_inputs(fg_mask)
    # Each of three anchors is off by a quarter in four numbers.
    loss = _dense_box_regression_loss(**inputs)
    torch.testing.assert_close(loss, torch.tensor(3.0))
    loss.backward()
    first, second = (deltas.grad for deltas in inputs["pred_anchor_deltas"])
    assert first.abs().sum() == 4 and second.abs().sum() == 8
    half = _dense_box_regression_loss(**inputs, smooth_l1_beta=1.0)
    torch.testing.assert_close(half, torch.tensor(12 * 0.5 * 0.25**2))


@pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou", "ciou"])
def test_dense_box_regression_loss_without_foreground(kind):
    inputs = _dense_inputs(torch.zeros(2, 3, dtype=torch.bool))
    loss = _dense_box_regression_loss(**inputs, box_reg_loss_type=kind)
    loss.backward()
    assert loss.item() == 0
    assert all(deltas.grad.abs().sum() == 0 for deltas in inputs["pred_anchor_deltas"])


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_dense_iou_losses_compare_boxes(kind):
    inputs = _dense_inputs(torch.ones(2, 3, dtype=torch.bool))
    assert 0 < _dense_box_regression_loss(**inputs, box_reg_loss_type=kind) < 6 * 2
    inputs["pred_anchor_deltas"] = [deltas - 0.25 for deltas in inputs["pred_anchor_deltas"]]
    exact = _dense_box_regression_loss(**inputs, box_reg_loss_type=kind)
    assert exact.item() == pytest.approx(0, abs=1e-4)


def test_dense_box_regression_loss_of_unknown_type():
    with pytest.raises(ValueError, match="l3"):
        _dense_box_regression_loss(
            **_dense_inputs(torch.ones(2, 3, dtype=torch.bool)), box_reg_loss_type="l3"
        )


# --- matcher and sampler -------------------------------------------------------------------------

QUALITY = torch.tensor([[0.2, 0.9, 0.5, 0.6, 0.0, 0.3], [0.3, 0.1, 0.7, 0.5, 0.0, 0.1]])


def test_matcher_by_thresholds():
    matches, labels = Matcher([0.3, 0.7], [0, -1, 1])(QUALITY)
    assert matches.tolist() == [1, 0, 1, 0, 0, 0]
    # A quality equal to a threshold is above it.
    assert labels.tolist() == [-1, 1, 1, -1, 0, -1]
    assert matches.dtype == torch.int64 and labels.dtype == torch.int8


def test_matcher_low_quality_matches_change_labels_only():
    quality = torch.tensor([[0.5, 0.5, 0.1], [0.2, 0.6, 0.4]])
    # 0.6 is the best of the second row, 0.5 of the first, twice; the second column prefers row 1.
    matches, labels = Matcher([0.7, 0.8], [0, -1, 1], allow_low_quality_matches=True)(quality)
    assert matches.tolist() == [0, 1, 1]
    assert labels.tolist() == [1, 1, 0]


@pytest.mark.parametrize("low_quality", [False, True])
def test_matcher_without_ground_truth(low_quality):
    matches, labels = Matcher([0.3, 0.7], [0, -1, 1], low_quality)(QUALITY[:0])
    assert matches.tolist() == labels.tolist() == [0] * 6
    assert labels.dtype == torch.int8
    assert len(Matcher([0.5], [0, 1], low_quality)(QUALITY[:, :0])[0]) == 0


@pytest.mark.parametrize(
    ("thresholds", "labels"), [([0.7, 0.3], [0, -1, 1]), ([0.5], [0, 1, 1]), ([0.5], [0, 2])]
)
def test_matcher_refuses(thresholds, labels):
    with pytest.raises(AssertionError):
        Matcher(thresholds, labels)


def test_matcher_refuses_negative_quality():
    with pytest.raises(AssertionError):
        Matcher([0.5], [0, 1])(-QUALITY)


def test_subsample_fills_up_with_negatives_only():
    labels = torch.tensor([0, 1, 2, -1, 0, 1, 80, 80, 80])
    positive, negative = subsample_labels(labels, 4, 0.5, bg_label=80)
    assert len(positive) == len(negative) == 2
    positive, negative = subsample_labels(labels, 20, 0.9, bg_label=80)
    assert sorted(positive.tolist()) == [0, 1, 2, 4, 5]
    assert sorted(negative.tolist()) == [6, 7, 8]
    positive, negative = subsample_labels(labels, 8, 0.25, bg_label=80)
    assert len(positive) == 2 and len(negative) == 3
    positive, negative = subsample_labels(labels[:0], 8, 0.25, bg_label=80)
    assert len(positive) == len(negative) == 0


def test_subsample_draws_two_permutations_positives_first():
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 0])
    torch.manual_seed(3)
    positive, negative = subsample_labels(labels, 4, 0.5, bg_label=0)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert positive.tolist() == torch.randperm(3)[:2].tolist()
    assert negative.tolist() == (3 + torch.randperm(4)[:2]).tolist()
    assert torch.equal(after, torch.rand(1))


def test_subsample_is_uniform():
    labels = torch.tensor([1] * 5 + [0] * 5)
    counts = torch.zeros(10)
    for _ in range(2000):
        for drawn in subsample_labels(labels, 4, 0.5, bg_label=0):
            counts[drawn] += 1
    # Each is drawn with probability 2/5: 800 times, with a standard deviation of 22.
    assert (counts - 800).abs().max() < 5 * 22


# --- pooler and postprocessing -------------------------------------------------------------------


def test_levels_by_size():
    boxes = Boxes(torch.tensor([[0.0, 0, s, s] for s in (10, 111, 112, 223, 224, 448, 2000)]))
    levels = assign_boxes_to_levels([boxes], 2, 5, 224, 4)
    assert levels.tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert assign_boxes_to_levels([boxes[:0]], 2, 5, 224, 4).dtype == torch.int64


def test_pooler_format_counts_images():
    none, two = Boxes(torch.zeros(0, 4)), Boxes(torch.ones(2, 4))
    rows = convert_boxes_to_pooler_format([two[:1], none, two])
    assert rows[:, 0].tolist() == [0, 2, 2] and rows.shape == (3, 5)
    assert convert_boxes_to_pooler_format([none]).shape == (0, 5)


def _pooler_and_maps() -> tuple[ROIPooler, list[torch.Tensor]]:
    """Maps of strides 4 and 8 that hold 10 * level + image everywhere."""
    maps = [torch.zeros(2, 1, 64 // s, 64 // s) for s in (4, 8)]
    for level, map_ in enumerate(maps):
        map_ += 10 * level + torch.arange(2.0).view(2, 1, 1, 1)
        map_.requires_grad_()
    return ROIPooler(2, [1 / 4, 1 / 8], 0, "ROIAlignV2", 32, 3), maps


def test_pooler_takes_each_box_from_its_level_and_image_in_order():
    pooler, maps = _pooler_and_maps()
    big, small = [0.0, 0.0, 40.0, 40.0], [4.0, 4.0, 12.0, 12.0]
    boxes = [Boxes(torch.tensor([big, small])), Boxes(torch.tensor([small, big, small]))]
    out = pooler(maps, boxes)
    assert out.shape == (5, 1, 2, 2)
    torch.testing.assert_close(out.mean(dim=(1, 2, 3)), torch.tensor([10.0, 0, 1, 11, 1]))
    out.sum().backward()
    # A box gives each of its four cells the weight 1.
    assert maps[0].grad.sum(dim=(1, 2, 3)).tolist() == pytest.approx([4, 8])
    assert maps[1].grad.sum(dim=(1, 2, 3)).tolist() == pytest.approx([4, 4])


def test_pooler_gives_every_map_a_gradient():
    pooler, maps = _pooler_and_maps()
    none = Boxes(torch.zeros(0, 4))
    out = pooler(maps, [none, none])
    assert out.shape == (0, 1, 2, 2)
    out.sum().backward()
    assert all(map_.grad is not None and map_.grad.abs().sum() == 0 for map_ in maps)
    assert pooler([map_[:0] for map_ in maps], []).shape == (0, 1, 2, 2)


@pytest.mark.parametrize("kind", ["ROIAlign", "ROIAlignV2", "ROIPool"])
def test_pooler_of_one_map(kind):
    x = torch.ones(1, 3, 8, 8)
    out = ROIPooler((2, 3), [1 / 4], 2, kind)([x], [Boxes(torch.tensor([[4.0, 4, 20, 20]]))])
    assert out.shape == (1, 3, 2, 3) and torch.all(out == 1)


def test_pooler_refuses():
    for scales in ([1 / 4, 1 / 16], [1 / 8, 1 / 4], [1 / 3]):
        with pytest.raises(AssertionError):
            ROIPooler(2, scales, 0, "ROIAlignV2")
    with pytest.raises(ValueError, match="NoSuchPooler"):
        ROIPooler(2, [1 / 4], 0, "NoSuchPooler")
    pooler, maps = _pooler_and_maps()
    with pytest.raises(AssertionError):
        pooler(maps[:1], [Boxes(torch.zeros(0, 4))] * 2)
    with pytest.raises(AssertionError):
        pooler(maps, [Boxes(torch.zeros(0, 4))])


@pytest.mark.parametrize("field", ["pred_boxes", "proposal_boxes"])
def test_postprocess_scales_clips_and_drops(field):
    boxes = Boxes(torch.tensor([[0.0, 0, 10, 10], [5, 5, 40, 20], [3, 3, 3, 4], [-5, -5, -1, -1]]))
    results = Instances((10, 20), scores=torch.arange(4), **{field: boxes})
    results = detector_postprocess(results, 20, 10)
    assert results.image_size == (20, 10)
    assert results.get(field).tensor.tolist() == [[0, 0, 5, 20], [2.5, 10, 10, 20]]
    assert results.scores.tolist() == [0, 1]
