"""What is checked before a model is built, where a mistake still has a plain reason."""

import difflib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from clsloc.engine.tta import check_augmentation
from clsloc.errors import UserError
from clsloc.evaluation import METRICS_OF_TASKS
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    RPN_HEAD_REGISTRY,
)
from detectron2.utils import comm
from detectron2.utils.registry import Registry

logger = logging.getLogger(__name__)

_NAMES_FOR_ALL = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
}
_NAMES_FOR_TWO_STAGES = {
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
}
_NO_NAME = ("", "PrecomputedProposals")

# The key from which an architecture reads its number of classes. An architecture of a project
# says so itself, in a class attribute CLASS_COUNT_KEY.
_CLASS_COUNT_KEYS = {
    "GeneralizedRCNN": "MODEL.ROI_HEADS.NUM_CLASSES",
    "RetinaNet": "MODEL.RETINANET.NUM_CLASSES",
    "FCOS": "MODEL.FCOS.NUM_CLASSES",
}

# Keys of Detectron2 and the core: what each must be, and whether a value is that.
_VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "DATALOADER.NUM_WORKERS": ("at least 0", lambda value: value >= 0),
    "INPUT.MIN_SIZE_TRAIN": (
        "one or more lengths of at least 0, such as (800,)",
        lambda value: len(value) > 0 and all(map(_is_length, value)),
    ),
    "INPUT.MAX_SIZE_TRAIN": ("above 0", lambda value: value > 0),
    "INPUT.MIN_SIZE_TEST": ("at least 0", lambda value: value >= 0),
    "INPUT.MAX_SIZE_TEST": ("above 0", lambda value: value > 0),
    "TEST.AUG.MAX_SIZE": ("above 0", lambda value: value > 0),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": (
        "'choice' or 'range'",
        lambda value: value in ("choice", "range"),
    ),
    "INPUT.RANDOM_FLIP": (
        "'horizontal', 'vertical' or 'none'",
        lambda value: value in ("horizontal", "vertical", "none"),
    ),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": (
        "'value' or 'norm'",
        lambda value: value in ("value", "norm"),
    ),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": (
        "above 0 and at most 1",
        lambda value: 0 < value <= 1,
    ),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": ("at least 1", lambda value: value >= 1),
    "MODEL.ROI_HEADS.NUM_CLASSES": ("at least 1", lambda value: value >= 1),
    "MODEL.RETINANET.NUM_CLASSES": ("at least 1", lambda value: value >= 1),
    "CLSLOC.BEST.PATIENCE": ("at least 0", lambda value: value >= 0),
}


def check_config(cfg: CfgNode, dataset_names: Iterable[str]) -> None:
    """Check names, values, classes and test-time augmentation.

    The schedule has functions of its own below.

    Raises:
        UserError: with the value and the remedy.
    """
    dataset_names = list(dataset_names)
    check_dataset_names(dataset_names)
    check_registry_names(cfg)
    check_values(cfg)
    check_classes(cfg, dataset_names)
    check_augmentation(cfg)


def check_registry_names(cfg: CfgNode) -> None:
    """Every part that the config names exists."""
    _check_registered(cfg, _NAMES_FOR_ALL)
    if is_two_stage(cfg):
        _check_registered(cfg, _NAMES_FOR_TWO_STAGES)


def _check_registered(cfg: CfgNode, registries: Mapping[str, Registry]) -> None:
    for key, registry in registries.items():
        name = get_value(cfg, key)
        if name not in registry and name not in _NO_NAME:
            known = sorted(known_name for known_name, _ in registry)
            raise UserError(f"{key} {name!r} is not registered; {did_you_mean(name, known)}.")


