"""Names of the mask head, which is left out."""

from fvcore.common.registry import Registry

from detectron2._left_out import left_out, left_out_error

ROI_MASK_HEAD_REGISTRY = Registry("ROI_MASK_HEAD")

BaseMaskRCNNHead = left_out("detectron2.modeling.roi_heads.BaseMaskRCNNHead")
MaskRCNNConvUpsampleHead = left_out("detectron2.modeling.roi_heads.MaskRCNNConvUpsampleHead")


def build_mask_head(cfg, input_shape):
    """Raises: mask heads are left out."""
    raise left_out_error("detectron2.modeling.roi_heads.build_mask_head")
