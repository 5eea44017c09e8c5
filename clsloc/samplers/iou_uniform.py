"""
Training boxes whose IoU with their object is evenly distributed over intervals.

Shape shorthand in this module:

    G: number of GT boxes of an image
    M: number of IoU intervals
    A: attempts for each GT and interval in a round
    P: pairs of a GT and an interval; pair p belongs to GT p // M and interval p % M
    C: candidates of these pairs
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clsloc.samplers.jitter import corner_iou, corners, jitter_boxes

__all__ = ["IoUUniformSampler", "UniformSamples", "rank_in_groups"]

# Boxes that are looked at together: bounds the memory, whatever the number of GT.
CANDIDATES_AT_ONCE = 2**18
RIVALS_AT_ONCE = 16
# Objects with a shorter side than this, in pixels, get no samples.
MIN_SIDE = 1.0


class UniformSamples(NamedTuple):
    """
    Boxes drawn around the GT of one image, in the order of GT and interval; R rows.

    Attributes:
        boxes: (R, 4), inside the image; float32, as everything here is constant to gradients.
        gt_index: (R,) int64, the GT that a box was drawn around.
        iou: (R,), IoU of the (clipped) box with this GT.
        interval: (R,) int64, number of the interval that the IoU lies in.
    """

    boxes: Tensor
    gt_index: Tensor
    iou: Tensor
    interval: Tensor


class IoUUniformSampler:
    """
    Draws equally many boxes in each IoU interval around each GT ("IoU-uniform R-CNN", section
    3.1).

    Each GT is jittered at random, in a range that goes with the interval; a jittered box counts
    where its IoU with the GT lies in the interval (low, high], and, if it has to own its GT, where
    no other GT overlaps it more. Inside an interval lower IoUs remain more frequent.

    NOTE(paper): the paper makes one round of a limited number of attempts, which leaves the
    hardest interval short for about half of all GT. Here unfilled pairs are tried again, up to
    `max_rounds`; one round is the authors' way. What cannot be filled even so, in a crowd, stays
    short: no box is repeated.
    """

    def __init__(
        self,
        *,
        intervals: Sequence[tuple[float, float]] = ((0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 1.0)),
        offsets: Sequence[float] = (0.75, 0.5, 0.3, 0.125),
        scales: Sequence[tuple[float, float]] = ((0.5, 2.0), (0.6, 1.6), (0.7, 1.4), (0.8, 1.25)),
        samples_per_gt: int = 64,
        attempts: int = 500,
        max_rounds: int = 4,
        require_own_gt: bool = True,
    ):
        """
        Args:
            intervals: (low, high] of each interval.
            offsets: largest shift of the centre for each interval, in sizes of the GT.
            scales: smallest and largest factor on width and height for each interval.
            samples_per_gt: divided by the number of intervals, rounded down: the quota of each.
            attempts: boxes drawn for each GT and interval in a round.
            max_rounds: rounds at most.
            require_own_gt: whether a box must overlap its GT at least as much as any other. Of
                identical GT each keeps its boxes.

        Raises:
            ValueError: if these do not fit together.
        """
        _check_lengths(intervals, offsets, scales)
        for (low, high), offset, (least, most) in zip(intervals, offsets, scales, strict=True):
            _check_interval(low, high, offset, least, most)
        self.intervals = tuple(map(tuple, intervals))
        self.quota = samples_per_gt // len(intervals)
        if min(self.quota, attempts, max_rounds) < 1:
            raise ValueError(
                "The sampler needs at least one sample per interval, one attempt and one round, "
                f"got {samples_per_gt} samples for {len(intervals)} intervals, {attempts} "
                f"attempts and {max_rounds} rounds."
            )
        self.attempts = attempts
        self.max_rounds = max_rounds
        self.require_own_gt = require_own_gt
        self._ranges = torch.tensor(
            [
                (low, high, offset, least, most)
                for (low, high), offset, (least, most) in zip(intervals, offsets, scales)
            ],
            dtype=torch.float32,
        )

    @property
    def samples_per_gt(self) -> int:
        """Boxes for each GT when all intervals are filled."""
        return self.quota * len(self.intervals)

    @torch.no_grad()
    def sample(
        self,
        gt_boxes: Tensor,
        image_size: tuple[int, int],
        generator: torch.Generator | None = None,
    ) -> UniformSamples:
        """
        Args:
            gt_boxes: (G, 4) absolute (x1, y1, x2, y2) pixels; G may be 0. GT with a side below
                one pixel get no boxes.
            image_size: height and width of the image without padding; boxes are clipped to it
                before their IoU is taken.
            generator: source of random numbers, on the device of the boxes; torch's own if None.

        Returns:
            At most `samples_per_gt` boxes for each GT, on the device of `gt_boxes`.
        """
        gt_boxes = gt_boxes.float()
        num_intervals = len(self.intervals)
        ranges = self._ranges.to(gt_boxes.device)
        rivals = _Rivals(gt_boxes) if self.require_own_gt else None
        valid = (gt_boxes[:, 2:] - gt_boxes[:, :2] >= MIN_SIDE).all(dim=1)
        missing = (self.quota * valid).repeat_interleave(num_intervals)

        found = [_Candidates.none(gt_boxes.device)]
        for _ in range(self.max_rounds):
            unfilled = missing.nonzero().flatten()
            if len(unfilled) == 0:
                break
            for pairs in unfilled.split(max(CANDIDATES_AT_ONCE // self.attempts, 1)):
                candidates = self._draw(pairs, gt_boxes, ranges, image_size, generator)
                if rivals is not None:
                    candidates = candidates.take(rivals.owned(candidates, num_intervals))
                candidates, missing = _fill(candidates, missing)
                found.append(candidates)
        pair, low, high, iou = (torch.cat(parts, dim=-1) for parts in zip(*found))
        order = pair.argsort(stable=True)
        return UniformSamples(
            boxes=torch.cat([low, high]).T[order],
            gt_index=pair[order] // num_intervals,
            iou=iou[order],
            interval=pair[order] % num_intervals,
        )

    def _draw(
        self,
        pairs: Tensor,
        gt_boxes: Tensor,
        ranges: Tensor,
        image_size: tuple[int, int],
        generator: torch.Generator | None,
    ) -> "_Candidates":
        """One round of attempts: the boxes whose IoU lies in the interval, in order of pairs."""
        boxes = gt_boxes[pairs // len(self.intervals)]
        lowest, highest, offset, least, most = ranges[pairs % len(self.intervals)].unbind(dim=1)
        draws = torch.rand(
            (4, len(pairs), self.attempts),
            dtype=boxes.dtype,
            device=boxes.device,
            generator=generator,
        )
        low, high = jitter_boxes(boxes, draws, offset, (least, most), image_size)
        gt_low, gt_high = corners(boxes[:, None])
        iou = corner_iou(low, high, gt_low, gt_high)
        inside = (iou > lowest[:, None]) & (iou <= highest[:, None])
        row, attempt = inside.nonzero(as_tuple=True)
        return _Candidates(
            pairs[row], low[:, row, attempt], high[:, row, attempt], iou[row, attempt]
        )


class _Candidates(NamedTuple):
    """Boxes of pairs: pair (C,), low and high corners (2, C), IoU with the GT of the pair (C,)."""

    pair: Tensor
    low: Tensor
    high: Tensor
    iou: Tensor

    @classmethod
    def none(cls, device: torch.device) -> "_Candidates":
        corner = torch.zeros(2, 0, device=device)
        pair = torch.zeros(0, dtype=torch.int64, device=device)
        return cls(pair, corner, corner, corner[0])

    def take(self, mask: Tensor) -> "_Candidates":
        rows = mask.nonzero().flatten()
        return _Candidates(*(part[..., rows] for part in self))


class _Rivals:
    """
    Which other GT could own a candidate of a GT.

    One minus the IoU is a metric. So where a candidate has IoU u with its GT, another GT can have
    as much only if the two GT have IoU 2 u - 1 or more: only GT that overlap are compared, and
    of them few.
    """

    SLACK = 1e-4  # far above rounding; compares a pair too much at times

    def __init__(self, gt_boxes: Tensor):
        self.low, self.high = corners(gt_boxes)
        iou = corner_iou(
            self.low[..., None], self.high[..., None], self.low[:, None], self.high[:, None]
        )
        # A GT is no rival of itself, nor of one in the same place.
        iou[(gt_boxes[:, None] == gt_boxes).all(dim=2)] = -1
        # The closest first: they refute most candidates, which are then done with.
        self.iou, self.index = iou.sort(dim=1, descending=True)

    def owned(self, candidates: _Candidates, num_intervals: int) -> Tensor:
        """Whether no other GT has a larger IoU with a candidate than its own: (C,) bool."""
        own_gt = candidates.pair // num_intervals
        owned = torch.ones_like(own_gt, dtype=torch.bool)
        if not len(own_gt):
            return owned
        rows = torch.arange(len(own_gt), device=own_gt.device)
        for start in range(0, self.iou.shape[1], RIVALS_AT_ONCE):
            # Rivals are in order: if the next one is too far off, the rest is, too.
            near = self.iou[own_gt[rows], start] >= 2 * candidates.iou[rows] - 1 - self.SLACK
            rows = rows[near]
            if not len(rows):
                break
            rivals = self.index[own_gt[rows], start : start + RIVALS_AT_ONCE]
            low, high = candidates.low[:, rows, None], candidates.high[:, rows, None]
            iou = corner_iou(low, high, self.low[:, rivals], self.high[:, rivals])
            beaten = (iou > candidates.iou[rows, None]).any(dim=1)
            owned[rows[beaten]] = False
            rows = rows[~beaten]
        return owned


def rank_in_groups(groups: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """
    The position of each row among the rows of its group, and the sizes of the groups.

    Args:
        groups: (R,) int64 in [0, num_groups), ascending.
    """
    sizes = groups.new_zeros(num_groups).index_add_(0, groups, torch.ones_like(groups))
    starts = sizes.cumsum(dim=0) - sizes
    return torch.arange(len(groups), device=groups.device) - starts[groups], sizes


def _fill(candidates: _Candidates, missing: Tensor) -> tuple[_Candidates, Tensor]:
    """
    Keep as many candidates of each pair as are missing.

    The first will do, without another draw: the order of independent attempts is random.

    Args:
        candidates: in order of pairs.
        missing: (G * M,) int64.

    Returns:
        The candidates to keep, and what is missing after them.
    """
    rank, counts = rank_in_groups(candidates.pair, len(missing))
    kept = candidates.take(rank < missing[candidates.pair])
    return kept, (missing - counts).clamp(min=0)


def _check_lengths(intervals: Sequence, offsets: Sequence, scales: Sequence) -> None:
    if not len(intervals) == len(offsets) == len(scales) > 0:
        raise ValueError(
            "Each IoU interval needs one offset and one range of scales, got "
            f"{len(intervals)} intervals, {len(offsets)} offsets and {len(scales)} scales."
        )


def _check_interval(low: float, high: float, offset: float, least: float, most: float) -> None:
    if not 0 <= low < high <= 1:
        raise ValueError(f"An IoU interval must rise within [0, 1], got ({low}, {high}].")
    if not (offset >= 0 and 0 < least <= most):
        raise ValueError(
            f"Jitter needs an offset of at least 0 and rising positive scales, got offset {offset} "
            f"and scales ({least}, {most})."
        )
