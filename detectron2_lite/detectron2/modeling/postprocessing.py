"""Brings predictions back to the size of the original image."""

from detectron2._left_out import left_out, left_out_error
from detectron2.structures import Instances

sem_seg_postprocess = left_out("detectron2.modeling.postprocessing.sem_seg_postprocess")


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Scale boxes from the network's input size to another, clip them, and drop empty ones.

    Args:
        results: predictions of one image, with ``pred_boxes`` or else ``proposal_boxes``. The boxes
            are changed in place.
        output_height, output_width: size wanted.
        mask_threshold: for masks, which are left out here.

    Returns:
        New instances of that size, without the boxes that became empty.
    """
    for field in ("pred_masks", "pred_keypoints"):
        if results.has(field):
            raise left_out_error(f"detector_postprocess of `{field}`")
    input_height, input_width = results.image_size
    results = Instances((output_height, output_width), **results.get_fields())

    name = "pred_boxes" if results.has("pred_boxes") else "proposal_boxes"
    assert results.has(name), "Predictions need the field `pred_boxes` or `proposal_boxes`."
    boxes = results.get(name)
    boxes.scale(output_width / input_width, output_height / input_height)
    boxes.clip(results.image_size)
    return results[boxes.nonempty()]
