"""The IoU-uniform sampler: by hand, against a scalar loop, and its statistics."""

import subprocess
import sys
import time

import pytest
import torch

from clsloc.samplers import IoUUniformSampler, jitter_boxes
from clsloc.samplers.jitter import corner_iou, corners
from detectron2.structures import Boxes, pairwise_iou

INTERVALS = ((0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 1.0))
OFFSETS = (0.75, 0.5, 0.3, 0.125)
SCALES = ((0.5, 2.0), (0.6, 1.6), (0.7, 1.4), (0.8, 1.25))
GT = (400.0, 250.0, 500.0, 310.0)
SIZE = (600, 1000)
ACCEPTANCE = (0.0321, 0.0454, 0.0618, 0.1443)
PAIR = ((400.0, 200.0, 500.0, 300.0), (420.0, 200.0, 520.0, 300.0))


def tensor(*boxes):
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def far_apart(num):
    """`num` boxes like GT that do not touch, nor the border of their image."""
    shift = 400.0 * torch.arange(num)[:, None] * torch.tensor([1.0, 0.0, 1.0, 0.0])
    return tensor(GT) + shift, (600, 400 * num + 1000)


def iou_matrix(boxes, gt_boxes):
    return pairwise_iou(Boxes(boxes), Boxes(gt_boxes))


def counts(samples, num_gt, num_intervals=4):
    """(num_gt, num_intervals)."""
    pair = samples.gt_index * num_intervals + samples.interval
    return pair.bincount(minlength=num_gt * num_intervals).view(num_gt, num_intervals)


def accepted(gt_boxes, image_size, rounds):
    """Share of all attempts that is kept, (G, 4), from one sampler that is never satisfied."""
    attempts = 2000
    sampler = IoUUniformSampler(samples_per_gt=4 * 10**7, attempts=attempts, max_rounds=rounds)
    samples = sampler.sample(gt_boxes, image_size, generator())
    return counts(samples, len(gt_boxes)) / (attempts * rounds)


# --- by hand ---


@pytest.mark.parametrize(
    "ox, oy, sw, sh, iou",
    [
        (0.1, 0, 1, 1, 0.8182),
        (0.2, 0, 1, 1, 0.6667),
        (0.25, 0, 1, 1, 0.6),
        (0, 0, 1.25, 1, 0.8),
        (0, 0, 0.8, 0.8, 0.64),
        (0, 0, 0.9, 1.2, 0.7627),
        (0.05, 0.05, 1, 1, 0.8223),
        (0.125, 0.125, 1.25, 1.25, 0.64),
    ],
)
def test_jitter_by_hand(ox, oy, sw, sh, iou):
    # Draws that stand for these values in ranges of (-1, 1) and (0, 2).
    draws = torch.tensor([(ox + 1) / 2, (oy + 1) / 2, sw / 2, sh / 2]).view(4, 1, 1)
    scale = (torch.zeros(1), torch.full((1,), 2.0))
    low, high = jitter_boxes(tensor(GT), draws, torch.ones(1), scale, SIZE)
    w, h = 100.0, 60.0
    x, y = 450 + w * ox, 280 + h * oy
    expected = tensor((x - w * sw / 2, y - h * sh / 2, x + w * sw / 2, y + h * sh / 2))
    torch.testing.assert_close(torch.cat([low, high]).view(1, 4), expected)
    assert corner_iou(low, high, *corners(tensor(GT)[:, None])).item() == pytest.approx(
        iou, abs=5e-5
    )


def test_jitter_clips_to_the_image():
    draws = torch.tensor([1.0, 0.0, 1.0, 1.0]).view(4, 1, 1)
    scale = (torch.ones(1), torch.full((1,), 2.0))
    low, high = jitter_boxes(tensor((10, 0, 90, 50)), draws, torch.ones(1), scale, (60, 100))
    # Centre (50, 25) moves by (80, -50) to (130, -25), size (80, 50) becomes (160, 100).
    assert torch.cat([low, high]).flatten().tolist() == [50.0, 0.0, 100.0, 25.0]


def test_iou_of_corners():
    one = corners(tensor((0, 0, 10, 10), (5, 5, 5, 5), (0, 0, 10, 10), (0, 0, 1, 1)))
    two = corners(tensor((0, 5, 10, 15), (5, 5, 5, 5), (0, 0, 10, 10), (2, 2, 3, 3)))
    torch.testing.assert_close(corner_iou(*one, *two), torch.tensor([1 / 3, 0.0, 1.0, 0.0]))


def test_identical_gt_both_keep_their_boxes():
    samples = IoUUniformSampler().sample(tensor(GT, GT), SIZE, generator())
    assert counts(samples, 2).tolist() == [[16] * 4] * 2


