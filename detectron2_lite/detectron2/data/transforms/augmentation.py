"""Augmentations: policies, often random, that look at an input and choose a transform for it."""

import inspect
import pprint
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList

__all__ = [
    "Augmentation",
    "AugmentationList",
    "AugInput",
    "TransformGen",
    "apply_transform_gens",
    "StandardAugInput",
    "apply_augmentations",
]


class Augmentation:
    """A policy that chooses a :class:`Transform`; subclasses implement :meth:`get_transform`.

    The arguments of ``get_transform`` say by their names what the policy has to look at: "image",
    "boxes", "sem_seg" or any other attribute of the input. Random numbers come from ``np.random``.
    """

    input_args: tuple[str, ...] | None = None
    """Attributes of the input handed to :meth:`get_transform`; None: named by its signature."""

    def _init(self, params: dict | None = None) -> None:
        """Make attributes of ``params``, usually ``locals()`` in ``__init__``."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def get_transform(self, *args: Any) -> Transform:
        """Choose the transform for these inputs without changing them.

        By convention "image" is an array of shape (H, W) or (H, W, C), uint8 in 0-255 or float in
        0-1 or 0-255; "boxes" float32 of shape (N, 4) in XYXY_ABS; "sem_seg" uint8 of shape (H, W).
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what transform to apply.")

    def __call__(self, aug_input: Any) -> Transform:
        """Choose a transform, apply it to ``aug_input`` in place, and return it.

        Args:
            aug_input: an :class:`AugInput`, or any object that has the attributes this policy
                needs and a method ``transform(tfm)``.
        """
        if self.input_args is None:
            self.input_args = _argument_names(type(self).get_transform)
        tfm = self.get_transform(*(self._read(aug_input, name) for name in self.input_args))
        assert isinstance(tfm, (Transform, TransformList)), (
            f"{type(self).__name__}.get_transform must return a Transform, got {tfm!r}."
        )
        aug_input.transform(tfm)
        return tfm

    def _read(self, aug_input: Any, name: str) -> Any:
        try:
            return getattr(aug_input, name)
        except AttributeError as e:
            raise AttributeError(
                f"{type(self).__name__} needs '{name}', which {type(aug_input).__name__} lacks."
            ) from e

    def _rand_range(
        self, low: float = 1.0, high: float | None = None, size: Sequence[int] | None = None
    ) -> np.ndarray:
        """Uniform random numbers from [low, high), or from [0, low) without ``high``."""
        if high is None:
            low, high = 0, low
        return np.random.uniform(low, high, [] if size is None else size)

    def __repr__(self) -> str:
        """The call that makes this object, arguments at their defaults left out."""
        shown = []
        for name, param in inspect.signature(type(self)).parameters.items():
            if param.kind in _VARIABLE_LENGTH or not hasattr(self, name):
                return super().__repr__()  # not stored under the name of its argument
            value = getattr(self, name)
            if value is param.default:
                continue
            text = pprint.pformat(value)
            shown.append(f"{name}={text if len(text.splitlines()) == 1 else '...'}")
        return f"{type(self).__name__}({', '.join(shown)})"

    __str__ = __repr__


_VARIABLE_LENGTH = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _argument_names(method: Any) -> tuple[str, ...]:
    params = list(inspect.signature(method).parameters.values())[1:]  # without self
    if len(params) == 1 and params[0].kind == inspect.Parameter.VAR_POSITIONAL:
        return ("image",)
    if any(param.kind in _VARIABLE_LENGTH for param in params):
        raise TypeError(
            f"{method.__qualname__} has arguments of variable number, so that their names do not "
            "tell what it needs; name them or override __call__."
        )
    return tuple(param.name for param in params)


class _TransformToAug(Augmentation):
    """The policy that always chooses the same transform."""

    def __init__(self, tfm: Transform) -> None:
        self.tfm = tfm

    def get_transform(self, *args: Any) -> Transform:
        return self.tfm

    def __repr__(self) -> str:
        return repr(self.tfm)

    __str__ = __repr__


def _transform_to_aug(tfm_or_aug: Transform | Augmentation) -> Augmentation:
    if isinstance(tfm_or_aug, Augmentation):
        return tfm_or_aug
    assert isinstance(tfm_or_aug, Transform), (
        f"Expected a Transform or an Augmentation, got {tfm_or_aug!r}."
    )
    return _TransformToAug(tfm_or_aug)


class AugmentationList(Augmentation):
    """Augmentations applied one after the other, each looking at what the previous one left.

    For that reason it has no ``get_transform``: it can only be called with an input.
    """

    def __init__(self, augs: Sequence[Augmentation | Transform]) -> None:
        """
        Args:
            augs: transforms among them are applied as they are.
        """
        self.augs = [_transform_to_aug(aug) for aug in augs]

    def __call__(self, aug_input: Any) -> TransformList:
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(str(aug) for aug in self.augs)}]"

    __str__ = __repr__


class AugInput:
    """What augmentations look at and transform: an image and what belongs to it.

    Other data can be transformed afterwards with the transforms that the augmentations return.
    """

    def __init__(
        self,
        image: np.ndarray,
        *,
        boxes: np.ndarray | None = None,
        sem_seg: np.ndarray | None = None,
    ) -> None:
        """
        Args:
            image: array of shape (H, W) or (H, W, C), uint8 in 0-255 or float in 0-1 or 0-255.
            boxes: float32 of shape (N, 4) in XYXY_ABS.
            sem_seg: uint8 of shape (H, W), the label of each pixel.
        """
        assert isinstance(image, np.ndarray), f"An image must be an array, got a {type(image)}."
        assert image.ndim in (2, 3), f"An image is (H, W) or (H, W, C), got {image.shape}."
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Transform every attribute that is given."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(
        self, augmentations: Sequence[Augmentation | Transform]
    ) -> TransformList:
        """Same as ``AugmentationList(augmentations)(self)``."""
        return AugmentationList(augmentations)(self)


def apply_augmentations(
    augmentations: Sequence[Augmentation | Transform], inputs: AugInput | np.ndarray
) -> tuple[AugInput | np.ndarray, TransformList]:
    """Apply augmentations to an input, or to an image alone.

    Returns:
        the transformed input or image, and the transforms.
    """
    if isinstance(inputs, np.ndarray):
        aug_input = AugInput(inputs)
        tfms = aug_input.apply_augmentations(augmentations)
        return aug_input.image, tfms
    return inputs, inputs.apply_augmentations(augmentations)


# Former names of the API, still in use.
TransformGen = Augmentation
StandardAugInput = AugInput
apply_transform_gens = apply_augmentations
