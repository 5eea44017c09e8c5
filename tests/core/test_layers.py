import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clsloc.errors import UserError
from clsloc.layers import Bottleneck, ConvNorm, ConvTower, NonLocalBlock, UpBlock


def num_weights(module):
    """Weights of convolutions alone, as the papers count."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d))


def num_parameters(module):
    return sum(p.numel() for p in module.parameters())


def randomize(module, seed=0):
    """Random parameters and statistics, so that no layer is an identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return module


def rois(num=3, channels=16, size=7, seed=0):
    return torch.rand(num, channels, size, size, generator=torch.Generator().manual_seed(seed))


# --- ConvNorm ---


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "GN", ""])
@pytest.mark.parametrize("bias", [True, False])
def test_folding_does_not_change_the_output(norm, bias):
    layer = randomize(ConvNorm(8, 32, 3, norm=norm, bias=bias, relu=True)).eval()
    if norm in ("BN", "FrozenBN"):
        layer.norm.running_var[:4] = 0  # channels that were constant in training
    x = rois(channels=8)
    with torch.no_grad():
        folded = layer(x)
    torch.testing.assert_close(folded, layer(x).detach(), rtol=1e-4, atol=1e-4)
    assert folded.min() == 0


def test_folding_follows_the_statistics():
    layer = ConvNorm(4, 4, norm="BN").eval()
    with torch.no_grad():
        before = layer(rois(channels=4))
        layer.norm.running_mean += 1
        after = layer(rois(channels=4))
    scale = (layer.norm.running_var + layer.norm.eps).rsqrt()[:, None, None]
    torch.testing.assert_close(after, before - scale)


def test_training_uses_batch_statistics_with_and_without_gradients():
    layer = ConvNorm(4, 6, norm="BN").train()
    with torch.no_grad():
        y = layer(5 + 3 * rois(channels=4))
    torch.testing.assert_close(y.mean(dim=(0, 2, 3)), torch.zeros(6), rtol=0, atol=1e-5)


# --- NonLocalBlock ---


@pytest.mark.parametrize("zero_init", ["conv", "norm"])
@pytest.mark.parametrize("training", [True, False])
def test_nonlocal_block_starts_as_the_identity(zero_init, training):
    block = NonLocalBlock(16, 8, groups=2, zero_init=zero_init).train(training)
    x = rois()
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("normalize", ["mean", "softmax"])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("channels_per_group", [2, 64])
def test_nonlocal_gathers_as_the_equation_says(normalize, groups, channels_per_group):
    inter = groups * channels_per_group
    block = NonLocalBlock(16, inter, groups=groups, normalize=normalize)
    x = rois()
    gathered = randomize(block).eval().gather(x).flatten(2)
    theta, phi, g = (f(x).detach().flatten(2) for f in (block.theta, block.phi, block.g))
    for group in range(groups):
        c = slice(group * channels_per_group, (group + 1) * channels_per_group)
        affinity = torch.einsum("rci,rcj->rij", theta[:, c], phi[:, c])
        affinity = affinity / 49 if normalize == "mean" else affinity.softmax(dim=2)
        expected = torch.einsum("rij,rcj->rci", affinity, g[:, c])
        torch.testing.assert_close(gathered[:, c], expected, rtol=1e-4, atol=1e-5)


def test_nonlocal_on_a_constant_map():
    # The division by 49 cancels the sum over 49 equal positions.
    block = randomize(NonLocalBlock(16, 12, groups=3).eval())
    x = torch.rand(2, 16, 1, 1).expand(2, 16, 7, 7)
    theta, phi, g = (f(x).detach() for f in (block.theta, block.phi, block.g))
    dot = (theta * phi).unflatten(1, (3, 4)).sum(dim=2).repeat_interleave(4, dim=1)
    torch.testing.assert_close(block.gather(x), dot * g)
    block.normalize = "softmax"
    torch.testing.assert_close(block.gather(x), g)


