"""Names of the keypoint head, which is left out."""

from fvcore.common.registry import Registry

from detectron2._left_out import left_out, left_out_error

ROI_KEYPOINT_HEAD_REGISTRY = Registry("ROI_KEYPOINT_HEAD")

BaseKeypointRCNNHead = left_out("detectron2.modeling.roi_heads.BaseKeypointRCNNHead")
KRCNNConvDeconvUpsampleHead = left_out("detectron2.modeling.roi_heads.KRCNNConvDeconvUpsampleHead")


def build_keypoint_head(cfg, input_shape):
    """Raises: keypoint heads are left out."""
    raise left_out_error("detectron2.modeling.roi_heads.build_keypoint_head")
