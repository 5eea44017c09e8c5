"""Layers, norms, losses and NMS, on either Detectron2."""

import math

import pytest
import torch
from torch import nn

from detectron2.layers import (
    CNNBlockBase,
    Conv2d,
    CycleBatchNormList,
    DepthwiseSeparableConv2d,
    FrozenBatchNorm2d,
    Linear,
    NaiveSyncBatchNorm,
    ROIAlign,
    ShapeSpec,
    batched_nms,
    cat,
    ciou_loss,
    cross_entropy,
    diou_loss,
    get_norm,
    nonzero_tuple,
    shapes_to_tensor,
)

# --- wrappers ------------------------------------------------------------------------------------


def test_conv2d_applies_norm_then_activation():
    norm = nn.BatchNorm2d(1).eval()
    norm.weight.data.fill_(-1.0)
    conv = Conv2d(1, 1, 1, bias=False, norm=norm, activation=torch.relu)
    conv.weight.data.fill_(2.0)
    out = conv(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)).flatten()
    torch.testing.assert_close(out, torch.tensor([2.0, 0.0]), rtol=1e-4, atol=0)
    assert list(conv.state_dict())[:2] == ["weight", "norm.weight"]
    assert Conv2d(1, 1, 1).norm is None and Conv2d(1, 1, 1).activation is None


def test_empty_batches_pass():
    assert Conv2d(3, 4, 3, stride=2, padding=1)(torch.zeros(0, 3, 9, 8)).shape == (0, 4, 5, 4)
    assert Linear(3, 4)(torch.zeros(0, 3)).shape == (0, 4)
    with pytest.raises(AssertionError):
        Conv2d(3, 4, 1, norm=nn.SyncBatchNorm(4))(torch.zeros(0, 3, 2, 2))


def test_cat_returns_a_single_tensor_itself():
    x = torch.zeros(2)
    assert cat([x]) is x
    assert cat([x, x + 1]).tolist() == [0, 0, 1, 1]


def test_cross_entropy_of_nothing_is_zero_with_a_gradient():
    logits = torch.zeros(0, 3, requires_grad=True)
    target = torch.zeros(0, dtype=torch.int64)
    loss = cross_entropy(logits, target, reduction="mean")
    loss.backward()
    assert loss.item() == 0 and logits.grad.shape == (0, 3)
    assert cross_entropy(logits, target, reduction="none").shape == (0,)


def test_cross_entropy_is_pytorchs():
    uniform = cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))
    assert uniform.item() == pytest.approx(math.log(4))
    weighted = cross_entropy(
        torch.zeros(2, 2), torch.tensor([0, 1]), weight=torch.tensor([1.0, 2.0]), reduction="sum"
    )
    assert weighted.item() == pytest.approx(3 * math.log(2))


def test_small_helpers():
    rows, columns = nonzero_tuple(torch.tensor([[1, 0], [0, 1]]))
    assert rows.tolist() == [0, 1] and columns.tolist() == [0, 1]
    assert shapes_to_tensor([3, 4]).tolist() == [3, 4]
    assert ShapeSpec(channels=3) == ShapeSpec(3, None, None, None) != ShapeSpec(channels=4)


# --- norms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("BN", nn.BatchNorm2d),
        ("SyncBN", nn.SyncBatchNorm),
        ("FrozenBN", FrozenBatchNorm2d),
        ("GN", nn.GroupNorm),
        ("nnSyncBN", nn.SyncBatchNorm),
        ("naiveSyncBN", NaiveSyncBatchNorm),
        ("naiveSyncBN_N", NaiveSyncBatchNorm),
    ],
)
def test_get_norm_by_name(name, kind):
    norm = get_norm(name, 64)
    assert type(norm) is kind
    assert norm.weight.shape == (64,)


def test_get_norm_other_ways():
    assert get_norm("", 64) is None and get_norm(None, 64) is None
    assert get_norm("GN", 64).num_groups == 32
    assert isinstance(get_norm(nn.InstanceNorm2d, 8), nn.InstanceNorm2d)
    with pytest.raises(KeyError):
        get_norm("NoSuchNorm", 64)


