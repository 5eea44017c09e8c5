"""Boxes, BoxMode, Instances and ImageList, on either Detectron2."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from detectron2.structures import (
    Boxes,
    BoxMode,
    ImageList,
    Instances,
    pairwise_ioa,
    pairwise_iou,
    pairwise_point_box_distance,
)
from detectron2.structures.boxes import matched_pairwise_iou, pairwise_intersection


def _boxes(*rows: list[float]) -> Boxes:
    return Boxes(torch.tensor(rows))


def _rows(boxes: Boxes) -> list[list[float]]:
    return boxes.tensor.tolist()


# --- BoxMode -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor])
def test_box_mode_keeps_container_and_dtype(make):
    box = make([[5, 6, 3, 4]]) if make in (np.array, torch.tensor) else make([5, 6, 3, 4])
    xyxy = BoxMode.convert(box, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    assert type(xyxy) is type(box)
    assert np.asarray(xyxy).reshape(-1).tolist() == [5, 6, 8, 10]
    assert np.asarray(xyxy).dtype == np.asarray(box).dtype
    back = BoxMode.convert(xyxy, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    assert np.asarray(back).reshape(-1).tolist() == [5, 6, 3, 4]
    assert np.asarray(box).reshape(-1).tolist() == [5, 6, 3, 4], "the input was changed"


def test_box_mode_encloses_a_rotated_box():
    # A square of side 2 turned by 45 degrees is 2 * sqrt(2) wide; a quarter turn swaps the sides.
    boxes = torch.tensor([[10.0, 20.0, 2.0, 2.0, 45.0], [0.0, 0.0, 4.0, 2.0, -90.0]])
    upright = BoxMode.convert(boxes, BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)
    r = math.sqrt(2)
    expected = torch.tensor([[10 - r, 20 - r, 10 + r, 20 + r], [-1.0, -2.0, 1.0, 2.0]])
    torch.testing.assert_close(upright, expected)


def test_box_mode_refuses_what_it_cannot_convert():
    with pytest.raises(AssertionError):
        BoxMode.convert([0.1, 0.1, 0.2, 0.2], BoxMode.XYXY_REL, BoxMode.XYXY_ABS)
    with pytest.raises(AssertionError):
        BoxMode.convert([1, 2, 3], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    with pytest.raises(NotImplementedError):
        BoxMode.convert([1, 2, 3, 4], BoxMode.XYXY_ABS, BoxMode.XYWHA_ABS)
    box = [0.1, 0.1, 0.2, 0.2]
    assert BoxMode.convert(box, BoxMode.XYXY_REL, BoxMode.XYXY_REL) == box


def test_box_mode_values_are_those_in_datasets():
    assert [mode.value for mode in BoxMode] == [0, 1, 2, 3, 4]
    assert BoxMode(1) is BoxMode.XYWH_ABS


# --- Boxes ---------------------------------------------------------------------------------------


def test_boxes_are_float32_and_share_memory():
    tensor = torch.zeros(2, 4)
    assert Boxes(tensor).tensor is tensor
    assert Boxes([[0, 0, 1, 2]]).tensor.dtype == torch.float32
    assert Boxes(np.zeros((2, 4))).tensor.dtype == torch.float32


@pytest.mark.parametrize("empty", [torch.zeros(0), torch.zeros(0, 5), []])
def test_nothing_becomes_no_boxes(empty):
    assert Boxes(empty).tensor.shape == (0, 4)


@pytest.mark.parametrize("shape", [(4,), (2, 5), (1, 1, 4)])
def test_boxes_refuse_other_shapes(shape):
    with pytest.raises(AssertionError):
        Boxes(torch.zeros(shape))


def test_boxes_measure():
    boxes = _boxes([0, 0, 4, 5], [1, 1, 1, 3], [2, 2, 8, 4])
    assert boxes.area().tolist() == [20, 0, 12]
    assert boxes.get_centers().tolist() == [[2, 2.5], [1, 2], [5, 3]]
    assert boxes.nonempty().tolist() == [True, False, True]
    assert boxes.nonempty(threshold=2).tolist() == [True, False, False]
    assert boxes.inside_box((6, 8)).tolist() == [True, True, False]
    assert boxes.inside_box((6, 8), boundary_threshold=1).tolist() == [True, True, True]


def test_clip_replaces_the_tensor_and_scale_writes_to_it():
    tensor = torch.tensor([[-5.0, -5.0, 100.0, 100.0]])
    boxes = Boxes(tensor)
    boxes.clip((4, 6))
    assert _rows(boxes) == [[0, 0, 6, 4]]
    assert tensor.tolist() == [[-5, -5, 100, 100]]
    tensor = boxes.tensor
    boxes.scale(2, 3)
    assert tensor.tolist() == [[0, 0, 12, 12]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_clip_refuses_numbers_that_are_not_finite(value):
    with pytest.raises(AssertionError):
        _boxes([0, value, 1, 1]).clip((3, 3))


def test_boxes_index():
    boxes = _boxes([0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3])
    assert _rows(boxes[-1]) == [[0, 0, 3, 3]]
    assert _rows(boxes[1:]) == [[0, 0, 2, 2], [0, 0, 3, 3]]
    assert _rows(boxes[torch.tensor([True, False, True])]) == [[0, 0, 1, 1], [0, 0, 3, 3]]
    assert _rows(boxes[torch.tensor([2, 0])]) == [[0, 0, 3, 3], [0, 0, 1, 1]]
    assert [box.tolist() for box in boxes] == _rows(boxes)
    with pytest.raises(AssertionError):
        boxes[:, 0]


def test_boxes_cat():
    first, second = _boxes([0, 0, 1, 1]), _boxes([0, 0, 2, 2])
    assert _rows(Boxes.cat([first, second])) == [[0, 0, 1, 1], [0, 0, 2, 2]]
    assert Boxes.cat([first]).tensor is not first.tensor
    assert len(Boxes.cat([])) == 0


# --- overlaps ------------------------------------------------------------------------------------


def test_pairwise_overlaps():
    left = _boxes([0, 0, 2, 2], [5, 5, 5, 9])
    right = _boxes([0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 4, 2], [0, 0, 2, 1])
    # Overlaps 4, 1, 0 (touching) and 2; unions 4, 7, 8 and 4.
    torch.testing.assert_close(
        pairwise_intersection(left, right), torch.tensor([[4.0, 1, 0, 2], [0, 0, 0, 0]])
    )
    torch.testing.assert_close(
        pairwise_iou(left, right), torch.tensor([[1, 1 / 7, 0, 0.5], [0, 0, 0, 0]])
    )
    torch.testing.assert_close(
        pairwise_ioa(left, right), torch.tensor([[1, 0.25, 0, 1], [0, 0, 0, 0]])
    )


def test_matched_pairwise_iou_is_the_diagonal():
    corner = torch.rand(6, 2)
    first = Boxes(torch.cat([corner, corner + torch.rand(6, 2) + 0.1], dim=1))
    second = Boxes(first.tensor + 0.05)
    torch.testing.assert_close(
        matched_pairwise_iou(first, second), pairwise_iou(first, second).diagonal()
    )
    with pytest.raises(AssertionError):
        matched_pairwise_iou(first, second[:2])


def test_overlaps_of_no_boxes():
    none, one = Boxes(torch.zeros(0, 4)), _boxes([0, 0, 1, 1])
    assert pairwise_iou(none, one).shape == (0, 1)
    assert pairwise_ioa(one, none).shape == (1, 0)
    assert matched_pairwise_iou(none, none).shape == (0,)


def test_pairwise_iou_of_empty_boxes_is_zero():
    empty = _boxes([1, 1, 1, 1])
    assert pairwise_iou(empty, empty).item() == 0


def test_point_box_distance():
    distance = pairwise_point_box_distance(
        torch.tensor([[1.0, 2.0], [9.0, 0.0]]), _boxes([0, 0, 4, 5])
    )
    assert distance.tolist() == [[[1, 2, 3, 3]], [[9, 0, -5, 5]]]


# --- Instances -----------------------------------------------------------------------------------


def test_instances_fields():
    instances = Instances((3, 4), scores=torch.tensor([0.5, 0.25]))
    instances.boxes = _boxes([0, 0, 1, 1], [0, 0, 2, 2])
    instances.set("names", ["a", "b"])
    assert len(instances) == 2 and instances.image_size == (3, 4)
    assert instances.has("names") and not instances.has("masks")
    assert instances.get("names") is instances.names
    assert list(instances.get_fields()) == ["scores", "boxes", "names"]
    instances.remove("names")
    assert not instances.has("names")
    with pytest.raises(AttributeError):
        _ = instances.names
    with pytest.raises(AssertionError):
        instances.wrong = [1, 2, 3]
    assert "scores" in str(instances) and "num_instances=2" in repr(instances)


def test_instances_without_fields_have_no_length():
    with pytest.raises(NotImplementedError):
        len(Instances((1, 1)))


def test_instances_index_every_field_alike():
    instances = Instances(
        (3, 4), x=torch.arange(3), b=Boxes(torch.arange(12.0).view(3, 4)), names=["a", "b", "c"]
    )
    last = instances[-1]
    assert len(last) == 1 and last.names == ["c"] and last.x.tolist() == [2]
    assert last.image_size == (3, 4)
    assert instances[1:].names == ["b", "c"]
    for index in (3, -4):
        with pytest.raises(IndexError):
            instances[index]
    with pytest.raises(NotImplementedError):
        iter(instances)
    chosen = Instances((3, 4), x=torch.arange(3))[torch.tensor([True, False, True])]
    assert chosen.x.tolist() == [0, 2]


def test_instances_cat():
    one = Instances((3, 4), x=torch.zeros(1), b=_boxes([0, 0, 1, 1]), names=["a"])
    two = Instances((3, 4), x=torch.ones(2), b=Boxes(torch.ones(2, 4)), names=["b", "c"])
    both = Instances.cat([one, two])
    assert both.x.tolist() == [0, 1, 1] and both.names == ["a", "b", "c"] and len(both.b) == 3
    assert Instances.cat([one]) is one
    with pytest.raises(AssertionError):
        Instances.cat([one, Instances((9, 9), x=torch.zeros(1))])
    with pytest.raises(ValueError):
        Instances.cat([Instances((1, 1), x=np.zeros(1))] * 2)


def test_instances_copy_and_pickle():
    instances = Instances((3, 4), x=torch.arange(2))
    for other in (copy.deepcopy(instances), pickle.loads(pickle.dumps(instances))):
        assert other.image_size == (3, 4) and other.x.tolist() == [0, 1]
        assert other.x is not instances.x


def test_instances_to_moves_what_can_move():
    moved = Instances((1, 1), x=torch.arange(2), names=["a", "b"]).to("cpu")
    assert moved.x.tolist() == [0, 1] and moved.names == ["a", "b"]


# --- ImageList -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ({}, (6, 7)),
        ({"size_divisibility": 4}, (8, 8)),
        ({"size_divisibility": 4, "padding_constraints": {"size_divisibility": 8}}, (8, 8)),
        ({"padding_constraints": {"size_divisibility": 5}}, (10, 10)),
        ({"padding_constraints": {"square_size": 9}}, (9, 9)),
        ({"padding_constraints": {"square_size": 0}}, (6, 7)),
    ],
)
def test_image_list_pads_right_and_below(arguments, size):
    images = [torch.ones(3, 5, 7), torch.full((3, 6, 4), 2.0)]
    batch = ImageList.from_tensors(images, pad_value=-1.0, **arguments)
    assert batch.tensor.shape == (2, 3, *size)
    assert batch.image_sizes == [(5, 7), (6, 4)] and len(batch) == 2
    for i, image in enumerate(images):
        assert torch.equal(batch[i], image)
        assert (batch.tensor[i] == -1).sum() == 3 * size[0] * size[1] - image.numel()


def test_image_list_copies_a_single_image():
    image = torch.zeros(3, 4, 4)
    batch = ImageList.from_tensors([image], 4)
    batch.tensor += 1
    assert image.sum() == 0


def test_image_list_takes_gradients_and_dtypes():
    image = torch.ones(1, 2, 2, requires_grad=True)
    ImageList.from_tensors([image, torch.ones(1, 3, 3)]).tensor.sum().backward()
    assert image.grad.sum() == 4
    assert ImageList.from_tensors([torch.ones(1, 2, 2, dtype=torch.uint8)]).tensor.dtype == (
        torch.uint8
    )
    assert ImageList.from_tensors([torch.ones(1, 2, 2)]).to(torch.float64).tensor.dtype == (
        torch.float64
    )


@pytest.mark.parametrize("images", [[], [torch.ones(3, 2, 2), torch.ones(1, 2, 2)]])
def test_image_list_refuses(images):
    with pytest.raises(AssertionError):
        ImageList.from_tensors(images)
