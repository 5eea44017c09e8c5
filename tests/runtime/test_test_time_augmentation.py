"""Views of an image, and the merging of what is found in them."""

import importlib.util
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.data.detection_utils import read_image
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.structures import Boxes, Instances

PARITY = runpy.run_path(str(Path(__file__).with_name("parity.py")))
EMBEDDED = importlib.util.find_spec("detectron2._left_out") is not None


def make_config(**keys):
    cfg = PARITY["config"]("faster_rcnn_fpn", "tiny").clone()
    cfg.defrost()
    cfg.merge_from_list([item for pair in keys.items() for item in pair])
    return cfg


def picture(height=40, width=60):
    """Its left half is black."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, :, width // 2 :] = 200
    return image


class Finder(GeneralizedRCNN):
    """Finds in each view what a list says, and remembers the batches."""

    def __init__(self, *found):
        torch.nn.Module.__init__(self)
        self.found, self.batches = list(found), []
        self.input_format, self.roi_heads = "BGR", None

    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        assert detected_instances is None and not do_postprocess
        self.batches.append([tuple(x["image"].shape[1:]) for x in batched_inputs])
        return [self._instances(x["image"], self.found.pop(0)) for x in batched_inputs]

    @staticmethod
    def _instances(image, found):
        boxes, scores, classes = zip(*found) if found else ((), (), ())
        return Instances(
            tuple(image.shape[1:]),
            pred_boxes=Boxes(torch.tensor(boxes).float().reshape(-1, 4)),
            scores=torch.tensor(scores).float(),
            pred_classes=torch.tensor(classes).long(),
        )


def detect(finder, given, batch_size=3, **keys):
    cfg = make_config(**{"TEST.AUG.MIN_SIZES": (40,), **keys})
    (output,) = GeneralizedRCNNWithTTA(cfg, finder, batch_size=batch_size)([given])
    found = output["instances"]
    return found.pred_boxes.tensor.tolist(), found.scores.tolist(), found.pred_classes.tolist()


def inputs(**more):
    return {"image": picture(), "height": 40, "width": 60, **more}


def test_views_are_resized_and_mirrored_in_turn():
    mapper = DatasetMapperTTA(make_config(**{"TEST.AUG.MIN_SIZES": (20, 80)}))
    views = mapper(inputs(file_name="a.png"))
    sizes = [(20, 30), (20, 30), (80, 120), (80, 120)]
    assert [tuple(view["image"].shape[1:]) for view in views] == sizes
    assert [bool(view["image"][0, 5, 1] == 0) for view in views] == [True, False, True, False]
    assert all(view["image"].dtype == torch.uint8 for view in views)
    assert all(view["file_name"] == "a.png" and view["height"] == 40 for view in views)


def test_the_longer_edge_has_a_limit_and_mirrors_are_a_choice():
    mapper = DatasetMapperTTA([20, 80], 60, False)
    sizes = [tuple(view["image"].shape[1:]) for view in mapper(inputs())]
    assert sizes == [(20, 30), (40, 60)]


@pytest.mark.parametrize("view", [0, 1])
def test_transforms_lead_from_the_original_image_to_the_view(view):
    """The loader has shrunk the original of 80x120 by 2; the views shrink it once more."""
    mapper = DatasetMapperTTA([20], 1000, True)
    views = mapper({"image": picture(), "height": 80, "width": 120})
    forth = views[view]["transforms"].apply_box(np.array([[40.0, 20, 80, 60]]))
    assert forth[0].tolist() == [10, 5, 20, 15]  # symmetric about the middle of the width
    back = views[view]["transforms"].inverse().apply_box(np.array([[0.0, 5, 10, 15]]))
    assert back[0].tolist() == [[0, 20, 40, 60], [80, 20, 120, 60]][view]


def test_boxes_of_all_views_are_merged_by_class_and_best_score():
    box, mirrored = [10, 5, 20, 15], [40, 5, 50, 15]
    plain = [(box, 0.7, 0), (box, 0.3, 1)]
    mirror = [(mirrored, 0.9, 0), ([0, 0, 10, 40], 0.2, 0)]
    boxes, scores, classes = detect(Finder(plain, mirror), inputs())
    assert boxes == [box, box, [50, 0, 60, 40]]
    assert scores == pytest.approx([0.9, 0.3, 0.2])
    assert classes == [0, 1, 0]


def test_merging_goes_by_the_thresholds_of_the_config():
    shifted = [12, 5, 22, 15]  # IoU 2 / 3
    views = [([10, 5, 20, 15], 0.7, 0)], [(shifted, 0.6, 0)]
    keys = {"TEST.AUG.FLIP": False, "TEST.AUG.MIN_SIZES": (40, 40)}
    assert detect(Finder(*views), inputs(), **keys)[1] == pytest.approx([0.7])
    keys["MODEL.ROI_HEADS.NMS_THRESH_TEST"] = 0.7
    assert detect(Finder(*views), inputs(), **keys)[1] == pytest.approx([0.7, 0.6])
    keys["TEST.DETECTIONS_PER_IMAGE"] = 1
    assert detect(Finder(*views), inputs(), **keys)[1] == pytest.approx([0.7])
    # What passed the model's own threshold is not asked again.
    assert detect(Finder([(shifted, 0.001, 0)], []), inputs(), **keys)[1] == pytest.approx([0.001])


def test_boxes_are_clipped_to_the_original_image():
    found = [([-5, -5, 30, 90], 0.7, 0)]
    boxes, _, _ = detect(Finder(found, []), {"image": picture(), "height": 80, "width": 120})
    assert boxes == [[0, 0, 60, 80]]


def test_nothing_is_found_in_any_view():
    assert detect(Finder([], []), inputs()) == ([], [], [])


def test_views_go_through_the_model_in_batches():
    finder = Finder(*[[]] * 6)
    detect(finder, inputs(), batch_size=4, **{"TEST.AUG.MIN_SIZES": (20, 40, 60)})
    assert finder.batches == [[(20, 30)] * 2 + [(40, 60)] * 2, [(60, 90)] * 2]


def test_an_image_may_be_given_by_its_file(tmp_path):
    path = str(tmp_path / "image.png")
    Image.fromarray(picture().permute(1, 2, 0).numpy()).save(path)
    assert read_image(path, "BGR").shape == (40, 60, 3)
    boxes, _, _ = detect(Finder([([10, 5, 20, 15], 0.7, 0)], []), {"file_name": path})
    assert boxes == [[10, 5, 20, 15]]


def test_one_view_is_what_the_model_finds():
    cfg = make_config(**{"TEST.AUG.FLIP": False, "TEST.AUG.MIN_SIZES": (96,)})
    model, given = PARITY["build"]("faster_rcnn_fpn", "tiny"), PARITY["make_inputs"]("tiny")[:1]
    PARITY["spread_predictions"](model, given)
    with torch.no_grad():
        (expected,), (found,) = model.eval()(given), GeneralizedRCNNWithTTA(cfg, model)(given)
    expected, found = expected["instances"], found["instances"]
    assert len(found) == len(expected) > 5
    assert found.pred_classes.equal(expected.pred_classes)
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_what_cannot_be_augmented_is_refused():
    with pytest.raises(AssertionError, match="GeneralizedRCNN"):
        GeneralizedRCNNWithTTA(make_config(), torch.nn.Identity())
    with pytest.raises(AssertionError, match="proposals"):
        GeneralizedRCNNWithTTA(make_config(**{"MODEL.LOAD_PROPOSALS": True}), Finder())
    if EMBEDDED:
        with pytest.raises(NotImplementedError, match="install Detectron2"):
            GeneralizedRCNNWithTTA(make_config(**{"MODEL.MASK_ON": True}), Finder())
