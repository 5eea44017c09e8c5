"""Test-time augmentation: candidates of all views in one frame, then one NMS."""

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch.nn.parallel import DistributedDataParallel

from clsloc.engine.tta import with_tta
from ddod import DDODWithTTA
from ddod.inference import DenseInference
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances

MODELS = [
    ("ddod_atss_R_50_FPN_1x", {}),
    ("ddod_atss_R_50_FPN_1x", {"TEST.NMS_TYPE": "soft", "TEST.SCORE_FUSION": "sqrt"}),
    ("ddod_atss_R_50_FPN_1x", {"TEST.NMS_TYPE": "vote", "TEST.SCORE_FUSION": "power"}),
    ("atss_centerness_R_50_FPN_1x", {}),
    ("ddod_fcos_R_50_FPN_1x", {}),
    ("ddod_retinanet_R_50_FPN_1x", {}),
]
SIZE = (40, 60)
BOX, MIRRORED = [10, 5, 20, 15], [40, 5, 50, 15]
# Scores around 0.2 rather than the 0.01 of an untrained model.
EASY = {"PRIOR_PROB": 0.2}


class Finder(torch.nn.Module):
    """Finds in each view what a list says, and remembers the batches."""

    def __init__(self, *found, device="cpu", **options):
        super().__init__()
        self.device = torch.device(device)
        self.found, self.batches = list(found), []
        self.inference = DenseInference(Box2BoxTransform((1.0, 1.0, 1.0, 1.0)), **options)

    def candidates(self, batched_inputs):
        self.batches.append([tuple(x["image"].shape[1:]) for x in batched_inputs])
        return [candidates(self.found.pop(0), x["image"].shape[1:]) for x in batched_inputs]


def candidates(found, size):
    boxes, scores, classes = zip(*found) if found else ((), (), ())
    return Instances(
        tuple(size),
        pred_boxes=Boxes(torch.tensor(boxes).float().reshape(-1, 4)),
        scores=torch.tensor(scores).float(),
        pred_classes=torch.tensor(classes).long(),
    )


@pytest.fixture
def detect(make_cfg):
    def detect(finder, height=40, width=60, sizes=(40,), flip=True, **options):
        cfg = make_cfg(overrides={"TEST.AUG.MIN_SIZES": sizes, "TEST.AUG.FLIP": flip})
        given = {"image": torch.zeros(3, *SIZE), "height": height, "width": width}
        (output,) = DDODWithTTA(cfg, finder, **options)([given])
        found = output["instances"]
        assert found.image_size == (height, width)
        return found.pred_boxes.tensor.tolist(), found.scores.tolist(), found.pred_classes.tolist()

    return detect


def test_candidates_of_a_mirror_image_fall_on_those_of_the_image(detect):
    plain = [(BOX, 0.7, 0), (BOX, 0.3, 1)]
    mirror = [(MIRRORED, 0.9, 0), ([0, 0, 10, 40], 0.2, 0)]
    boxes, scores, classes = detect(Finder(plain, mirror))
    assert boxes == [BOX, BOX, [50, 0, 60, 40]]
    assert scores == pytest.approx([0.9, 0.3, 0.2])
    assert classes == [0, 1, 0]


def test_views_of_other_sizes_come_back_to_the_original_image(detect):
    """The loader has halved the original of 80x120; the views are a half and twice that."""
    small, large = [([5, 5, 15, 15], 0.7, 0)], [([20, 20, 60, 60], 0.8, 0), (BOX, 0.5, 2)]
    finder = Finder(small, large)
    boxes, scores, _ = detect(finder, 80, 120, sizes=(20, 80), flip=False)
    assert boxes == [[20, 20, 60, 60], BOX]
    assert scores == pytest.approx([0.8, 0.5])
    assert finder.batches == [[(20, 30)], [(80, 120)]]


def test_only_views_of_one_size_share_a_batch(detect):
    finder = Finder(*[[]] * 8, device="meta")
    detect(finder, sizes=(20, 40, 40, 60))
    assert finder.batches == [[(20, 30)] * 2, [SIZE] * 3, [SIZE], [(60, 90)] * 2]
    finder = Finder(*[[]] * 2)
    detect(finder)  # on a CPU
    assert finder.batches == [[SIZE], [SIZE]]
    finder = Finder(*[[]] * 2)
    detect(finder, batch_size=2)
    assert finder.batches == [[SIZE] * 2]


def test_soft_nms_sees_all_views_at_once(detect):
    """The second view finds the box again: its score falls by its IoU of 1 with the first, those
    of IoU 0.8 with it to a fifth."""
    views = [(BOX, 0.9, 0)], [(BOX, 0.8, 0), ([10, 5, 20, 13], 0.5, 0)]
    boxes, scores, _ = detect(Finder(*views, nms_type="soft"), sizes=(40, 40), flip=False)
    assert boxes == [BOX, [10, 5, 20, 13]]
    assert scores == pytest.approx([0.9, 0.1])


