"""
The boxes that localisation trains on, over a batch.

Shape shorthand: N images, R boxes of all images, M IoU intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clsloc.lazy import foreground_rows, rows_of_batch, take_rows
from clsloc.samplers import IoUUniformSampler, UniformSamples, rank_in_groups
from detectron2.structures import Boxes, Instances
from detectron2.structures.boxes import matched_pairwise_iou
from detectron2.utils.events import get_event_storage

__all__ = ["LocalisationSamples", "draw_samples", "foreground_samples", "resample"]


@dataclass
class LocalisationSamples:
    """
    Boxes and what should be predicted for them. Nothing here has a gradient.

    Attributes:
        boxes: N `Boxes`, R in all; an image without any has an empty one.
        gt_boxes: (R, 4), the object of each box.
        iou: (R,), IoU of each box, as it is pooled, with its object.
        reg_divisor: what the sum of the box losses is divided by.
    """

    boxes: list[Boxes]
    gt_boxes: Tensor
    iou: Tensor
    reg_divisor: int


@torch.no_grad()
def draw_samples(
    sampler: IoUUniformSampler, targets: list[Instances], counts: Sequence[int]
) -> LocalisationSamples:
    """
    Boxes with uniform IoU around the objects of each image.

    The regression loss is a mean over all their numbers: the divisor is 4 R (section 3.1, Eq. 2,
    with the divisor of the authors' code).

    Args:
        sampler: draws them, from torch's own random numbers.
        targets: N Instances with "gt_boxes", whose image size is without padding.
        counts: how many to keep in each image at most, evenly over the intervals.
    """
    drawn = [sampler.sample(t.gt_boxes.tensor, t.image_size) for t in targets]
    num_intervals = len(sampler.intervals)
    drawn = [
        resample(d, count, num_intervals) if len(d.boxes) > count else d
        for d, count in zip(drawn, counts, strict=True)
    ]
    _log_samples(drawn, sampler, sum(map(len, targets)))
    gt_boxes = [t.gt_boxes.tensor[d.gt_index] for t, d in zip(targets, drawn, strict=True)]
    boxes = [Boxes(d.boxes) for d in drawn]
    num_boxes = sum(map(len, boxes))
    return LocalisationSamples(
        boxes, torch.cat(gt_boxes), torch.cat([d.iou for d in drawn]), 4 * max(num_boxes, 1)
    )


def resample(samples: UniformSamples, count: int, num_intervals: int) -> UniformSamples:
    """
    Choose `count` samples at random, evenly over the intervals (section 4.3, Table 5).

    Where `count` is no multiple of M, the rest is spread over intervals at random; where an
    interval has too few, all of it is taken, and nothing twice.
    """
    device = samples.interval.device
    quota = torch.full((num_intervals,), count // num_intervals, device=device)
    quota[torch.randperm(num_intervals, device=device)[: count % num_intervals]] += 1
    # Sorted by interval, in random order inside.
    noise = torch.rand(samples.interval.shape, dtype=torch.float64, device=device)
    order = (samples.interval + noise).argsort()
    interval = samples.interval[order]
    rank, _ = rank_in_groups(interval, num_intervals)
    rows = order[rank < quota[interval]]
    return UniformSamples(*(part[rows] for part in samples))


@torch.no_grad()
def foreground_samples(
    proposals: list[Instances], num_classes: int
) -> tuple[Tensor, LocalisationSamples]:
    """
    The foreground among the samples of the classifier.

    The regression loss keeps the form that it has in Faster R-CNN: the divisor is the number of
    all samples, foreground or not.

    Args:
        proposals: N Instances with "proposal_boxes", "gt_classes", and "gt_boxes" where the image
            has objects.
        num_classes: the class that stands for the background.

    Returns:
        Rows of the samples in the concatenated batch, and the samples.
    """
    rows = foreground_rows(proposals, num_classes)
    boxes = [p.proposal_boxes[r] for p, r in zip(proposals, rows, strict=True)]
    # An image without objects carries no `gt_boxes`, and has no foreground.
    gt_boxes = Boxes.cat(
        take_rows([p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes for p in proposals], rows)
    )
    sizes = [len(p) for p in proposals]
    iou = matched_pairwise_iou(Boxes.cat(boxes), gt_boxes)
    samples = LocalisationSamples(boxes, gt_boxes.tensor, iou, max(sum(sizes), 1))
    return rows_of_batch(rows, sizes), samples


def _log_samples(drawn: list[UniformSamples], sampler: IoUUniformSampler, num_gt: int) -> None:
    """Samples per image, in all and by interval, and the share of what could be drawn."""
    intervals = torch.cat([d.interval for d in drawn])
    counts = intervals.bincount(minlength=len(sampler.intervals)).tolist()
    storage, num_images = get_event_storage(), len(drawn)
    storage.put_scalar("iou_uniform/num_samples", len(intervals) / num_images)
    for number, count in enumerate(counts, start=1):
        storage.put_scalar(f"iou_uniform/num_int{number}", count / num_images)
    if num_gt:
        most = num_gt * sampler.samples_per_gt
        storage.put_scalar("iou_uniform/fill_rate", len(intervals) / most)
