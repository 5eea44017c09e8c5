"""Keeps the boxes of crowds, which Detectron2's mapper drops, for models that leave them alone."""

import numpy as np
import torch

from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import transform_instance_annotations

__all__ = ["CrowdMapper"]


class CrowdMapper(DatasetMapper):
    """
    Detectron2's mapper; a training sample with annotations that are marked ``iscrowd`` (objects
    too many to box one by one, or VOC's difficult ones) gets "crowd_boxes" besides: (C, 4) float32
    XYXY, transformed as the image is. "instances" do not hold them.
    """

    def _transform_annotations(
        self, dataset_dict: dict, transforms: T.TransformList, image_shape: tuple[int, int]
    ) -> None:
        crowds = [
            # Without masks and keypoints, which a crowd may have in other forms than an object.
            {key: annotation[key] for key in ("bbox", "bbox_mode")}
            for annotation in dataset_dict["annotations"]
            if annotation.get("iscrowd", 0)
        ]
        super()._transform_annotations(dataset_dict, transforms, image_shape)
        if crowds:
            boxes = [
                transform_instance_annotations(crowd, transforms, image_shape)["bbox"]
                for crowd in crowds
            ]
            dataset_dict["crowd_boxes"] = torch.as_tensor(np.array(boxes, np.float32))