def test_voting_sees_all_views_at_once(detect):
    """The box of the first view moves by the share of the second in the scores, a quarter."""
    views = [(BOX, 0.9, 0)], [([10, 5, 20, 13], 0.3, 0)]
    boxes, scores, _ = detect(Finder(*views, nms_type="vote"), sizes=(40, 40), flip=False)
    assert boxes == [pytest.approx([10, 5, 20, 14.5])]
    assert scores == pytest.approx([0.9])


def test_low_boxes_of_the_original_image_go(detect):
    """Boxes of 10 and 8 pixels in a view of half the original's size."""
    view = [(BOX, 0.9, 0), ([30, 5, 40, 13], 0.8, 0)]
    options = {"height": 80, "width": 120, "sizes": (40,), "flip": False}
    assert len(detect(Finder(view, min_height=16.0), **options)[0]) == 2
    boxes, _, _ = detect(Finder(view, min_height=17.0), **options)
    assert boxes == [[20, 10, 40, 30]]


def test_nothing_found_and_most_detections(detect):
    assert detect(Finder([], [])) == ([], [], [])
    views = [(BOX, 0.9, 0)], [(BOX, 0.8, 1), (BOX, 0.7, 2)]
    found = detect(Finder(*views, max_detections=2), sizes=(40, 40), flip=False)
    assert found[1] == pytest.approx([0.9, 0.8])


def test_boxes_are_clipped_and_those_without_area_go(detect):
    view = [([-5, -5, 30, 90], 0.7, 0), ([61, 2, 70, 20], 0.9, 0)]
    assert detect(Finder(view), flip=False)[0] == [[0, 0, 30, 40]]


def test_an_image_may_be_given_by_its_file(tmp_path, make_cfg):
    path = str(tmp_path / "image.png")
    Image.new("RGB", SIZE[::-1]).save(path)
    cfg = make_cfg(overrides={"TEST.AUG.MIN_SIZES": (80,), "TEST.AUG.FLIP": False})
    (output,) = DDODWithTTA(cfg, Finder([([20, 10, 40, 30], 0.5, 0)]))([{"file_name": path}])
    assert output["instances"].image_size == SIZE
    assert output["instances"].pred_boxes.tensor.tolist() == [BOX]


@pytest.fixture
def augment(make_cfg):
    def augment(model, sizes=(64,), flip=False):
        keys = {"TEST.AUG.MIN_SIZES": sizes, "TEST.AUG.FLIP": flip}
        return with_tta(make_cfg(overrides=keys), model)

    return augment


@pytest.mark.parametrize("config, keys", MODELS)
def test_one_view_is_what_the_model_finds(config, keys, build_tiny, make_batch, augment):
    model = build_tiny(config=config, **EASY, **keys).eval()
    batch = make_batch([], [])
    batch[1]["image"] = batch[1]["image"][:, :, :80]
    batch[1]["height"], batch[1]["width"] = 128, 160
    with torch.no_grad():
        outputs = augment(model)(batch)
        for given, output in zip(batch, outputs, strict=True):
            expected, found = model([given])[0]["instances"], output["instances"]
            assert len(found) == len(expected) > 10
            assert found.image_size == expected.image_size
            torch.testing.assert_close(found.scores, expected.scores)
            torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
            assert found.pred_classes.equal(expected.pred_classes)


@pytest.mark.parametrize("config, keys", MODELS)
def test_an_image_and_its_mirror_image_have_mirrored_detections(
    config, keys, build_tiny, make_batch, augment
):
    model = build_tiny(config=config, **EASY, **keys).eval()
    (given,) = make_batch([])
    mirrored = {**given, "image": given["image"].flip(2)}
    with torch.no_grad():
        one, other = (out["instances"] for out in augment(model, flip=True)([given, mirrored]))
    boxes = one.pred_boxes.tensor[:10]
    expected = torch.stack([96 - boxes[:, 2], boxes[:, 1], 96 - boxes[:, 0], boxes[:, 3]], dim=1)
    torch.testing.assert_close(other.pred_boxes.tensor[:10], expected, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(other.scores, one.scores)


def test_scores_hold_the_quality(build_tiny, make_batch, augment):
    model = build_tiny(**EASY).eval()
    torch.nn.init.zeros_(model.head.quality.weight)
    torch.nn.init.constant_(model.head.quality.bias, -1.0986123)  # a quality of 1 / 4
    with torch.no_grad():
        (found,) = augment(model, (64, 96), flip=True)(make_batch([]))
        model.head.quality.bias.fill_(100.0)
        (full,) = augment(model, (64, 96), flip=True)(make_batch([]))
    assert len(found["instances"]) > 10
    torch.testing.assert_close(found["instances"].scores * 4, full["instances"].scores)


def test_a_model_that_is_wrapped_for_several_processes(build_tiny, augment):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = build_tiny()
        assert augment(DistributedDataParallel(model)).model is model
    finally:
        dist.destroy_process_group()


def test_the_augmented_model_keeps_the_mode_of_the_model(build_tiny, augment):
    model = build_tiny()
    assert not augment(model.eval()).training and not model.training
    assert augment(model.train()).training and model.training
