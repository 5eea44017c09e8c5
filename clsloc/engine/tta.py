"""The models that evaluate with test-time augmentation (``TEST.AUG``)."""

import logging

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from clsloc.errors import UserError
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, GeneralizedRCNNWithTTA

__all__ = ["check_augmentation", "with_tta"]

logger = logging.getLogger(__name__)


def with_tta(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """``model`` with test-time augmentation, sharing its weights; called as the model is.

    Detectron2 has it for R-CNNs, and merges the views by NMS. An architecture of a project brings
    its own by a method ``with_tta(cfg)``. RoI heads that may use Soft-NMS have an attribute
    ``soft_nms``, None where they do not; with Soft-NMS a warning is logged.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    if hasattr(model, "with_tta"):
        augmented = model.with_tta(cfg)
    else:
        if getattr(getattr(model, "roi_heads", None), "soft_nms", None) is not None:
            logger.warning(
                "Soft-NMS works within each view of TEST.AUG, but the views are merged by NMS at "
                "MODEL.ROI_HEADS.NMS_THRESH_TEST %g, which takes back most of its effect: do not "
                "read the metrics with test-time augmentation as those of Soft-NMS.",
                cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            )
        augmented = GeneralizedRCNNWithTTA(cfg, model)
    return augmented.train(model.training)


def check_augmentation(cfg: CfgNode) -> None:
    """
    Raises:
        UserError: ``TEST.AUG.ENABLED`` cannot be for this config.
    """
    if not cfg.TEST.AUG.ENABLED:
        return
    name = cfg.MODEL.META_ARCHITECTURE
    architecture = META_ARCH_REGISTRY.get(name)
    is_rcnn = isinstance(architecture, type) and issubclass(architecture, GeneralizedRCNN)
    if not (is_rcnn or hasattr(architecture, "with_tta")):
        raise UserError(
            f"There is no test-time augmentation for MODEL.META_ARCHITECTURE {name!r}; "
            "set TEST.AUG.ENABLED False."
        )
    sizes = cfg.TEST.AUG.MIN_SIZES
    if len(sizes) == 0 or min(sizes) < 1:
        raise UserError(f"TEST.AUG.MIN_SIZES are lengths of at least 1, got {tuple(sizes)}.")
    for key in ("LOAD_PROPOSALS", "KEYPOINT_ON"):
        if cfg.MODEL[key]:
            raise UserError(
                f"Test-time augmentation does not go with MODEL.{key}; set TEST.AUG.ENABLED False."
            )
