"""The steps of which a dataset mapper is made: read images, transform annotations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from detectron2._left_out import left_out, left_out_error
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data._image_io import (
    SizeMismatchError,
    check_image_size,
    convert_image_to_rgb,
    convert_PIL_to_numpy,
    read_image,
)
from detectron2.data.catalog import MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

__all__ = [
    "SizeMismatchError",
    "convert_PIL_to_numpy",
    "convert_image_to_rgb",
    "check_image_size",
    "transform_proposals",
    "transform_instance_annotations",
    "annotations_to_instances",
    "annotations_to_instances_rotated",
    "build_augmentation",
    "build_transform_gen",
    "create_keypoint_hflip_indices",
    "filter_empty_instances",
    "read_image",
]

annotations_to_instances_rotated = left_out(
    "detectron2.data.detection_utils.annotations_to_instances_rotated"
)
get_fed_loss_cls_weights = left_out("detectron2.data.detection_utils.get_fed_loss_cls_weights")


def transform_proposals(
    dataset_dict: dict,
    image_shape: tuple[int, int],
    transforms: T.TransformList,
    *,
    proposal_topk: int,
    min_box_size: float = 0,
) -> None:
    """Replace the precomputed proposals of a sample, if it has any, by transformed ones.

    Args:
        dataset_dict: has "proposal_boxes" (best first), "proposal_objectness_logits" and
            "proposal_bbox_mode"; gets "proposals", an :class:`Instances` with "proposal_boxes" and
            "objectness_logits".
        image_shape: height and width after the transforms, to which boxes are clipped.
        transforms: to apply.
        proposal_topk: how many of those that are large enough to keep.
        min_box_size: a proposal must be wider and higher than this.
    """
    if "proposal_boxes" not in dataset_dict:
        return
    boxes = BoxMode.convert(
        dataset_dict.pop("proposal_boxes"),
        dataset_dict.pop("proposal_bbox_mode"),
        BoxMode.XYXY_ABS,
    )
    boxes = Boxes(transforms.apply_box(boxes))
    boxes.clip(image_shape)
    logits = dataset_dict.pop("proposal_objectness_logits").astype(np.float32)
    keep = boxes.nonempty(threshold=min_box_size)

    proposals = Instances(image_shape)
    proposals.proposal_boxes = boxes[keep][:proposal_topk]
    proposals.objectness_logits = torch.as_tensor(logits)[keep][:proposal_topk]
    dataset_dict["proposals"] = proposals


def get_bbox(annotation: dict) -> Any:
    """The box of an annotation in XYXY_ABS, of the type it has there."""
    return BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)


def transform_instance_annotations(
    annotation: dict,
    transforms: T.TransformList | Sequence[T.Transform],
    image_size: tuple[int, int],
    *,
    keypoint_hflip_indices: Sequence[int] | None = None,
) -> dict:
    """Transform one annotation in place.

    Args:
        annotation: "bbox" and "bbox_mode", and optionally "segmentation" and "keypoints".
        transforms: to apply.
        image_size: height and width after the transforms, to which the box is clipped.
        keypoint_hflip_indices: see :func:`create_keypoint_hflip_indices`.

    Returns:
        the annotation, its box in XYXY_ABS. The numbers keep their type: transforms that work in
        place truncate boxes that are integers.
    """
    if isinstance(transforms, (tuple, list)):
        transforms = T.TransformList(transforms)
    height, width = image_size
    box = transforms.apply_box(np.array([get_bbox(annotation)]))[0].clip(min=0)
    annotation["bbox"] = np.minimum(box, [width, height, width, height])
    annotation["bbox_mode"] = BoxMode.XYXY_ABS
    if "segmentation" in annotation:
        annotation["segmentation"] = _transform_segmentation(annotation["segmentation"], transforms)
    if "keypoints" in annotation:
        annotation["keypoints"] = transform_keypoint_annotations(
            annotation["keypoints"], transforms, image_size, keypoint_hflip_indices
        )
    return annotation


def _transform_segmentation(segmentation: Any, transforms: T.TransformList) -> Any:
    """Polygons become polygons, COCO's run-length encoding a mask."""
    if isinstance(segmentation, list):
        polygons = [np.asarray(polygon).reshape(-1, 2) for polygon in segmentation]
        return [polygon.reshape(-1) for polygon in transforms.apply_polygons(polygons)]
    if isinstance(segmentation, dict):
        import pycocotools.mask as mask_util

        return transforms.apply_segmentation(mask_util.decode(segmentation))
    raise ValueError(
        "A segmentation is a list of polygons or a dict with COCO's run-length encoding, "
        f"got a {type(segmentation).__name__}."
    )


def transform_keypoint_annotations(
    keypoints: Sequence[float],
    transforms: T.TransformList,
    image_size: tuple[int, int],
    keypoint_hflip_indices: Sequence[int] | None = None,
) -> np.ndarray:
    """Transform the keypoints of one instance.

    Args:
        keypoints: (x, y, visibility) of K points.
        transforms: to apply.
        image_size: height and width after the transforms.
        keypoint_hflip_indices: see :func:`create_keypoint_hflip_indices`; needed if the
            transforms mirror the image.

    Returns:
        float64 array of shape (K, 3); points without label or outside the image become zeros.
    """
    keypoints = np.asarray(keypoints, dtype=np.float64).reshape(-1, 3)
    points = transforms.apply_coords(keypoints[:, :2])
    inside = ((points >= 0) & (points <= image_size[::-1])).all(axis=1)
    keypoints = np.concatenate((points, keypoints[:, 2:]), axis=1)
    keypoints[~inside | (keypoints[:, 2] == 0)] = 0

    flips = sum(isinstance(tfm, T.HFlipTransform) for tfm in transforms.transforms)
    if flips % 2 == 0:
        return keypoints
    if keypoint_hflip_indices is None or len(keypoint_hflip_indices) != len(keypoints):
        raise ValueError(
            f"To mirror {len(keypoints)} keypoints their mirrored order is needed, got "
            f"{keypoint_hflip_indices}; see create_keypoint_hflip_indices."
        )
    return keypoints[np.asarray(keypoint_hflip_indices)]