def check_values(cfg: CfgNode) -> None:
    """No value is one with which a run would fail later, without a plain reason."""
    for key, (wanted, fits) in _VALUES.items():
        value = get_value(cfg, key)
        if not fits(value):
            raise UserError(f"{key} must be {wanted}, got {value!r}.")
    lengths = cfg.INPUT.MIN_SIZE_TRAIN
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(lengths) != 2:
        raise UserError(
            "With INPUT.MIN_SIZE_TRAIN_SAMPLING 'range', INPUT.MIN_SIZE_TRAIN must be the smallest "
            f"and the largest length, such as (640, 800), got {tuple(lengths)}."
        )


def _is_length(value: object) -> bool:
    return isinstance(value, (int, float)) and value >= 0


def check_dataset_names(names: Iterable[str]) -> None:
    """Every dataset that the config names is registered."""
    known = DatasetCatalog.list()
    for name in names:
        if name not in known:
            raise UserError(
                f"The dataset {name!r} is not registered; {did_you_mean(name, known)}, or "
                "register it with --coco NAME JSON IMAGES or --voc NAME DIR SPLIT."
            )


def check_classes(cfg: CfgNode, dataset_names: Sequence[str]) -> None:
    """The datasets agree on their classes, and the architecture has as many.

    A dataset that does not tell its classes, such as an unlabelled test set, is passed over.
    """
    key = class_count_key(cfg)
    first_name, first_classes = "", None
    for name in dataset_names:
        classes = _class_names(name)
        if classes is None:
            continue
        if not classes:
            raise UserError(
                f"The dataset {name!r} has no classes: its annotations list no categories; add "
                "them there, or name another dataset."
            )
        if first_classes is None:
            first_name, first_classes = name, classes
        elif list(classes) != list(first_classes):
            raise UserError(
                f"The datasets {first_name!r} and {name!r} have different classes, "
                f"{_listed(first_classes)} and {_listed(classes)}; give both the same list in the "
                "same order."
            )
        if key and get_value(cfg, key) != len(classes):
            raise UserError(
                f"{key} is {get_value(cfg, key)} but the dataset {name!r} has {len(classes)} "
                f"classes, {_listed(classes)}; set {key} {len(classes)}."
            )


def _class_names(name: str) -> Sequence[str] | None:
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None:
        DatasetCatalog.get(name)  # many datasets know their classes only when they are loaded
    return metadata.get("thing_classes")


def check_test_sets(
    cfg: CfgNode, build_evaluator: Callable[[CfgNode, str], DatasetEvaluator]
) -> None:
    """What evaluation would only find after training: no images, no evaluator, no ground truth.

    Args:
        build_evaluator: what will evaluate.

    Raises:
        UserError: with the name and the remedy.
    """
    for name in cfg.DATASETS.TEST:
        if not len(DatasetCatalog.get(name)):
            raise UserError(
                f"The dataset {name!r} has no images to evaluate on; name another one in "
                "DATASETS.TEST, or none as ()."
            )
        if MetadataCatalog.get(name).get("evaluator_type") != "coco":
            build_evaluator(cfg, name)  # reads what it compares with; COCO data has just been read


def check_best_metric(cfg: CfgNode) -> None:
    """The metric of ``CLSLOC.BEST`` can be one of an evaluation of ``DATASETS.TEST``.

    Raises:
        UserError: its name is not complete, or the task has no such metric.
    """
    metric, names = cfg.CLSLOC.BEST.METRIC, cfg.DATASETS.TEST
    if not metric:
        return
    example = f"{names[0]}/bbox/AP" if len(names) > 1 else "bbox/AP"
    # The results of one dataset do not bear its name. A class may have a slash: AP-tv/monitor.
    named = [name for name in names if metric.startswith(f"{name}/")]
    rest = metric.removeprefix(f"{named[0]}/") if named else metric
    task, _, last = rest.partition("/")
    if not last or not names or bool(named) != (len(names) > 1):
        raise UserError(
            f"CLSLOC.BEST.METRIC {metric!r} names no metric of the {len(names)} dataset(s) of "
            f"DATASETS.TEST; the form is {example}."
        )
    known = METRICS_OF_TASKS.get(task)
    if known and last not in known and "-" not in last:  # AP-<class> is there on request
        raise UserError(
            f"CLSLOC.BEST.METRIC {metric!r} is no metric of {task}; {did_you_mean(last, known)}."
        )