@pytest.mark.parametrize("normalize", ["mean", "softmax"])
def test_nonlocal_is_equivariant_to_permutations_of_positions(normalize):
    block = randomize(NonLocalBlock(16, 8, groups=2, normalize=normalize).eval())
    x, order = rois(), torch.randperm(49, generator=torch.Generator().manual_seed(0))
    permuted = x.flatten(2)[..., order].unflatten(-1, (7, 7))
    expected = block(x).flatten(2)[..., order].unflatten(-1, (7, 7))
    torch.testing.assert_close(block(permuted), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(block(x), x)


def test_the_number_of_groups_matters():
    blocks = [randomize(NonLocalBlock(16, 8, groups=groups).eval()) for groups in (1, 4)]
    assert not torch.allclose(blocks[0](rois()), blocks[1](rois()))


def test_nonlocal_runs_in_fp32_under_autocast():
    block = randomize(NonLocalBlock(16, 8, groups=2).eval())
    inside = []
    block.out.register_forward_hook(lambda _, args, __: inside.append(args[0].dtype))
    x = rois()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = block(x)
    assert inside == [torch.float32]
    assert torch.equal(y, block(x))
    # Half-precision maps come back as such; inside, products beyond half's range stay finite.
    huge = (300 * x).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = block(huge)
        assert block.gather(huge.float()).abs().max() > torch.finfo(torch.float16).max
    assert z.dtype == torch.float16


def test_nonlocal_rejects_what_it_cannot_do():
    with pytest.raises(UserError, match=r"10 inner channels .* 4 groups"):
        NonLocalBlock(16, 10, groups=4)
    with pytest.raises(UserError, match="'sum'"):
        NonLocalBlock(16, 8, normalize="sum")
    with pytest.raises(UserError, match="'all'"):
        NonLocalBlock(16, 8, zero_init="all")
    with pytest.raises(UserError, match=r"zero_init 'norm' needs a norm .* got ''"):
        NonLocalBlock(16, 8, norm="", zero_init="norm")
    assert not NonLocalBlock(16, 8, norm="", zero_init="conv").out.weight.any()


# --- ConvTower ---


def test_blocks_of_the_paper_have_the_size_of_the_paper():
    up, bottleneck = UpBlock(256, 1024, "BN"), Bottleneck(1024, 256, "BN")
    nonlocal_block = NonLocalBlock(1024, 512)
    assert [num_weights(b) for b in (up, bottleneck, nonlocal_block)] == [
        1_114_112,
        1_114_112,
        2_097_152,
    ]
    assert [num_parameters(b) for b in (up, bottleneck, nonlocal_block)] == [
        1_118_720,
        1_117_184,
        2_101_760,
    ]


def test_bottleneck_by_hand():
    block = randomize(Bottleneck(8, 2, norm="")).eval()
    x = rois(channels=8)
    y = F.relu(F.conv2d(x, block.conv1.weight, block.conv1.bias))
    y = F.relu(F.conv2d(y, block.conv2.weight, block.conv2.bias, padding=1))
    y = F.relu(F.conv2d(y, block.conv3.weight, block.conv3.bias) + x)
    torch.testing.assert_close(block(x), y)


def test_up_block_by_hand():
    block = randomize(UpBlock(4, 8, norm="")).eval()
    x = rois(channels=4)
    y = F.relu(F.conv2d(x, block.conv1.weight, block.conv1.bias, padding=1))
    y = F.conv2d(y, block.conv2.weight, block.conv2.bias)
    y = F.relu(y + F.conv2d(x, block.shortcut.weight, block.shortcut.bias))
    torch.testing.assert_close(block(x), y)


def test_order_of_the_blocks():
    plain = ConvTower(16, 32, num_blocks=3)
    assert list(dict(plain.blocks.named_children())) == ["up", "bottleneck1", "bottleneck2"]
    mixed = ConvTower(16, 32, num_blocks=5, nonlocal_args={"inter_channels": 8})
    assert list(dict(mixed.blocks.named_children())) == [
        "up",
        "nonlocal1",
        "bottleneck1",
        "nonlocal2",
        "bottleneck2",
    ]


@pytest.mark.parametrize("norm", ["BN", "GN"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("num_rois", [0, 1, 4])
def test_tower_keeps_the_grid_and_takes_any_number_of_rois(norm, training, num_rois):
    nonlocal_args = {"inter_channels": 16}
    tower = ConvTower(32, 128, num_blocks=3, norm=norm, nonlocal_args=nonlocal_args)
    tower.train(training)
    x = rois(num_rois, 32)
    feature_map = tower.feature_map(x)
    assert feature_map.shape == (num_rois, 128, 7, 7)
    y = tower(x)
    assert y.shape == (num_rois, tower.output_shape.channels) == (num_rois, 128)
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in tower.parameters())


def test_no_rois_leave_the_statistics_alone():
    tower = ConvTower(16, 32, num_blocks=2).train()
    before = {k: v.clone() for k, v in tower.state_dict().items() if "running" in k}
    tower(rois(0))
    after = tower.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())


def test_rows_are_independent_at_inference():
    tower = randomize(ConvTower(16, 32, num_blocks=3, nonlocal_args={"inter_channels": 8})).eval()
    x = rois(6)
    with torch.no_grad():
        torch.testing.assert_close(tower(x)[2:4], tower(x[2:4]), rtol=1e-5, atol=1e-5)


def test_training_keeps_no_more_than_the_maps_that_the_backward_pass_needs():
    # Of each block: what each convolution and norm reads, and the output of each ReLU.
    def saved_bytes(tower, x):
        sizes = {}

        def pack(tensor):
            if not isinstance(tensor, nn.Parameter):
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            keep_alive = tower(x)
        assert keep_alive.requires_grad
        return sum(sizes.values())

    def allowed_bytes(num_rois):
        positions, dim, inner = 49, 256, 64
        up, bottleneck = 3 * inner + 3 * dim, 4 * inner + 2 * dim
        # theta, phi, g and y; the output of W and of the ReLU; the affinities of 4 groups.
        nonlocal_block = 4 * 128 + 2 * dim + 4 * positions
        floats = positions * (up + 2 * bottleneck + 2 * nonlocal_block)
        return 4 * num_rois * floats + 4 * 64 * 1024  # statistics of the norms

    x = rois(8, 64, 7)
    tower = ConvTower(64, 256, num_blocks=5, nonlocal_args={"inter_channels": 128}).train()
    assert saved_bytes(tower, x) <= allowed_bytes(8)


def test_numbers_of_blocks_that_cannot_be():
    with pytest.raises(UserError, match="at least 1 block, got 0"):
        ConvTower(16, 32, num_blocks=0)
    for num_blocks in (1, 2, 4):
        with pytest.raises(UserError, match=f"of {num_blocks} blocks cannot alternate"):
            ConvTower(16, 32, num_blocks=num_blocks, nonlocal_args={"inter_channels": 8})
