import pytest
import torch

from clsloc.boxes import elementwise_iou, of_class, scale_boxes
from detectron2.structures import Boxes, pairwise_iou


def test_scaling_by_hand():
    boxes = torch.tensor([[10.0, 20.0, 110.0, 70.0], [0.0, 0.0, 10.0, 4.0]])
    expected = torch.tensor([[-5.0, 12.5, 125.0, 77.5], [-1.5, -0.6, 11.5, 4.6]])
    torch.testing.assert_close(scale_boxes(boxes, 1.3), expected)
    torch.testing.assert_close(
        scale_boxes(boxes, 0.5), torch.tensor([[35.0, 32.5, 85.0, 57.5], [2.5, 1.0, 7.5, 3.0]])
    )


def test_scale_one_returns_the_boxes_themselves():
    boxes = torch.rand(7, 4)
    assert scale_boxes(boxes, 1.0) is boxes


def test_the_argument_is_not_changed():
    boxes = torch.tensor([[10.0, 20.0, 110.0, 70.0]])
    scale_boxes(boxes, 2.0)
    assert boxes.tolist() == [[10.0, 20.0, 110.0, 70.0]]


def test_no_boxes_and_boxes_without_area():
    assert scale_boxes(torch.zeros(0, 4), 1.3).shape == (0, 4)
    point = torch.tensor([[5.0, 6.0, 5.0, 6.0]])
    assert torch.equal(scale_boxes(point, 1.3), point)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_must_be_positive(scale):
    with pytest.raises(ValueError, match="larger than 0"):
        scale_boxes(torch.zeros(1, 4), scale)


def test_elementwise_iou_by_hand():
    a = torch.tensor([[0.0, 0.0, 100.0, 100.0]] * 4)
    b = torch.tensor(
        [
            [10.0, 0.0, 110.0, 100.0],  # 90 of 110
            [10.0, 10.0, 110.0, 110.0],  # 8100 of 11900
            [0.0, 0.0, 100.0, 100.0],
            [100.0, 0.0, 200.0, 100.0],  # touches
        ]
    )
    expected = torch.tensor([90 / 110, 8100 / 11900, 1.0, 0.0])
    torch.testing.assert_close(elementwise_iou(a, b), expected)
    torch.testing.assert_close(elementwise_iou(b, a), expected)
    torch.testing.assert_close(elementwise_iou(a[:1], b), expected)


def test_elementwise_iou_of_boxes_without_area_and_of_none():
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert elementwise_iou(point, point).tolist() == [0.0]
    assert elementwise_iou(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


def test_elementwise_iou_is_that_of_pairs():
    corners = torch.rand(2, 30, 2, 2, generator=torch.Generator().manual_seed(0)) * 50
    a, b = torch.cat([corners.amin(dim=2), corners.amax(dim=2)], dim=-1)
    expected = pairwise_iou(Boxes(a), Boxes(b)).diagonal()
    assert expected.max() > 0.3
    torch.testing.assert_close(elementwise_iou(a, b), expected)


def test_elementwise_iou_of_half_precision_does_not_overflow():
    box = torch.tensor([[0.0, 0.0, 1000.0, 1000.0]], dtype=torch.float16)
    assert elementwise_iou(box, box).tolist() == [1.0]


def test_numbers_of_each_rows_class_by_hand():
    values = torch.arange(24.0).reshape(2, 12)
    chosen = of_class(values, torch.tensor([2, 0]))
    assert chosen.tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    shared = values[:, :4]
    assert of_class(shared, torch.tensor([2, 0])) is shared
    assert of_class(torch.zeros(0, 12), torch.zeros(0, dtype=torch.int64)).shape == (0, 4)