def test_gt_without_a_whole_pixel_get_nothing():
    boxes = tensor(GT, (5, 5, 5, 50), (7, 9, 7.5, 9.5), (20, 20, 10, 30), (50, 60, 51, 61))
    samples = IoUUniformSampler().sample(boxes, SIZE, generator())
    assert samples.gt_index.unique().tolist() == [0, 4]
    assert len(samples.boxes) == 2 * 64


@pytest.mark.parametrize("gt", [tensor(), tensor((3, 3, 3, 9))], ids=["none", "degenerate"])
def test_nothing_to_sample(gt):
    samples = IoUUniformSampler().sample(gt, SIZE)
    assert [tuple(part.shape) for part in samples] == [(0, 4), (0,), (0,), (0,)]
    assert samples.gt_index.dtype == samples.interval.dtype == torch.int64


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"offsets": (0.1,)}, "4 intervals, 1 offsets"),
        ({"intervals": (), "offsets": (), "scales": ()}, "0 intervals"),
        ({"intervals": ((0.5, 0.5), *INTERVALS[1:])}, r"\(0.5, 0.5\]"),
        ({"intervals": ((0.5, 1.1), *INTERVALS[1:])}, r"\(0.5, 1.1\]"),
        ({"offsets": (-0.1, *OFFSETS[1:])}, "offset -0.1"),
        ({"scales": ((2.0, 0.5), *SCALES[1:])}, r"\(2.0, 0.5\)"),
        ({"scales": ((0.0, 0.5), *SCALES[1:])}, r"\(0.0, 0.5\)"),
        ({"samples_per_gt": 3}, "3 samples for 4 intervals"),
        ({"attempts": 0}, "0 attempts"),
        ({"max_rounds": 0}, "0 rounds"),
    ],
)
def test_settings_that_do_not_fit(keys, message):
    with pytest.raises(ValueError, match=message):
        IoUUniformSampler(**keys)


# --- against a scalar loop ---


def scalar_loop(gt_boxes, image_size, quota, attempts, random_numbers):
    """One round of the sampler, attempt by attempt: rows of (box, GT, IoU, interval)."""

    def overlap(a, b):
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        inter = max(width, 0.0) * max(height, 0.0)
        areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
        return inter / (areas - inter)

    rows = []
    for g, gt in enumerate(gt_boxes):
        x, y, w, h = (gt[0] + gt[2]) / 2, (gt[1] + gt[3]) / 2, gt[2] - gt[0], gt[3] - gt[1]
        for m, (low, high) in enumerate(INTERVALS):
            kept = 0
            least, most = SCALES[m]
            for a in range(attempts):
                ox, oy, sw, sh = random_numbers(g, m, a)
                cx, cy = x + w * OFFSETS[m] * (2 * ox - 1), y + h * OFFSETS[m] * (2 * oy - 1)
                half_w = w / 2 * (least + (most - least) * sw)
                half_h = h / 2 * (least + (most - least) * sh)
                box = (
                    min(max(cx - half_w, 0), image_size[1]),
                    min(max(cy - half_h, 0), image_size[0]),
                    min(max(cx + half_w, 0), image_size[1]),
                    min(max(cy + half_h, 0), image_size[0]),
                )
                iou = overlap(box, gt)
                if kept < quota and low < iou <= high:
                    if all(overlap(box, other) <= iou for other in gt_boxes):
                        rows.append((box, g, iou, m))
                        kept += 1
    return rows


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_gt(num, seed=0, size=SIZE, sides=(20, 220)):
    noise = torch.rand(num, 4, generator=generator(seed))
    side = sides[0] + (sides[1] - sides[0]) * noise[:, 2:]
    low = noise[:, :2] * (torch.tensor([size[1], size[0]]) - side)
    return torch.cat([low, low + side], dim=1)


