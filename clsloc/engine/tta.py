"""The models that evaluate with test-time augmentation (``TEST.AUG``)."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from clsloc.errors import UserError
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, GeneralizedRCNNWithTTA

__all__ = ["check_augmentation", "with_tta"]


def with_tta(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """``model`` with test-time augmentation, sharing its weights; called as the model is.

    Detectron2 has it for R-CNNs. An architecture of a project brings its own by a method
    ``with_tta(cfg)``.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    if hasattr(model, "with_tta"):
        augmented = model.with_tta(cfg)
    else:
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