def test_layer_norm_normalises_channels_of_a_pixel():
    x = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    out = get_norm("LN", 2)(x)
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([-1.0, 1.0]))
    assert out.shape == x.shape


def _frozen() -> FrozenBatchNorm2d:
    norm = FrozenBatchNorm2d(2, eps=0.0)
    norm.weight, norm.bias = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])
    norm.running_mean, norm.running_var = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 1.0])
    return norm


def test_frozen_batch_norm_is_affine_with_and_without_gradient():
    x = torch.tensor([3.0, 3.0]).view(1, 2, 1, 1)
    # (3 - 1) / 2 * 1 + 0 and (3 - 2) / 1 * 2 + 1
    assert _frozen()(x).flatten().tolist() == [1, 3]
    x = x.clone().requires_grad_()
    out = _frozen()(x)
    out.sum().backward()
    assert out.flatten().tolist() == [1, 3]
    assert x.grad.flatten().tolist() == [0.5, 2]
    assert not list(_frozen().parameters())


def test_frozen_batch_norm_starts_as_identity_and_keeps_the_dtype():
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(FrozenBatchNorm2d(3)(x), x)
    assert FrozenBatchNorm2d(3)(x.half().requires_grad_()).dtype == torch.float16


@pytest.mark.parametrize("version", [None, 1])
def test_frozen_batch_norm_loads_old_checkpoints_without_statistics(version):
    state = FrozenBatchNorm2d(2).state_dict()
    assert state._metadata[""]["version"] == 3
    state._metadata[""] = {} if version is None else {"version": version}
    del state["running_mean"], state["running_var"]
    norm = _frozen()
    norm.load_state_dict(state)
    assert norm.running_mean.tolist() == [0, 0] and norm.running_var.tolist() == [1, 1]


def test_frozen_batch_norm_of_now_needs_its_statistics():
    state = FrozenBatchNorm2d(2).state_dict()
    del state["running_var"]
    with pytest.raises(RuntimeError, match="running_var"):
        FrozenBatchNorm2d(2).load_state_dict(state)


def test_batch_norms_convert_to_frozen_and_back():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4, eps=1e-3)))
    x = torch.randn(2, 3, 5, 5)
    model(x)
    model.eval()
    expected = model(x)
    keys = list(model.state_dict())
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(model)
    assert frozen is model and type(model[1][0]) is FrozenBatchNorm2d
    torch.testing.assert_close(model(x), expected)
    assert list(model.state_dict()) == keys
    thawed = FrozenBatchNorm2d.convert_frozenbatchnorm2d_to_batchnorm2d(model).eval()
    assert type(thawed[1][0]) is nn.BatchNorm2d and thawed[1][0].weight.requires_grad
    torch.testing.assert_close(thawed(x), expected)
    alone = FrozenBatchNorm2d.convert_frozen_batchnorm(nn.SyncBatchNorm(4))
    assert type(alone) is FrozenBatchNorm2d


def test_cycle_batch_norm_list_shares_the_affine_part_only():
    norms = CycleBatchNormList(2, num_features=1)
    assert sorted(name for name, _ in norms.named_parameters()) == ["bias", "weight"]
    low, high = torch.zeros(4, 1, 2, 2), torch.full((4, 1, 2, 2), 10.0)
    for _ in range(3):
        norms(low)
        norms(high)
    assert norms[0].running_mean.item() == 0
    assert norms[1].running_mean.item() == pytest.approx(10 * (1 - 0.9**3))


def test_cnn_block_freezes():
    block = CNNBlockBase(2, 3, 1)
    block.conv = Conv2d(2, 3, 1, norm=get_norm("BN", 3))
    assert block.freeze() is block
    assert type(block.conv.norm) is FrozenBatchNorm2d
    assert not any(parameter.requires_grad for parameter in block.parameters())


