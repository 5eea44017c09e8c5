"""The attention of Eq. 1, by hand first."""

import math

import pytest
import torch

from clsloc.errors import UserError
from detectron2.layers import ROIAlign


@pytest.fixture
def make():
    from grcn import GlobalContext

    def make(channels, seed=0, std=0.5, **kwargs):
        torch.manual_seed(seed)
        return GlobalContext(channels, init_std=std, **kwargs).double()

    return make


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_one_channel_by_hand(make):
    """Logits 0 and ln 3, weights 1/4 and 3/4, one cell of value 1."""
    context = make(1)
    torch.nn.init.ones_(context.query.weight)
    torch.nn.init.ones_(context.key.weight)
    whole = torch.tensor([0.0, math.log(3)]).double().view(1, 1, 1, 2)
    enriched, (weights,) = context(torch.ones(1, 1, 1, 1).double(), whole, [1])
    assert weights.flatten().tolist() == pytest.approx([0.25, 0.75])
    assert enriched.item() == pytest.approx(1 + 0.75 * math.log(3))


def test_zero_projections_add_the_mean_of_the_image(make):
    from grcn.context import attention_entropy

    context = make(6, std=0.0)
    pooled, whole = random(3, 6, 7, 7), random(2, 6, 14, 14, seed=1)
    enriched, weights = context(pooled, whole, [1, 2])
    mean = whole.mean(dim=(2, 3))[[0, 1, 1], :, None, None]
    assert torch.allclose(enriched, pooled + mean)
    assert attention_entropy(weights).item() == pytest.approx(math.log(196), abs=1e-6)
    assert math.log(196) == pytest.approx(5.278, abs=1e-3)


def test_a_constant_image_adds_its_value_whatever_the_weights(make):
    value = random(6).view(1, 6, 1, 1)
    enriched, _ = make(6)(random(2, 6, 7, 7), value.expand(1, 6, 14, 14), [2])
    assert torch.allclose(enriched, random(2, 6, 7, 7) + value)


def plain_attention(context, p, v):
    """Eq. 1 as it is printed, head by head: p (P, D), v (S, D)."""
    projected = (context.query(p), context.key(v), context.value(v))
    outputs = []
    for q, k, values in zip(*(x.chunk(context.num_heads, dim=1) for x in projected)):
        outputs.append((q @ k.T / math.sqrt(q.shape[1])).softmax(dim=1) @ values)
    return p + torch.cat(outputs, dim=1)


@pytest.mark.parametrize(
    "kwargs", [{}, {"key_dim": 4}, {"num_heads": 2, "key_dim": 8}, {"value_proj": True}]
)
def test_is_the_printed_equation_for_each_image(kwargs, make):
    context = make(6, **kwargs)
    pooled, whole = random(3, 6, 2, 3), random(2, 6, 4, 4, seed=1)
    enriched, _ = context(pooled, whole, [2, 1])
    for roi, image in ((0, 0), (1, 0), (2, 1)):
        expected = plain_attention(context, pooled[roi].flatten(1).T, whole[image].flatten(1).T)
        assert torch.allclose(enriched[roi], expected.T.view(6, 2, 3))
    assert (enriched - pooled).abs().max() > 0.1


def test_the_order_of_cells_does_not_matter(make):
    context = make(4)
    pooled, whole = random(2, 4, 3, 3), random(1, 4, 4, 4, seed=1)
    enriched, _ = context(pooled, whole, [2])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    shuffled = whole.flatten(2)[:, :, order].view_as(whole)
    assert torch.allclose(context(pooled, shuffled, [2])[0], enriched)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    moved, _ = context(pooled.flatten(2)[:, :, order].view_as(pooled), whole, [2])
    assert torch.allclose(moved.flatten(2), enriched.flatten(2)[:, :, order])


def test_images_do_not_mix(make):
    context = make(4)
    pooled, whole = random(3, 4, 2, 2), random(2, 4, 3, 3, seed=1)
    both, _ = context(pooled, whole, [1, 2])
    assert torch.allclose(both[:1], context(pooled[:1], whole[:1], [1])[0])
    assert torch.allclose(both[1:], context(pooled[1:], whole[1:], [2])[0])


def test_no_rois(make):
    enriched, weights = make(4)(random(0, 4, 7, 7), random(2, 4, 14, 14), [0, 0])
    assert enriched.shape == (0, 4, 7, 7) and len(weights) == 2
    enriched.sum().backward()


def test_gradients_are_those_of_finite_differences(make):
    context = make(3)
    pooled, whole = random(2, 3, 2, 1).requires_grad_(), random(1, 3, 2, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, v: context(p, v, [2])[0], (pooled, whole))


def test_initial_logits_are_not_saturated():
    """Norms of 100 and D = k = 512: a deviation of sigma^2 |p| |v| = 1."""
    from grcn import GlobalContext

    torch.manual_seed(0)
    context = GlobalContext(512)
    p, v = (100 * torch.nn.functional.normalize(torch.randn(400, 512), dim=1) for _ in range(2))
    keys = context._keys(v[None])[0, 0]
    assert (p @ keys.T).std().item() == pytest.approx(1.0, abs=0.15)
    assert sum(w.numel() for w in context.parameters()) == 524_288


def test_half_precision_runs_in_single(make):
    context = make(4).float()
    pooled, whole = random(2, 4, 2, 2).float(), random(1, 4, 3, 3).float()
    expected, _ = context(pooled.bfloat16(), whole.bfloat16(), [2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        enriched, (weights,) = context(pooled.bfloat16(), whole.bfloat16(), [2])
    assert enriched.dtype == torch.bfloat16 and weights.dtype == torch.float32
    assert torch.equal(enriched, expected)


@pytest.mark.parametrize("kwargs", [{"num_heads": 4}, {"num_heads": 3, "key_dim": 8}])
def test_heads_divide_channels_and_keys(kwargs, make):
    with pytest.raises(UserError, match="NUM_HEADS must divide"):
        make(6, **kwargs)


def test_a_whole_image_of_28_cells_pools_to_means_of_four():
    ramp = torch.arange(28 * 28.0).view(1, 1, 28, 28)
    pool = ROIAlign((14, 14), 1 / 16, 0, aligned=True)
    found = pool(ramp, torch.tensor([[0.0, 0, 0, 448, 448]]))
    assert torch.allclose(found, torch.nn.functional.avg_pool2d(ramp, 2))
