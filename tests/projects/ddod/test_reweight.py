"""Factors of levels and counts of positives."""

import os
import subprocess
import sys

import pytest
import torch

from ddod.normalizer import LossNormalizer
from ddod.reweight import PyramidReweighter, level_weights

COUNTS = torch.tensor([100.0, 60.0, 40.0, 20.0, 0.0])


@pytest.mark.parametrize(
    "counts, kind, limits, expected",
    [
        (COUNTS, "interp", (1, 2), [1.0, 1.4, 1.6, 1.8, 2.0]),
        (COUNTS, "interp", (1, 3), [1.0, 1.8, 2.2, 2.6, 3.0]),
        (torch.full((5,), 7.0), "interp", (1, 2), [2.0] * 5),
        (torch.zeros(5), "interp", (1, 2), [2.0] * 5),
        (COUNTS, "linear", (1, 2), [1.0, 1.25, 1.5, 1.75, 2.0]),
        (COUNTS, "linear", (1, 3), [1.0, 1.5, 2.0, 2.5, 3.0]),
        (COUNTS, "linear", (3, 1), [3.0, 2.5, 2.0, 1.5, 1.0]),
        (COUNTS, "sum", (1, 2), [1.5455, 1.7273, 1.8182, 1.9091, 2.0]),
        (torch.zeros(5), "sum", (1, 2), [2.0] * 5),
        (COUNTS, "sum_literal", (1, 2), [2.2727, 1.3636, 0.9091, 0.4545, 0.0]),
        (torch.zeros(5), "sum_literal", (1, 2), [1.0] * 5),
        (COUNTS, "none", (1, 2), [1.0] * 5),
        (torch.tensor([3.0, 0.0]), "interp", (1, 2), [1.0, 2.0]),
    ],
)
def test_factors(counts, kind, limits, expected):
    weights = level_weights(counts, kind, limits)
    assert weights.tolist() == pytest.approx(expected, abs=5e-5)
    assert weights.dtype == torch.float32


def test_linear_factors_by_rank_put_the_level_with_most_positives_first():
    weights = level_weights(torch.tensor([3.0, 9.0, 3.0, 0.0, 1.0]), "linear", by_rank=True)
    assert weights.tolist() == [1.25, 1.0, 1.5, 2.0, 1.75]


@pytest.mark.parametrize("moving, second", [(True, [1, 1, 2, 2, 2]), (False, [2, 1, 2, 2, 2])])
def test_counts_of_a_batch_are_used_at_once(moving, second):
    reweighter = PyramidReweighter(5, moving_average=moving)
    batches = torch.eye(5)[:2] * 10
    first, _ = reweighter(batches[0], batches[1])
    assert first.tolist() == [1, 2, 2, 2, 2]
    w_cls, w_reg = reweighter(batches[1], batches[1])
    assert w_cls.tolist() == second
    assert w_reg.tolist() == [2, 1, 2, 2, 2]
    assert reweighter.acc_cls.tolist() == [10, 10, 0, 0, 0]
    assert reweighter.acc_reg.tolist() == [0, 20, 0, 0, 0]


def test_counts_outlive_a_checkpoint_until_they_are_reset():
    reweighter, other = PyramidReweighter(5), PyramidReweighter(5)
    for _ in range(3):
        reweighter(COUNTS, COUNTS.flip(0))
    other.load_state_dict(reweighter.state_dict())
    assert torch.equal(other.acc_cls, 3 * COUNTS.double())
    for one, two in zip(reweighter(COUNTS, COUNTS), other(COUNTS, COUNTS), strict=True):
        assert torch.equal(one, two)
    other.reset()
    assert not other.acc_cls.any() and not other.acc_reg.any()


def masks(*numbers, levels=(4, 2)):
    """(N, R) with so many positives in each image, from the first anchor on."""
    return torch.stack([torch.arange(sum(levels)) < number for number in numbers])


def test_an_image_counts_at_least_one():
    counts = LossNormalizer()(masks(5, 0), masks(3, 1), [4, 2], torch.tensor(0.5))
    assert counts.counts_cls.tolist() == [4, 1]
    assert counts.counts_reg.tolist() == [4, 0]
    assert (counts.norm_cls, counts.norm_reg, counts.norm_weight) == (6, 4, 1)
    nothing = LossNormalizer()(masks(0), masks(0), [4, 2], torch.tensor(0.0))
    assert (nothing.norm_cls, nothing.norm_reg) == (1, 1)


def test_the_moving_average_is_part_of_the_state():
    normalizer = LossNormalizer("ema")
    counts = normalizer(masks(5, 0), masks(3, 1), [4, 2], torch.tensor(0.0))
    assert counts.norm_cls == pytest.approx(0.9 * 100 + 0.1 * 6)
    assert counts.norm_reg == pytest.approx(0.9 * 100 + 0.1 * 4)
    assert normalizer.state_dict()["average"].tolist() == pytest.approx([90.6, 90.4])
    assert not LossNormalizer().state_dict()


TWO_PROCESSES = """
import sys
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.append(sys.argv[1])


def worker(rank, file):
    from detectron2.utils import comm
    from ddod.normalizer import LossNormalizer
    from ddod.reweight import PyramidReweighter

    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    assert comm.get_world_size() == 2
    sizes = [8] * 5
    positive = torch.zeros(1, 40, dtype=torch.bool)
    positive[0, :4] = rank == 0
    positive[0, 8:14] = rank == 1
    reweighter = PyramidReweighter(5)
    counts = LossNormalizer()(positive, positive, sizes, torch.tensor(0.0))
    weights, _ = reweighter(counts.counts_cls, counts.counts_reg)
    local = LossNormalizer(sync_counts=False)(positive, positive, sizes, torch.tensor(0.0))
    assert local.counts_cls.tolist() == ([4, 0, 0, 0, 0] if rank == 0 else [0, 6, 0, 0, 0])
    assert local.norm_cls == counts.norm_cls == 5, counts
    assert reweighter.acc_cls.tolist() == [4, 6, 0, 0, 0]
    assert weights.tolist() == torch.tensor([2 - 4 / 6, 1, 2, 2, 2]).tolist()
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(worker, args=(sys.argv[2],), nprocs=2)
"""


def test_two_processes_count_together(tmp_path, repo):
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    path = os.pathsep.join([*filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "two.py", str(repo / "projects" / "ddod"), str(tmp_path / "store")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
