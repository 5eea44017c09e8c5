"""Transforms and augmentations, on either Detectron2."""

import numpy as np
import pytest
from PIL import Image

from detectron2.data import transforms as T


def square(size: int = 8) -> np.ndarray:
    return np.arange(size * size * 3, dtype=np.uint8).reshape(size, size, 3)


def boxes(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def transforms_of(augmentation: T.Augmentation, image: np.ndarray, times: int) -> list[T.Transform]:
    return [augmentation(T.AugInput(image)) for _ in range(times)]


def test_resize_transform_by_hand():
    tfm = T.ResizeTransform(10, 20, 30, 10)
    np.testing.assert_allclose(tfm.apply_box(boxes([2, 1, 20, 10])), [[1, 3, 10, 30]])
    constant = np.full((10, 20, 3), 7, np.uint8)
    resized = tfm.apply_image(constant)
    assert resized.shape == (30, 10, 3) and resized.dtype == np.uint8
    assert (resized == 7).all()
    back = tfm.inverse()
    np.testing.assert_allclose(back.apply_box(boxes([1, 3, 10, 30])), [[2, 1, 20, 10]])


def test_resize_transform_uses_pil_for_bytes_and_torch_for_floats():
    image = square()
    tfm = T.ResizeTransform(8, 8, 4, 4)
    by_pil = np.asarray(Image.fromarray(image).resize((4, 4), Image.BILINEAR))
    np.testing.assert_array_equal(tfm.apply_image(image), by_pil)
    row = np.array([[0.0, 1.0, 2.0, 3.0]], dtype=np.float32)
    # Half the width without a filter: the mean of two neighbours.
    np.testing.assert_allclose(T.ResizeTransform(1, 4, 1, 2).apply_image(row), [[0.5, 2.5]])


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resize_transform_keeps_type_and_channels(shape, dtype):
    resized = T.ResizeTransform(8, 8, 5, 6).apply_image(np.zeros(shape, dtype))
    assert resized.shape == (5, 6, *shape[2:])
    assert resized.dtype == dtype


def test_resize_of_segmentation_makes_no_new_labels():
    labels = np.array([[0, 9], [0, 9]], dtype=np.uint8)
    resized = T.ResizeTransform(2, 2, 7, 7).apply_segmentation(labels)
    assert set(np.unique(resized)) == {0, 9}


def test_resize_transform_refuses_an_image_of_another_size():
    with pytest.raises(AssertionError):
        T.ResizeTransform(8, 8, 4, 4).apply_image(np.zeros((9, 8, 3), np.uint8))


def test_extent_transform_by_hand():
    # The rectangle of 2x2 in the middle of 4x4, twice as large.
    tfm = T.ExtentTransform((1, 1, 3, 3), (4, 4), interp=Image.NEAREST)
    image = np.zeros((4, 4, 3), np.uint8)
    image[1, 1] = 255
    expected = np.zeros((4, 4, 3), np.uint8)
    expected[:2, :2] = 255
    np.testing.assert_array_equal(tfm.apply_image(image), expected)
    np.testing.assert_allclose(tfm.apply_box(boxes([1, 1, 2, 2])), [[0, 0, 2, 2]])


def test_rotation_by_90_degrees_by_hand():
    pytest.importorskip("cv2")
    image = np.arange(6, dtype=np.float64).reshape(2, 3)
    tfm = T.RotationTransform(2, 3, 90)
    np.testing.assert_allclose(tfm.apply_image(image), np.rot90(image), atol=1e-6)
    # Counter-clockwise: the upper right corner becomes the upper left one.
    np.testing.assert_allclose(tfm.apply_coords(np.array([[3.0, 0.0]])), [[0, 0]], atol=1e-6)


def test_rotation_around_a_center_leaves_it_where_it_is():
    tfm = T.RotationTransform(20, 30, 37, expand=False, center=(4, 5))
    np.testing.assert_allclose(tfm.apply_coords(np.array([[4.0, 5.0]])), [[4, 5]], atol=1e-5)


def test_rotation_and_back():
    points = np.random.rand(5, 2) * 20
    tfm = T.RotationTransform(20, 30, 37)
    there_and_back = tfm.inverse().apply_coords(tfm.apply_coords(points))
    # The final crop is in whole pixels, so that half a pixel may remain.
    np.testing.assert_allclose(there_and_back, points, atol=0.5 + 1e-6)
    with pytest.raises(NotImplementedError):
        T.RotationTransform(20, 30, 37, expand=False).inverse()


def test_color_transform_changes_pixels_only():
    tfm = T.ColorTransform(lambda image: 255 - image)
    np.testing.assert_array_equal(tfm.apply_image(square()), 255 - square())
    np.testing.assert_array_equal(tfm.apply_box(boxes([1, 2, 3, 4])), [[1, 2, 3, 4]])
    with pytest.raises(ValueError):
        T.ColorTransform(3)


def test_pil_color_transform_goes_through_pil():
    tfm = T.PILColorTransform(lambda image: image.point(lambda v: v // 2))
    np.testing.assert_array_equal(tfm.apply_image(square()), square() // 2)


def test_aug_input_transforms_all_it_has():
    image = square(4)
    aug_input = T.AugInput(image, boxes=boxes([0, 0, 1, 2]), sem_seg=image[:, :, 0])
    aug_input.transform(T.HFlipTransform(4))
    np.testing.assert_array_equal(aug_input.image, image[:, ::-1])
    np.testing.assert_array_equal(aug_input.boxes, [[3, 0, 4, 2]])
    np.testing.assert_array_equal(aug_input.sem_seg, image[:, ::-1, 0])


def test_augmentations_see_what_the_previous_one_left():
    seen = []

    class Look(T.Augmentation):
        def get_transform(self, image, boxes):
            seen.append((image.shape[:2], boxes.tolist()))
            return T.NoOpTransform()

    aug_input = T.AugInput(square(), boxes=boxes([0, 0, 8, 8]))
    tfms = T.AugmentationList([T.Resize(4), Look()])(aug_input)
    assert seen == [((4, 4), [[0, 0, 4, 4]])]
    np.testing.assert_array_equal(tfms.apply_box(boxes([0, 0, 8, 8])), [[0, 0, 4, 4]])


def test_augmentation_that_asks_for_what_is_not_there():
    class NeedsMore(T.Augmentation):
        def get_transform(self, image, depth):
            return T.NoOpTransform()

    with pytest.raises(AttributeError, match="depth"):
        NeedsMore()(T.AugInput(square()))


def test_augmentations_are_shown_as_the_call_that_makes_them():
    assert str(T.RandomFlip()) == "RandomFlip()"
    assert str(T.RandomFlip(prob=0.3)) == "RandomFlip(prob=0.3)"
    shown = str(T.AugmentationList([T.RandomFlip(), T.HFlipTransform(3)]))
    assert shown == "AugmentationList[RandomFlip(), HFlipTransform(width=3)]"


def test_apply_augmentations_on_an_image():
    image, tfms = T.apply_augmentations([T.Resize((4, 2)), T.HFlipTransform(2)], square())
    assert image.shape == (4, 2, 3)
    assert len(tfms) == 2


@pytest.mark.parametrize(
    "size, short, limit, expected",
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((300, 900), 800, 1333, (444, 1333)),  # the longer edge decides
        ((100, 100), 50, 60, (50, 50)),
    ],
)
def test_resize_shortest_edge_by_hand(size, short, limit, expected):
    assert T.ResizeShortestEdge.get_output_shape(*size, short, limit) == expected
    image = np.zeros((*size, 3), np.uint8)
    tfm = T.ResizeShortestEdge(short, limit)(T.AugInput(image))
    assert (tfm.new_h, tfm.new_w) == expected


def test_resize_shortest_edge_samples_what_it_is_told():
    image = np.zeros((10, 20, 3), np.uint8)
    from_range = transforms_of(T.ResizeShortestEdge((4, 6)), image, 60)
    assert {tfm.new_h for tfm in from_range} == {4, 5, 6}
    from_choice = transforms_of(T.ResizeShortestEdge((4, 6, 9), 100, "choice"), image, 60)
    assert {tfm.new_h for tfm in from_choice} == {4, 6, 9}
    (untouched,) = transforms_of(T.ResizeShortestEdge(0), image, 1)
    assert isinstance(untouched, T.NoOpTransform)
    with pytest.raises(AssertionError):
        T.ResizeShortestEdge((4, 6, 9), 100, "range")


def test_random_flip_has_its_probability_and_direction():
    image = square()
    tfms = transforms_of(T.RandomFlip(0.25), image, 400)
    flips = sum(isinstance(tfm, T.HFlipTransform) for tfm in tfms)
    assert 60 < flips < 140  # 100 expected, 5 standard deviations are 43
    vertical = T.RandomFlip(1.0, horizontal=False, vertical=True)(T.AugInput(image))
    assert isinstance(vertical, T.VFlipTransform)
    with pytest.raises(ValueError):
        T.RandomFlip(horizontal=True, vertical=True)


def test_random_apply_has_its_probability():
    image = square()
    tfms = transforms_of(T.RandomApply(T.HFlipTransform(8), 0.75), image, 400)
    flips = sum(isinstance(tfm, T.HFlipTransform) for tfm in tfms)
    assert 260 < flips < 340
    with pytest.raises(AssertionError):
        T.RandomApply(T.HFlipTransform(8), 1.5)


@pytest.mark.parametrize(
    "kind, size, heights, widths",
    [
        ("absolute", (3, 50), {3}, {20}),  # at most the image
        ("relative", (0.5, 0.25), {5}, {5}),
        ("absolute_range", (4, 6), {4, 5, 6}, {4, 5, 6}),
        ("relative_range", (0.8, 0.9), {8, 9, 10}, {18, 19, 20}),
    ],
)
def test_random_crop_sizes(kind, size, heights, widths):
    image = np.zeros((10, 20, 3), np.uint8)
    tfms = transforms_of(T.RandomCrop(kind, size), image, 80)
    assert {tfm.h for tfm in tfms} == heights
    assert {tfm.w for tfm in tfms} == widths
    for tfm in tfms:
        assert tfm.apply_image(image).shape == (tfm.h, tfm.w, 3)  # inside the image


def test_random_crop_refuses_an_unknown_kind():
    with pytest.raises(AssertionError):
        T.RandomCrop("huge", (1, 1))


def test_crop_with_area_constraint_is_mixed():
    labels = np.zeros((20, 20), np.uint8)
    labels[:, 10:] = 1
    crop = T.RandomCrop_CategoryAreaConstraint("absolute", (8, 8), 0.9)
    for _ in range(20):
        aug_input = T.AugInput(np.zeros((20, 20, 3), np.uint8), sem_seg=labels)
        crop(aug_input)
        assert 0.1 < aug_input.sem_seg.mean() < 0.9


def test_fixed_size_crop_pads_and_crops():
    crop = T.FixedSizeCrop((6, 6), pad_value=9)
    aug_input = T.AugInput(np.ones((4, 8, 3), np.uint8))
    crop(aug_input)
    assert aug_input.image.shape == (6, 6, 3)
    assert (aug_input.image[:4] == 1).all() and (aug_input.image[4:] == 9).all()
    unpadded = T.AugInput(np.ones((4, 8, 3), np.uint8))
    T.FixedSizeCrop((6, 6), pad=False)(unpadded)
    assert unpadded.image.shape == (4, 6, 3)


def test_resize_scale_fits_the_scaled_target():
    tfm = T.ResizeScale(0.5, 0.5, 100, 200)(T.AugInput(np.zeros((10, 40, 3), np.uint8)))
    assert (tfm.new_h, tfm.new_w) == (25, 100)  # target 50x100, the width decides


def test_random_resize_takes_one_of_the_shapes():
    tfms = transforms_of(T.RandomResize([(3, 4), (5, 6)]), square(), 40)
    assert {(tfm.new_h, tfm.new_w) for tfm in tfms} == {(3, 4), (5, 6)}


def test_random_rotation_samples_its_range():
    angles = [T.RandomRotation([10, 20]).get_transform(square()).angle for _ in range(40)]
    assert 10 <= min(angles) < 12 and 18 < max(angles) <= 20
    full_turn = T.RandomRotation([360], sample_style="choice")(T.AugInput(square()))
    assert isinstance(full_turn, T.NoOpTransform)


def test_random_extent_without_scale_and_shift_is_the_image():
    aug_input = T.AugInput(square())
    T.RandomExtent((1.0, 1.0), (0.0, 0.0))(aug_input)
    np.testing.assert_array_equal(aug_input.image, square())


def test_min_iou_crop_keeps_boxes_overlapping():
    image = np.zeros((60, 60, 3), np.uint8)
    crop = T.MinIoURandomCrop(min_ious=(0.4,), min_crop_size=0.3)
    for _ in range(20):
        aug_input = T.AugInput(image, boxes=boxes([10, 10, 50, 50]))
        tfm = crop(aug_input)
        if isinstance(tfm, T.NoOpTransform):
            continue
        assert 0.45 <= tfm.h / tfm.w <= 2.2
        center_x, center_y = 30 - tfm.x0, 30 - tfm.y0
        assert 0 < center_x < tfm.w + 1 and 0 < center_y < tfm.h + 1


def test_intensity_by_hand():
    image = np.array([[[200, 100, 0]]], dtype=np.float32)
    for augmentation, expected in (
        (T.RandomBrightness, [[[100, 50, 0]]]),  # halfway to black
        (T.RandomContrast, [[[150, 100, 50]]]),  # halfway to the mean, 100
    ):
        aug_input = T.AugInput(image)
        augmentation(0.5, 0.5)(aug_input)
        np.testing.assert_allclose(aug_input.image, expected)


def test_saturation_zero_is_gray():
    aug_input = T.AugInput(np.array([[[100, 0, 0]]], dtype=np.float32))
    T.RandomSaturation(0, 0)(aug_input)
    np.testing.assert_allclose(aug_input.image, [[[29.9, 29.9, 29.9]]], rtol=1e-6)
    with pytest.raises(AssertionError):
        T.RandomSaturation(0, 1)(T.AugInput(np.zeros((4, 4, 1), np.float32)))


def test_lighting_of_scale_zero_changes_nothing():
    image = np.random.rand(3, 3, 3).astype(np.float32)
    aug_input = T.AugInput(image)
    T.RandomLighting(0.0)(aug_input)
    np.testing.assert_allclose(aug_input.image, image)


def test_random_numbers_are_drawn_in_the_order_of_detectron2():
    """Golden numbers, ``measured`` on Detectron2 (main, June 2026)."""
    np.random.seed(8)
    augmentations = [
        T.RandomCrop("relative_range", (0.5, 0.5)),
        T.RandomFlip(),
        T.ResizeShortestEdge((4, 9)),
        T.RandomBrightness(0.5, 1.5),
        T.RandomExtent((0.5, 1.5), (0.2, 0.2)),
    ]
    _, (crop, flip, resize, brightness, extent) = T.apply_augmentations(augmentations, square(16))
    measured = [
        *(crop.x0, crop.y0, crop.w, crop.h),
        *(isinstance(flip, T.HFlipTransform), resize.new_h, resize.new_w),
        *(brightness.dst_weight, *extent.src_rect),
    ]
    golden = [0, 1, 16, 15, True, 7, 7, 0.73272833]
    golden += [1.61276053, 1.57339609, 5.19255216, 5.15318772]
    np.testing.assert_allclose(measured, golden, rtol=1e-6)