def test_one_round_is_that_of_a_scalar_loop():
    gt = torch.cat([tensor(*PAIR, (0, 0, 100, 60)), random_gt(5)])
    samples = IoUUniformSampler(max_rounds=1).sample(gt, SIZE, generator(3))
    draws = torch.rand(4, len(gt) * 4, 500, generator=generator(3)).tolist()
    rows = scalar_loop(
        gt.tolist(), SIZE, 16, 500, lambda g, m, a: [draw[4 * g + m][a] for draw in draws]
    )
    boxes, index, iou, interval = map(list, zip(*rows))
    assert samples.gt_index.tolist() == index
    assert samples.interval.tolist() == interval
    torch.testing.assert_close(samples.boxes, torch.tensor(boxes), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(samples.iou, torch.tensor(iou), rtol=1e-4, atol=1e-5)


def test_20_gt_in_8_ms_and_many_times_as_fast_as_a_scalar_loop(one_thread):
    gt = random_gt(20)
    gt_list = gt.tolist()
    sampler, rng = IoUUniformSampler(), generator()
    draws = torch.rand(500, 4, generator=rng).tolist()

    def seconds(run, repeats):
        times = []
        for _ in range(repeats):
            start = time.process_time()
            run()
            times.append(time.process_time() - start)
        return min(times)

    loop = seconds(lambda: scalar_loop(gt_list, SIZE, 16, 500, lambda g, m, a: draws[a]), 2)
    vectorised = seconds(lambda: sampler.sample(gt, SIZE, rng), 30)
    assert vectorised < loop / 20
    assert vectorised < 0.008  # about 0.003 on a core of a server


# --- properties ---


@pytest.mark.parametrize("own", [True, False])
def test_rows_are_what_they_claim(own):
    gt = random_gt(30)
    sampler = IoUUniformSampler(require_own_gt=own)
    samples = sampler.sample(gt, SIZE, generator())
    iou = iou_matrix(samples.boxes, gt)
    own_iou = iou[torch.arange(len(iou)), samples.gt_index]
    torch.testing.assert_close(samples.iou, own_iou, rtol=0, atol=1e-6)
    bounds = torch.tensor(INTERVALS)[samples.interval]
    assert ((samples.iou > bounds[:, 0]) & (samples.iou <= bounds[:, 1])).all()
    assert (samples.boxes >= 0).all()
    assert (samples.boxes <= torch.tensor([1000.0, 600.0, 1000.0, 600.0])).all()
    assert counts(samples, 30).max() == 16
    others = iou.amax(dim=1) > own_iou + 1e-6
    assert not others.any() if own else others.any()
    assert not samples.boxes.requires_grad


def test_overlapping_gt_only_lose_what_another_owns():
    """Without the filter the same numbers give the same boxes; those that stay are its."""
    gt = random_gt(12, sides=(200, 400))
    settings = {"max_rounds": 1, "samples_per_gt": 4 * 10**6}
    every = IoUUniformSampler(require_own_gt=False, **settings).sample(gt, SIZE, generator())
    owned = IoUUniformSampler(**settings).sample(gt, SIZE, generator())
    best = iou_matrix(every.boxes, gt).amax(dim=1)
    keep = every.iou >= best - 1e-7
    assert 0.2 < keep.float().mean() < 0.97
    assert torch.equal(owned.boxes, every.boxes[keep])
    assert torch.equal(owned.gt_index, every.gt_index[keep])


def test_equal_seeds_give_equal_boxes():
    gt = random_gt(5)
    one, two, other = (
        IoUUniformSampler().sample(gt, SIZE, generator(seed)).boxes for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert one.shape != other.shape or not torch.equal(one, other)
    torch.manual_seed(7)
    one = IoUUniformSampler().sample(gt, SIZE).boxes
    torch.manual_seed(7)
    assert torch.equal(one, IoUUniformSampler().sample(gt, SIZE).boxes)


def test_any_list_of_intervals():
    intervals = ((0.3, 0.5), (0.9, 1.0))
    sampler = IoUUniformSampler(
        intervals=intervals, offsets=(0.6, 0.05), scales=((0.5, 2), (0.9, 1.11)), samples_per_gt=21
    )
    samples = sampler.sample(tensor(*PAIR), SIZE, generator())
    assert counts(samples, 2, 2).tolist() == [[10, 10], [10, 10]]
    assert sampler.samples_per_gt == 20
    assert (iou_matrix(samples.boxes, tensor(*PAIR)).amax(dim=1) == samples.iou).all()


def test_a_large_crowd_in_bounded_memory(monkeypatch):
    gt = random_gt(1000, sides=(10, 150), size=(800, 1088))
    rand, sizes = torch.rand, []

    def recorded(*args, **kwargs):
        draws = rand(*args, **kwargs)
        sizes.append(draws.numel())
        return draws

    monkeypatch.setattr(torch, "rand", recorded)
    start = time.process_time()
    samples = IoUUniformSampler().sample(gt, (800, 1088), generator())
    assert time.process_time() - start < 4
    # A million numbers at once, of the eight million of the first round.
    assert max(sizes) <= 2**20 < 8 * 10**6 <= sum(sizes)
    best = iou_matrix(samples.boxes, gt).amax(dim=1)
    assert (best - samples.iou).max() < 1e-6
    filled = counts(samples, 1000)
    assert filled.max() == 16
    assert filled.float().mean() > 12


PEAK = """
import torch
from clsloc.gauges.workload import resident_peak_mb
from clsloc.samplers import IoUUniformSampler

torch.set_num_threads(1)
low = torch.rand(1000, 2) * torch.tensor({spread})
gt = torch.cat([low, low + 10 + 140 * torch.rand(1000, 2)], dim=1)
IoUUniformSampler().sample(gt[:1], (800, 1088))
before = resident_peak_mb()
samples = IoUUniformSampler().sample(gt, (800, 1088))
print(len(samples.boxes), resident_peak_mb() - before)
"""


@pytest.mark.parametrize("spread", [[930.0, 640.0], [90.0, 60.0]], ids=["scene", "heap"])
def test_1000_gt_in_400_mb(spread):
    command = [sys.executable, "-c", PEAK.format(spread=spread)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    num_boxes, peak = map(float, done.stdout.split())
    assert num_boxes > 5000
    assert peak < 400


# --- statistics ---


def test_every_interval_gets_its_quota():
    gt, size = far_apart(50)
    samples = IoUUniformSampler().sample(gt, size, generator())
    assert counts(samples, 50).unique().tolist() == [16]
    more = IoUUniformSampler(samples_per_gt=256, max_rounds=8)
    assert counts(more.sample(gt, size, generator()), 50).unique().tolist() == [64]


def test_one_round_of_500_attempts():
    gt, size = far_apart(2000)
    samples = IoUUniformSampler(max_rounds=1).sample(gt, size, generator())
    kept = counts(samples, 2000).float()
    for mean, expected in zip(kept.mean(dim=0).tolist(), (14.47, 15.88, 16.0, 16.0)):
        assert mean == pytest.approx(expected, abs=0.15)
    assert len(samples.boxes) / 2000 == pytest.approx(62.3, abs=0.3)
    assert (kept[:, 0] < 16).float().mean().item() == pytest.approx(0.46, abs=0.04)


@pytest.mark.parametrize(
    "gt, size",
    [(GT, SIZE), ((990.0, 850.0, 1010.0, 1150.0), (2000, 2000))],
    ids=["wide", "tall_and_thin"],
)
def test_acceptance_and_mean_iou(gt, size):
    rounds, attempts = 25, 2000 * 20
    copies = tensor(*[gt] * 20)
    sampler = IoUUniformSampler(
        samples_per_gt=4 * 10**7, attempts=2000, max_rounds=rounds, require_own_gt=False
    )
    samples = sampler.sample(copies, size, generator())
    for m, (rate, mean_iou) in enumerate(zip(ACCEPTANCE, (0.540, 0.639, 0.737, 0.836))):
        iou = samples.iou[samples.interval == m]
        assert len(iou) / (rounds * attempts) == pytest.approx(rate, rel=0.03)
        assert iou.mean().item() == pytest.approx(mean_iou, abs=0.002)
    # Inside an interval the mass leans to the low end.
    for m, share in enumerate((0.65, 0.66, 0.69)):
        iou = samples.iou[samples.interval == m]
        assert (iou <= 0.55 + 0.1 * m).float().mean().item() == pytest.approx(share, abs=0.015)


def test_acceptance_where_another_gt_overlaps():
    rates = accepted(tensor(*PAIR), SIZE, rounds=100)
    # Sampling error at 400,000 attempts of both GT together is below 1 %.
    for rate, expected in zip(rates.mean(dim=0).tolist(), (0.0261, 0.0389, 0.0576, 0.1440)):
        assert rate == pytest.approx(expected, rel=0.04)
    torch.testing.assert_close(rates[0], rates[1], rtol=0.06, atol=0)


def test_acceptance_in_a_corner_of_the_image():
    rates = accepted(tensor((0, 0, 100, 60)), SIZE, rounds=20)[0]
    for rate, expected in zip(rates.tolist(), (0.11, 0.13, 0.19, 0.48)):
        assert rate == pytest.approx(expected, abs=0.01)


def test_uniform_over_the_intervals():
    """Chi-square of the counts of a scene; jitter over one wide interval is far from uniform."""
    gt = random_gt(40, sides=(20, 120))
    wide = IoUUniformSampler(
        intervals=((0.5, 1.0),), offsets=(0.75,), scales=((0.5, 2.0),), max_rounds=8
    )
    edges = torch.tensor([0.6, 0.7, 0.8])

    def chi_square(sampler):
        samples = sampler.sample(gt, SIZE, generator())
        assert len(samples.boxes) > 2000
        observed = torch.bucketize(samples.iou, edges).bincount(minlength=4).double()
        expected = observed.mean()
        return ((observed - expected) ** 2 / expected).sum().item()

    quantile = 11.34  # 99 % at three degrees of freedom
    assert chi_square(IoUUniformSampler()) < quantile < chi_square(wide)
