"""From a sample of a dataset to the input of a model."""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from detectron2._left_out import left_out_error
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

__all__ = ["DatasetMapper"]

logger = logging.getLogger(__name__)


class DatasetMapper:
    """Reads the image of a sample, augments it together with its annotations, makes tensors.

    In training it adds "instances" to the sample, without crowds and without boxes that have no
    area; at inference it drops the annotations. The sample itself is not changed.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        use_instance_mask: bool = False,
        use_keypoint: bool = False,
        instance_mask_format: str = "polygon",
        keypoint_hflip_indices: np.ndarray | None = None,
        precomputed_proposal_topk: int | None = None,
        recompute_boxes: bool = False,
    ) -> None:
        """
        Args:
            is_train: whether the model is trained on the result.
            augmentations: applied in turn.
            image_format: see :func:`detection_utils.read_image`.
            use_instance_mask, use_keypoint, recompute_boxes: must be False in training; masks and
                keypoints are not supported. Where samples have them they are passed over.
            instance_mask_format, keypoint_hflip_indices: only for masks and keypoints.
            precomputed_proposal_topk: how many precomputed proposals to use; None to use none.
        """
        if recompute_boxes:
            assert use_instance_mask, "Boxes are recomputed from masks; set use_instance_mask."
        if is_train and use_instance_mask:
            raise left_out_error("detectron2.data.DatasetMapper with MODEL.MASK_ON")
        if is_train and use_keypoint:
            raise left_out_error("detectron2.data.DatasetMapper with MODEL.KEYPOINT_ON")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask = use_instance_mask
        self.instance_mask_format = instance_mask_format
        self.use_keypoint = use_keypoint
        self.keypoint_hflip_indices = keypoint_hflip_indices
        self.proposal_topk = precomputed_proposal_topk
        self.recompute_boxes = recompute_boxes
        logger.info(
            f"Augmentations in {'training' if is_train else 'inference'}: {self.augmentations}"
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        augmentations = utils.build_augmentation(cfg, is_train)
        crop = cfg.INPUT.CROP
        if crop.ENABLED and is_train:
            augmentations.insert(0, T.RandomCrop(crop.TYPE, crop.SIZE))
        config = {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "instance_mask_format": cfg.INPUT.MASK_FORMAT,
            "use_keypoint": cfg.MODEL.KEYPOINT_ON,
            "recompute_boxes": crop.ENABLED and is_train and cfg.MODEL.MASK_ON,
        }
        if cfg.MODEL.KEYPOINT_ON:
            config["keypoint_hflip_indices"] = utils.create_keypoint_hflip_indices(
                cfg.DATASETS.TRAIN
            )
        if cfg.MODEL.LOAD_PROPOSALS:
            config["precomputed_proposal_topk"] = (
                cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN
                if is_train
                else cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST
            )
        return config

    def _transform_annotations(
        self, dataset_dict: dict, transforms: T.TransformList, image_shape: tuple[int, int]
    ) -> None:
        annos = []
        for ann in dataset_dict.pop("annotations"):
            if ann.get("iscrowd", 0):
                continue
            ann.pop("segmentation", None)
            ann.pop("keypoints", None)
            annos.append(utils.transform_instance_annotations(ann, transforms, image_shape))
        instances = utils.annotations_to_instances(annos, image_shape)
        dataset_dict["instances"] = utils.filter_empty_instances(instances)

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Args:
            dataset_dict: a sample, with "file_name".

        Returns:
            a copy with "image" (tensor of shape (C, H, W)), in training "instances", and where
            the sample has them "sem_seg" (int64 of shape (H, W)) and "proposals".
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        image = utils.read_image(dataset_dict["file_name"], format=self.image_format)
        utils.check_image_size(dataset_dict, image)
        sem_seg = None
        if "sem_seg_file_name" in dataset_dict:
            sem_seg = utils.read_image(dataset_dict.pop("sem_seg_file_name"), "L").squeeze(2)

        aug_input = T.AugInput(image, sem_seg=sem_seg)
        transforms = self.augmentations(aug_input)
        image_shape = aug_input.image.shape[:2]
        channels_first = np.array(aug_input.image.transpose(2, 0, 1), order="C")
        dataset_dict["image"] = torch.as_tensor(channels_first)
        if aug_input.sem_seg is not None:
            dataset_dict["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype(np.int64))
        if self.proposal_topk is not None:
            utils.transform_proposals(
                dataset_dict, image_shape, transforms, proposal_topk=self.proposal_topk
            )

        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, image_shape)
        return dataset_dict