def class_count_key(cfg: CfgNode) -> str | None:
    """The config key from which the architecture of ``cfg`` reads its number of classes, or
    None where it has no classes or is unknown."""
    architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    for kind in getattr(architecture, "__mro__", ()):
        key = kind.__dict__.get("CLASS_COUNT_KEY") or _CLASS_COUNT_KEYS.get(kind.__name__)
        if key:
            return key
    return None


def is_two_stage(cfg: CfgNode) -> bool:
    """Whether the architecture of ``cfg`` has RoI heads."""
    return class_count_key(cfg) == "MODEL.ROI_HEADS.NUM_CLASSES"


def check_schedule(cfg: CfgNode) -> None:
    """Training takes at least one step, and its checkpoints have a period."""
    if cfg.SOLVER.MAX_ITER < 1:
        raise UserError(
            f"SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER} trains nothing; give at least 1, or evaluate "
            "with --eval-only."
        )
    if cfg.SOLVER.CHECKPOINT_PERIOD < 1:
        raise UserError(
            f"SOLVER.CHECKPOINT_PERIOD {cfg.SOLVER.CHECKPOINT_PERIOD} is no number of iterations; "
            f"give one above 0, such as the default {get_cfg().SOLVER.CHECKPOINT_PERIOD}."
        )


def log_schedule(cfg: CfgNode, num_images: int) -> None:
    """Log the training schedule in iterations and in epochs, and what one step takes."""
    batch, iterations = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER
    logger.info(
        "Training on %d images for %d iterations of %d images, %.1f epochs, in %d process(es) of "
        "%d image(s) each; learning rate %g.",
        num_images,
        iterations,
        batch,
        iterations * batch / max(num_images, 1),
        comm.get_world_size(),
        batch // comm.get_world_size(),
        cfg.SOLVER.BASE_LR,
    )


def check_learning_rate(cfg: CfgNode, configured: CfgNode) -> None:
    """Warn where the batch was changed on the command line and the learning rate was not.

    Args:
        cfg: as it is used.
        configured: as the config file has it, without overrides.
    """
    batch, meant = cfg.SOLVER.IMS_PER_BATCH, configured.SOLVER.IMS_PER_BATCH
    rate = cfg.SOLVER.BASE_LR
    if batch != meant and rate == configured.SOLVER.BASE_LR and not cfg.SOLVER.REFERENCE_WORLD_SIZE:
        logger.warning(
            "SOLVER.BASE_LR %g was chosen for batches of %d images, and SOLVER.IMS_PER_BATCH is "
            "now %d; consider SOLVER.BASE_LR %g, or set SOLVER.REFERENCE_WORLD_SIZE to the number "
            "of processes that the config was made for, which scales both and the schedule.",
            rate,
            meant,
            batch,
            rate * batch / meant,
        )


def check_frozen_stages(cfg: CfgNode) -> None:
    """Warn where stages of the backbone would keep their random initial values for good."""
    if cfg.MODEL.BACKBONE.FREEZE_AT > 0 and not cfg.MODEL.WEIGHTS:
        logger.warning(
            "MODEL.WEIGHTS is empty and MODEL.BACKBONE.FREEZE_AT is %d: the first stages of the "
            "backbone stay at random values. Name weights to start from (docs/custom_data.md says "
            "where to get them), or set MODEL.BACKBONE.FREEZE_AT 0.",
            cfg.MODEL.BACKBONE.FREEZE_AT,
        )


def get_value(cfg: CfgNode, key: str) -> object:
    """The value under a dotted key."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """``did you mean 'a'?`` in the form of a remedy: the most similar names, else all."""
    similar = difflib.get_close_matches(name, known, n=3)
    return "did you mean " + " or ".join(similar) if similar else f"choose from {_listed(known)}"


def _listed(names: Sequence[str], most: int = 20) -> str:
    rest = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + rest
