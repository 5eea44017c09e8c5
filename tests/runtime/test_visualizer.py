"""Drawing boxes on images and videos, on either Detectron2.

What a label looks like is each library's own business: tested is where something is drawn.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import ColorMode, VisImage, Visualizer, _create_text_labels

SIZE = 100, 140


@pytest.fixture
def gray() -> np.ndarray:
    return np.full((*SIZE, 3), 128, dtype=np.uint8)


def _instances(boxes: list, classes: list[int] | None = None, **fields) -> Instances:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    classes = torch.zeros(len(boxes), dtype=torch.int64) if classes is None else classes
    return Instances(SIZE, pred_boxes=Boxes(boxes), pred_classes=torch.as_tensor(classes), **fields)


def _metadata(**values):
    name = "visualizer_test_" + "_".join(values)
    return MetadataCatalog.get(name).set(**values)


def _changed(picture: VisImage, before: np.ndarray) -> np.ndarray:
    """(H, W) where the picture differs visibly."""
    return np.abs(picture.get_image().astype(int) - before).max(axis=2) > 30


def test_label_texts():
    assert _create_text_labels([0, 1], [0.5, 0.999], ["cat", "dog"]) == ["cat 50%", "dog 100%"]
    assert _create_text_labels([0, 1], None, ["cat", "dog"], [1, 0]) == ["cat|crowd", "dog"]
    assert _create_text_labels([3], [0.5], None) == ["3 50%"]
    assert _create_text_labels(None, [0.5], None) == ["50%"]
    assert _create_text_labels(None, None, None) is None


def test_untouched_picture_is_the_image():
    image = np.random.RandomState(0).randint(0, 256, (*SIZE, 3)).astype(np.uint8)
    for given in (image, image.astype(np.float64)):
        output = Visualizer(given).get_output()
        assert (output.get_image() == image).all()
        assert output.get_image().dtype == np.uint8
    assert (output.width, output.height) == (140, 100)


def test_box_outline(gray):
    picture = Visualizer(gray).draw_box((40, 30, 90, 70), alpha=1, edge_color="r")
    changed = _changed(picture, gray)
    assert changed[30, 45:85].all()
    assert changed[69:71, 45:85].any(axis=0).all()
    assert changed[35:65, 40].all()
    assert not changed[36:64, 46:84].any()
    outside = changed.copy()
    outside[25:76, 35:96] = False
    assert not outside.any()
    red = picture.get_image()[30, 65]
    assert red[0] > 200
    assert red[1:].max() < 60


@pytest.mark.parametrize("color", ["#0000ff", "blue", "b", (0, 0, 1)])
def test_colors(gray, color):
    picture = Visualizer(gray).draw_box((40, 30, 90, 70), alpha=1, edge_color=color)
    pixel = picture.get_image()[30, 65]
    assert pixel[2] > 200
    assert pixel[:2].max() < 60


def test_dashes_leave_gaps(gray):
    picture = Visualizer(gray).draw_box((10, 20, 130, 80), alpha=1, edge_color="r", line_style="--")
    share = _changed(picture, gray)[20, 15:125].mean()
    assert 0.2 < share < 0.9


def test_scale_enlarges_picture_and_drawing(gray):
    picture = Visualizer(gray, scale=2).draw_box((40, 30, 90, 70), alpha=1, edge_color="r")
    image = picture.get_image()
    assert image.shape == (200, 280, 3)
    red = (image[:, :, 0] > 180) & (image[:, :, 1] < 90)
    assert red[60, 90:170].all()
    assert not red[70:130, 90:170].any()


def test_lines_and_circles(gray):
    visualizer = Visualizer(gray)
    visualizer.draw_line([10, 60], [50, 50], color="k")
    changed = _changed(visualizer.draw_circle((100, 40), color="w", radius=5), gray)
    assert changed[48:52, 12:58].any(axis=0).all()
    assert changed[38:42, 98:102].all()
    assert not changed[60:, :].any()


def test_text_lies_at_its_position(gray):
    for alignment, columns in (
        ("left", slice(70, 140)),
        ("right", slice(0, 72)),
        ("center", slice(40, 100)),
    ):
        picture = Visualizer(gray).draw_text(
            "abc", (70, 40), color="w", horizontal_alignment=alignment
        )
        changed = _changed(picture, gray)
        inside = changed[36:66, columns].sum()
        assert inside > 0.9 * changed.sum() > 0


def test_predictions_have_boxes_and_labels(gray):
    instances = _instances([[30, 40, 110, 90]], scores=torch.tensor([0.9]))
    with_label = Visualizer(gray, _metadata(thing_classes=["cat"]))
    changed = _changed(with_label.draw_instance_predictions(instances), gray)
    without_label = Visualizer(gray).overlay_instances(boxes=instances.pred_boxes, alpha=1)
    lines = _changed(without_label, gray)
    assert lines[40, 40:100].all()
    assert changed.sum() > lines.sum() + 50


def test_assigned_colors_and_every_kind_of_boxes(gray):
    array = np.array([[20.0, 20, 60, 60], [70, 30, 130, 90]])
    colors = [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0)]
    pictures = [
        Visualizer(gray).overlay_instances(boxes=boxes, assigned_colors=colors, alpha=1).get_image()
        for boxes in (array, torch.tensor(array), Boxes(torch.tensor(array)))
    ]
    assert pictures[0][20, 40].argmax() == 0
    assert pictures[0][30, 100].argmax() == 2
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] == pictures[2]).all()


def test_nothing_to_draw(gray):
    visualizer = Visualizer(gray)
    visualizer.draw_instance_predictions(_instances([], scores=torch.zeros(0)))
    visualizer.draw_dataset_dict({"annotations": []})
    visualizer.overlay_instances(boxes=None)
    assert not _changed(visualizer.get_output(), gray).any()


def test_boxes_beyond_the_image(gray):
    picture = Visualizer(gray).overlay_instances(
        boxes=np.array([[-50.0, -50, 300, 300], [120, 80, 500, 500], [5, 5, 5, 5]]),
        labels=["around", "cut", "point"],
    )
    assert picture.get_image().shape == gray.shape


def test_annotations(gray):
    annotation = {"bbox": [40, 30, 50, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    visualizer = Visualizer(gray, _metadata(thing_classes=["cat"]))
    changed = _changed(visualizer.draw_dataset_dict({"annotations": [annotation]}), gray)
    assert changed[40:60, 40].all()
    assert changed[40:60, 89:91].any(axis=1).all()
    assert not changed[50:64, 50:84].any()


def test_class_colors(gray):
    metadata = _metadata(thing_classes=["a", "b"], thing_colors=[(255, 0, 0), (0, 0, 255)])
    visualizer = Visualizer(gray, metadata, instance_mode=ColorMode.SEGMENTATION)
    instances = _instances([[10, 40, 60, 90], [70, 40, 130, 90]], classes=[0, 1])
    image = visualizer.draw_instance_predictions(instances, jittering=False).get_image()
    assert image[65, 10].argmax() == 0
    assert image[65, 70].argmax() == 2


def test_gray_mode():
    image = np.zeros((*SIZE, 3), dtype=np.uint8)
    image[:, :, 0] = 240
    visualizer = Visualizer(image, instance_mode=ColorMode.IMAGE_BW)
    drawn = visualizer.draw_instance_predictions(_instances([])).get_image()
    assert (drawn == 80).all()


def test_saved_picture_is_the_picture(gray, tmp_path):
    picture = Visualizer(gray).draw_box((40, 30, 90, 70))
    picture.save(str(tmp_path / "picture.png"))
    saved = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB"))
    assert (saved == picture.get_image()).all()


def _outline_color(picture: VisImage, x: int, y: int) -> list[int]:
    return picture.get_image()[y, x].tolist()


def test_colors_follow_objects_through_a_video():
    frame = np.zeros((*SIZE, 3), dtype=np.uint8)
    video = VideoVisualizer(MetadataCatalog.get("visualizer_test_video"))
    same = []
    for step in range(4):
        boxes = [[10 + step, 50, 50 + step, 95], [80, 50, 130, 95]]
        order = [1, 0] if step % 2 else [0, 1]  # detections come in any order
        picture = video.draw_instance_predictions(
            frame, _instances([boxes[i] for i in order], classes=[order[0], order[1]])
        )
        same.append((_outline_color(picture, 10 + step, 80), _outline_color(picture, 80, 80)))
    assert all(colors == same[0] for colors in same)
    assert max(same[0][0]) > 0
    empty = video.draw_instance_predictions(frame, _instances([]))
    assert (empty.get_image() == frame).all()


def test_given_colors_and_numbers_in_a_video():
    frame = np.zeros((*SIZE, 3), dtype=np.uint8)
    video = VideoVisualizer(MetadataCatalog.get("visualizer_test_video"))
    colored = _instances([[10, 50, 50, 95]], COLOR=[(1.0, 0.0, 0.0)])
    pixel = _outline_color(video.draw_instance_predictions(frame, colored), 10, 80)
    assert pixel[0] > 60
    assert pixel[1:] == [0, 0]

    # The tracker's numbers count, wherever the objects are.
    first = video.draw_instance_predictions(
        frame, _instances([[10, 50, 50, 95], [80, 50, 130, 95]], ID=[4, 9])
    )
    second = video.draw_instance_predictions(
        frame, _instances([[80, 50, 130, 95], [10, 50, 50, 95]], ID=[4, 9])
    )
    assert _outline_color(first, 10, 80) == _outline_color(second, 80, 80)
    assert _outline_color(first, 80, 80) == _outline_color(second, 10, 80)
    assert _outline_color(first, 10, 80) != _outline_color(first, 80, 80)


def test_left_out_parts_name_detectron2(gray):
    pytest.importorskip("detectron2._left_out", reason="the real Detectron2 has all of them")
    visualizer = Visualizer(gray)
    uses = [
        lambda: visualizer.draw_binary_mask(gray[:, :, 0]),
        lambda: visualizer.overlay_instances(boxes=np.zeros((1, 4)), masks=[gray[:, :, 0]]),
        lambda: visualizer.overlay_instances(boxes=np.zeros((1, 5))),
        lambda: visualizer.draw_instance_predictions(
            _instances([[1, 1, 9, 9]], pred_masks=torch.zeros(1, *SIZE))
        ),
    ]
    for use in uses:
        with pytest.raises(NotImplementedError, match="install Detectron2"):
            use()
