import pytest
import torch

from clsloc.boxes import scale_boxes


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
