import math

import pytest
import torch

from clsloc.poolers import ScaledROIPooler, build_box_pooler
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes

SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)


def make_pooler(cls=ScaledROIPooler, pooler_type="ROIAlignV2"):
    return cls(output_size=7, scales=SCALES, sampling_ratio=2, pooler_type=pooler_type)


def maps(num_images=1, size=512, channels=3):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(num_images, channels, int(size * s), int(size * s), generator=generator)
        for s in SCALES
    ]


def random_boxes(num, size=512, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(num, 2, 2, generator=generator) * size
    return Boxes(torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1))


@pytest.mark.parametrize("pooler_type", ["ROIAlign", "ROIAlignV2"])
def test_scale_one_equals_the_stock_pooler_bit_for_bit(pooler_type):
    features, boxes = maps(2), [random_boxes(30), random_boxes(9, seed=1)]
    stock = make_pooler(ROIPooler, pooler_type)(features, boxes)
    assert torch.equal(make_pooler(pooler_type=pooler_type)(features, boxes), stock)


def test_the_level_is_that_of_the_box_as_given():
    # 4 + log2(173 / 224) = 3.63 is level 3; enlarged by 1.3 it is 224.9 px and would be level 4.
    assert math.floor(4 + math.log2(173 * 1.3 / 224)) == 4
    features = [torch.full_like(f, level) for level, f in enumerate(maps(), start=2)]
    box = Boxes(torch.tensor([[100.0, 100.0, 273.0, 273.0]]))
    assert torch.all(make_pooler()(features, [box], 1.3) == 3)


def test_scaled_windows_on_one_level_equal_enlarged_boxes():
    # At 60 and at 78 px a box belongs to level 2, so the stock pooler can be the judge.
    features = maps()
    pooled = make_pooler()(features, [Boxes(torch.tensor([[100.0, 100.0, 160.0, 160.0]]))], 1.3)
    enlarged = Boxes(torch.tensor([[91.0, 91.0, 169.0, 169.0]]))
    torch.testing.assert_close(pooled, make_pooler(ROIPooler)(features, [enlarged]))


def test_rows_keep_the_order_of_the_boxes():
    features, boxes = maps(2), [random_boxes(12), random_boxes(5, seed=1)]
    together = make_pooler()(features, boxes, 1.3)
    for image, start in ((0, 0), (1, 12)):
        for row in range(len(boxes[image])):
            one_map = [f[image : image + 1] for f in features]
            alone = make_pooler()(one_map, [boxes[image][row]], 1.3)
            torch.testing.assert_close(together[start + row], alone[0])


def test_boxes_are_not_changed_and_windows_not_clipped():
    box = Boxes(torch.tensor([[0.0, 0.0, 64.0, 64.0]]))
    ones = [torch.ones_like(f) for f in maps()]
    pooled = make_pooler()(ones, [box], 2.0)
    assert box.tensor.tolist() == [[0.0, 0.0, 64.0, 64.0]]
    # Half of the window lies outside of the image on two sides.
    assert pooled[0, 0, 0, 0] == 0
    assert pooled[0, 0, -1, -1] == 1


@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_no_boxes(scale):
    boxes = [Boxes(torch.zeros(0, 4)), Boxes(torch.zeros(0, 4))]
    assert make_pooler()(maps(2), boxes, scale).shape == (0, 3, 7, 7)


def test_a_single_level():
    pooler = ScaledROIPooler(7, (1 / 16,), sampling_ratio=2, pooler_type="ROIAlignV2")
    features, box = [maps()[2]], Boxes(torch.tensor([[100.0, 100.0, 200.0, 300.0]]))
    enlarged = Boxes(torch.tensor([[85.0, 70.0, 215.0, 330.0]]))
    torch.testing.assert_close(pooler(features, [box], 1.3), pooler(features, [enlarged]))


def test_gradients_reach_every_level():
    features = [f.requires_grad_() for f in maps()]
    sides = torch.tensor([50.0, 120.0, 240.0, 480.0])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], dim=1)
    make_pooler()(features, [Boxes(boxes)], 1.3).sum().backward()
    assert all(f.grad.abs().sum() > 0 for f in features)


def test_pooler_of_a_config():
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3"]
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 5
    shapes = {f"p{i}": ShapeSpec(channels=6, stride=2**i) for i in (2, 3, 4)}
    pooler, shape = build_box_pooler(cfg, shapes)
    assert isinstance(pooler, ScaledROIPooler)
    assert (shape.channels, shape.height, shape.width) == (6, 5, 5)
    assert [p.spatial_scale for p in pooler.level_poolers] == [1 / 4, 1 / 8]
