"""The measurements of section 3, against numbers by hand and a plain computation."""

import math

import pytest
import torch

from clsloc.analysis import iou_bins, sliding_windows
from clsloc.boxes import elementwise_iou
from detectron2.structures import Boxes, Instances
from double_head.analysis import HeadAnalysis, difficulty_of_classes

SINGLE_FC = {"LOSS_WEIGHTS": [1.0, 1.0, 0.0, 0.0]}
EXT = {"LAMBDA_FC": 0.7, "LAMBDA_CONV": 0.8}
BOX = [43.0, 27.0, 53.0, 37.0]  # all of its windows lie in the image of 64x96
# Of the 14,175 windows of any box, by IoU in steps of 0.05.
HISTOGRAM = [
    *[2608, 1428, 1376, 1368, 988, 2162, 524, 692, 957, 625],
    *[216, 208, 180, 397, 225, 44, 56, 40, 44, 37],
]


@pytest.fixture
def build(build_tiny):
    def build(**keys):
        model = build_tiny(**keys).eval()
        for p in model.roi_heads.box_predictor.parameters():
            torch.nn.init.normal_(p, std=0.2)
        return model

    return build


def test_counts_means_and_correlation_of_all_windows(build, make_batch):
    model = build(**SINGLE_FC)
    (item,) = make_batch([(BOX, 1)])
    analysis = HeadAnalysis(model)
    analysis.add(item)
    report = analysis.report()
    assert list(report["groups"]) == ["all", "small"]
    group = report["groups"]["small"]
    assert group == report["groups"]["all"] and group["objects"] == 1
    assert group["count"] == HISTOGRAM

    exact = torch.tensor(BOX, dtype=torch.float64)
    exact_windows = sliding_windows(exact[None])[0]
    gt, windows = exact.float(), exact_windows.float()
    given = [Instances((64, 96), proposal_boxes=Boxes(windows))]
    with torch.no_grad():
        features = model.backbone(model.preprocess_image([item]).tensor)
        predictions = model.roi_heads.raw_outputs(features, given).predictions
    logits, deltas = predictions["fc_cls"], predictions["fc_reg"].view(14175, -1, 4)
    scores = logits.softmax(dim=1)[:, 1].double()
    transform = model.roi_heads.box_predictor.box2box_transform
    boxes = Boxes(transform.apply_deltas(deltas[:, min(1, deltas.shape[1] - 1)], windows))
    boxes.clip((64, 96))
    before = elementwise_iou(exact_windows, exact.expand_as(exact_windows))
    after = elementwise_iou(boxes.tensor, gt.expand_as(windows))
    bins = iou_bins(before)
    for i in (0, 5, 19):
        chosen = bins == i
        for what, values in (("score", scores), ("iou", after.double())):
            found = {key: group[what]["fc"][key][i] for key in ("mean", "std")}
            expected = values[chosen].mean().item(), values[chosen].std(correction=0).item()
            assert (found["mean"], found["std"]) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    expected = torch.corrcoef(torch.stack([before, scores]))[0, 1].item()
    assert group["pcc"]["fc"] == pytest.approx(expected, abs=1e-5)


def test_groups_towers_and_cells(build, make_batch):
    model = build(**EXT)
    item, empty = make_batch([(BOX, 1), ([10, 5, 60, 60], 2)], [])
    item.update(height=128, width=192)  # twice the size: 20x20 and 100x110 pixels
    difficulties = {1: "easy", 2: "hard"}
    analysis = HeadAnalysis(model, difficulties=difficulties, windows=60, seed=3)
    analysis.add(item)
    analysis.add(empty)
    report = analysis.report()
    objects = {name: group["objects"] for name, group in report["groups"].items()}
    assert objects == {"all": 2, "small": 1, "easy": 1, "large": 1, "hard": 1}
    assert sum(report["groups"]["small"]["count"]) == 60
    assert list(report["proposals"]) == ["fc", "conv"]
    assert set(report["cells"]) == {"fc map", "fc weights", "conv map"}
    for similarity in map(torch.tensor, report["cells"].values()):
        assert similarity.shape == (49, 49)
        torch.testing.assert_close(similarity, similarity.T, atol=1e-5, rtol=0)
    weights = torch.tensor(report["cells"]["fc weights"])
    torch.testing.assert_close(weights.diagonal(), torch.ones(49))
    again = HeadAnalysis(model, difficulties=difficulties, windows=60, seed=3)
    again.add(item)
    assert repr(again.report()["groups"]) == repr(report["groups"])  # NaN differs from itself


def test_without_objects_there_is_nothing_to_say(build, make_batch):
    analysis = HeadAnalysis(build(**SINGLE_FC))
    analysis.add(make_batch([])[0])
    report = analysis.report()
    assert report["groups"] == {} and report["cells"] == {} and math.isnan(report["detections"])


def test_classes_in_thirds():
    groups = difficulty_of_classes({label: 80.0 - label for label in range(80)})
    counts = [list(groups.values()).count(name) for name in ("easy", "medium difficulty", "hard")]
    assert counts == [27, 27, 26] and groups[0] == "easy" and groups[79] == "hard"