def annotations_to_instances(
    annos: Sequence[dict], image_size: tuple[int, int], mask_format: str = "polygon"
) -> Instances:
    """The annotations of one image as ground truth for a model.

    Args:
        annos: each with "bbox", "bbox_mode" and "category_id"; may be empty. Segmentations and
            keypoints in them are passed over.
        image_size: height and width.
        mask_format: must be left at its default; masks are not supported.

    Returns:
        an :class:`Instances` with "gt_boxes" and "gt_classes" (int64).
    """
    if mask_format != "polygon":
        raise left_out_error("detectron2.structures.BitMasks")
    target = Instances(image_size)
    target.gt_boxes = Boxes(
        np.stack([get_bbox(ann) for ann in annos]) if annos else np.zeros((0, 4))
    )
    classes = [int(ann["category_id"]) for ann in annos]
    target.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return target


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Instances | tuple[Instances, torch.Tensor]:
    """Leave out instances without area.

    Args:
        instances: with "gt_boxes" and perhaps "gt_masks".
        by_box, by_mask: what to look at; at least one must be True.
        box_threshold: a box must be wider and higher than this.
        return_mask: whether to return also which instances stay (bool tensor).
    """
    assert by_box or by_mask, "Nothing to filter by; set by_box or by_mask."
    conditions = []
    if by_box:
        conditions.append(instances.gt_boxes.nonempty(threshold=box_threshold))
    if by_mask and instances.has("gt_masks"):
        conditions.append(instances.gt_masks.nonempty())
    if not conditions:
        return instances
    keep = torch.stack(conditions).all(dim=0)
    return (instances[keep], keep) if return_mask else instances[keep]


def create_keypoint_hflip_indices(dataset_names: str | Sequence[str]) -> list[int]:
    """For each keypoint the index of its mirror image, such as the right eye for the left.

    Args:
        dataset_names: datasets whose metadata have equal "keypoint_names" and
            "keypoint_flip_map" (pairs of names).
    """
    names = [dataset_names] if isinstance(dataset_names, str) else dataset_names
    check_metadata_consistency("keypoint_names", names)
    check_metadata_consistency("keypoint_flip_map", names)
    meta = MetadataCatalog.get(names[0])
    mirror = dict(meta.keypoint_flip_map)
    mirror.update({right: left for left, right in mirror.items()})
    return [meta.keypoint_names.index(mirror.get(name, name)) for name in meta.keypoint_names]


def gen_crop_transform_with_instance(
    crop_size: tuple[int, int], image_size: tuple[int, int], instance: dict
) -> T.CropTransform:
    """A random crop that contains the centre of an instance.

    Args:
        crop_size: height and width, at most those of the image.
        image_size: height and width.
        instance: an annotation.
    """
    crop_size = np.asarray(crop_size, dtype=np.int32)
    x0, y0, x1, y1 = get_bbox(instance)
    center = np.array([(y0 + y1) * 0.5, (x0 + x1) * 0.5])
    assert (center <= image_size).all(), (
        f"The annotation's box ({x0}, {y0}, {x1}, {y1}) has its centre outside the image of "
        f"{image_size[0]}x{image_size[1]}."
    )
    assert (crop_size <= image_size).all(), (
        f"A crop of {crop_size[0]}x{crop_size[1]} does not fit into an image of "
        f"{image_size[0]}x{image_size[1]}."
    )
    first = np.maximum(np.floor(center).astype(np.int32) - crop_size, 0)
    last = np.minimum(image_size - crop_size, np.ceil(center).astype(np.int32))
    crop_y = np.random.randint(first[0], last[0] + 1)
    crop_x = np.random.randint(first[1], last[1] + 1)
    return T.CropTransform(crop_x, crop_y, crop_size[1], crop_size[0])


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """Raise unless the metadata of all datasets have ``key`` with the same value.

    Raises:
        AttributeError: if one does not have it.
        ValueError: if values differ.
    """
    assert len(dataset_names), f"To compare '{key}' at least one dataset must be named."
    values = [getattr(MetadataCatalog.get(name), key) for name in dataset_names]
    for name, value in zip(dataset_names, values):
        if value != values[0]:
            raise ValueError(
                f"Datasets used together need the same '{key}', but it is {values[0]} for "
                f"'{dataset_names[0]}' and {value} for '{name}'."
            )


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """The augmentations that ``cfg.INPUT`` asks for: resizing, and flipping in training."""
    if not is_train:
        return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    augmentations: list[T.Augmentation] = [
        T.ResizeShortestEdge(
            cfg.INPUT.MIN_SIZE_TRAIN,
            cfg.INPUT.MAX_SIZE_TRAIN,
            cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
        )
    ]
    flip = cfg.INPUT.RANDOM_FLIP
    if flip != "none":
        augmentations.append(
            T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")
        )
    return augmentations


build_transform_gen = build_augmentation  # former name of the API, still in use
