"""Equal to the layer of Detectron2, bit for bit."""

import pytest
import torch

from clsloc.layers import ThreadedROIAlign
from clsloc.layers.threaded_roi_align import _workers
from detectron2.layers import ROIAlign

ARGUMENTS = ((7, 7), 0.25, 2, True)


@pytest.fixture
def threads():
    def set_threads(count):
        torch.set_num_threads(count)
        _workers.cache_clear()

    before = torch.get_num_threads()
    yield set_threads
    set_threads(before)


def pool(cls, x, rois, arguments=ARGUMENTS):
    x = x.detach().requires_grad_()
    output = cls(*arguments[:3], aligned=arguments[3])(x, rois)
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
    (grad,) = torch.autograd.grad((output * weights).sum(), x)
    return output, grad


def boxes(num_images=2, num=20):
    corners = torch.rand(num, 2, 2) * torch.tensor([100.0, 60.0])
    images = torch.arange(num)[:, None] % num_images
    return torch.cat([images, corners.amin(dim=1), corners.amax(dim=1)], dim=1)


@pytest.mark.parametrize("count", [1, 2, 3, 16])
@pytest.mark.parametrize("channels", [1, 5, 8])
@pytest.mark.parametrize("arguments", [ARGUMENTS, ((3, 5), 0.125, 0, False)])
def test_output_and_gradient(count, channels, arguments, threads):
    threads(count)
    x, rois = torch.randn(2, channels, 16, 26), boxes()
    found = pool(ThreadedROIAlign, x, rois, arguments)
    expected = pool(ROIAlign, x, rois, arguments)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert found[0].abs().sum() > 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layouts(layout, threads):
    threads(2)
    x, rois = torch.randn(2, 8, 16, 26), boxes()
    found = pool(ThreadedROIAlign, x.contiguous(memory_format=layout), rois)
    for a, b in zip(found, pool(ROIAlign, x, rois), strict=True):
        assert torch.equal(a, b)


def test_no_boxes(threads):
    threads(2)
    output, grad = pool(ThreadedROIAlign, torch.randn(1, 4, 8, 8), torch.zeros(0, 5))
    assert output.shape == (0, 4, 7, 7) and grad.eq(0).all()


def test_mixed_precision_goes_the_usual_way(threads):
    threads(2)
    layer, usual = ThreadedROIAlign(*ARGUMENTS), ROIAlign(*ARGUMENTS)
    x, rois = torch.randn(2, 4, 16, 26).bfloat16(), boxes()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x, rois), usual(x, rois))
    assert torch.equal(layer(x.double(), rois.double()), usual(x.double(), rois.double()))


def test_no_gradient_is_no_graph(threads):
    threads(2)
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    with torch.no_grad():
        assert not ThreadedROIAlign(*ARGUMENTS)(x, boxes(1)).requires_grad
    assert ThreadedROIAlign(*ARGUMENTS)(x, boxes(1)).requires_grad
