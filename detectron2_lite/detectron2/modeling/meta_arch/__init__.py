"""Meta-architectures: whole models, from input dicts to losses or detections."""

from fvcore.common.registry import Registry

from detectron2._left_out import left_out, left_out_error

from .build import META_ARCH_REGISTRY, build_model
from .dense_detector import DenseDetector
from .rcnn import GeneralizedRCNN, ProposalNetwork
from .retinanet import RetinaNet

SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")
FCOS = left_out("detectron2.modeling.meta_arch.FCOS")
PanopticFPN = META_ARCH_REGISTRY.register(left_out("detectron2.modeling.meta_arch.PanopticFPN"))
SemanticSegmentor = META_ARCH_REGISTRY.register(
    left_out("detectron2.modeling.meta_arch.SemanticSegmentor")
)


def build_sem_seg_head(cfg, input_shape):
    """Raises: semantic segmentation is left out."""
    raise left_out_error("detectron2.modeling.meta_arch.build_sem_seg_head")


__all__ = [
    "FCOS",
    "META_ARCH_REGISTRY",
    "SEM_SEG_HEADS_REGISTRY",
    "DenseDetector",
    "GeneralizedRCNN",
    "PanopticFPN",
    "ProposalNetwork",
    "RetinaNet",
    "SemanticSegmentor",
    "build_model",
    "build_sem_seg_head",
]