def test_depthwise_separable_conv():
    conv = DepthwiseSeparableConv2d(4, 6, norm1="BN", activation2=torch.relu)
    shapes = {name: tuple(p.shape) for name, p in conv.named_parameters()}
    assert shapes["depthwise.weight"] == (4, 1, 3, 3) and "depthwise.bias" not in shapes
    assert shapes["pointwise.weight"] == (6, 4, 1, 1) and shapes["pointwise.bias"] == (6,)
    out = conv(torch.randn(2, 4, 5, 5))
    assert out.shape == (2, 6, 5, 5) and out.min() >= 0


# --- RoIAlign and NMS ----------------------------------------------------------------------------


def test_roi_align_by_hand():
    # Values are 4 * row + column. Without the half pixel, bins sample between the pixels.
    x = torch.arange(16.0).view(1, 1, 4, 4)
    rois = torch.tensor([[0.0, 0, 0, 4, 4]])
    assert ROIAlign(2, 0.5, 0)(x, rois).flatten().tolist() == [0, 1, 4, 5]
    assert ROIAlign(2, 0.5, 0, aligned=False)(x, rois).flatten().tolist() == [2.5, 3.5, 6.5, 7.5]
    assert ROIAlign((1, 2), 0.5, 2)(x, rois[:0]).shape == (0, 1, 1, 2)
    with pytest.raises(AssertionError):
        ROIAlign(2, 0.5, 0)(x, rois[:, 1:])


def test_batched_nms_suppresses_within_a_class_only():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [50, 50, 60, 60]])
    scores = torch.tensor([0.5, 0.9, 0.7, 0.1])
    assert batched_nms(boxes, scores, torch.tensor([0, 0, 1, 0]), 0.5).tolist() == [1, 2, 3]
    assert batched_nms(boxes, scores, torch.zeros(4, dtype=torch.int64), 0.95).tolist() == [
        1,
        0,
        3,
    ]
    assert batched_nms(boxes[:0], scores[:0], torch.zeros(0, dtype=torch.int64), 0.5).shape == (0,)


def test_batched_nms_in_half_precision_keeps_classes_apart():
    # Offsets between classes of thousands of pixels would round neighbouring boxes together.
    boxes = torch.tensor([[1000.0, 1000, 1010, 1010], [1011, 1000, 1021, 1010]]).half()
    idxs = torch.tensor([79, 79])
    assert len(batched_nms(boxes, torch.tensor([0.9, 0.8]), idxs, 0.5)) == 2


# --- IoU losses ----------------------------------------------------------------------------------


def test_diou_and_ciou_by_hand():
    # IoU 1/7; centres sqrt(2) apart, diagonal of the enclosing box sqrt(18); equal aspect ratios.
    first, second = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 3, 3]])
    expected = 1 - 1 / 7 + 2 / 18
    assert diou_loss(first, second).tolist() == pytest.approx([expected])
    assert ciou_loss(first, second).tolist() == pytest.approx([expected])
    # Against a box of 4 x 1 with the same corner: IoU 2/6, centres (1, 0.5) apart, diagonal 20.
    wide = torch.tensor([[0.0, 0, 4, 1]])
    diou = 1 - 2 / 6 + 1.25 / 20
    assert diou_loss(first, wide).item() == pytest.approx(diou)
    v = 4 / math.pi**2 * (math.atan(4) - math.atan(1)) ** 2
    assert ciou_loss(first, wide).item() == pytest.approx(diou + v * v / (2 / 3 + v))


@pytest.mark.parametrize("loss", [diou_loss, ciou_loss])
def test_iou_losses_reduce(loss):
    first = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1]], requires_grad=True)
    second = torch.tensor([[1.0, 1, 3, 3], [0, 0, 1, 1]])
    each = loss(first, second)
    assert each.shape == (2,) and each[1].item() == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(loss(first, second, reduction="sum"), each.sum())
    torch.testing.assert_close(loss(first, second, reduction="mean"), each.mean())
    nothing = loss(first[:0], second[:0], reduction="mean")
    nothing.backward()
    assert nothing.item() == 0 and first.grad.abs().sum() == 0
