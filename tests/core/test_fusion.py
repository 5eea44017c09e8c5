import pytest
import torch

from clsloc.fusion import FUSIONS, fuse_quality, fuse_scores

SYMMETRIC = [method for method in FUSIONS if method != "none"]


@pytest.mark.parametrize(
    ("method", "expected"),
    [("none", 0.6), ("max", 0.6), ("average", 0.55), ("complementary", 0.8)],
)
def test_fusion_by_hand(method, expected):
    fused = fuse_scores(torch.tensor([0.6]), torch.tensor([0.5]), method)
    torch.testing.assert_close(fused, torch.tensor([expected]))


@pytest.mark.parametrize("method", SYMMETRIC)
def test_fusion_is_symmetric_and_stays_a_probability(method):
    p, q = torch.rand(2, 50, 11, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    fused = fuse_scores(p, q, method)
    torch.testing.assert_close(fused, fuse_scores(q, p, method))
    assert fused.min() >= 0
    assert fused.max() <= 1


def test_complementary_fusion_never_falls_below_the_maximum():
    p, q = torch.rand(2, 50, 11, generator=torch.Generator().manual_seed(0))
    fused = fuse_scores(p, q, "complementary")
    assert torch.all(fused >= fuse_scores(p, q, "max") - 1e-6)
    assert fused.max() <= 1
    assert torch.equal(fuse_scores(p, torch.zeros_like(p), "complementary"), p)
    torch.testing.assert_close(fuse_scores(p, torch.ones_like(p), "complementary"), q * 0 + 1)


def test_complementary_fusion_of_logits_is_not_a_probability():
    p, q = torch.tensor([[3.0, -2.0]]), torch.tensor([[2.0, -1.0]])
    fused = fuse_scores(p, q, "complementary")
    assert fused.min() < 0 or fused.max() > 1


def test_no_rows():
    for method in FUSIONS:
        assert fuse_scores(torch.zeros(0, 3), torch.zeros(0, 3), method).shape == (0, 3)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="'product'"):
        fuse_scores(torch.zeros(1), torch.zeros(1), "product")


def test_quality_by_hand():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 1.0])
    assert torch.equal(fuse_quality(p, q), torch.tensor([0.125, 0.5]))
    torch.testing.assert_close(fuse_quality(p, q, (0.5, 0.5)), torch.tensor([0.125, 0.5]).sqrt())
    expected = torch.tensor([0.5**0.8 * 0.25**1.2, 0.5**0.8])
    torch.testing.assert_close(fuse_quality(p, q, (0.8, 1.2)), expected)
    assert torch.equal(fuse_quality(p, torch.tensor(-2.0)), torch.tensor([-1.0, -1.0]))
    assert fuse_quality(p[:0], q[:0], (0.8, 1.2)).shape == (0,)
