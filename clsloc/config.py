"""The config node of the shared core; each project adds its own beside it."""

from detectron2.config import CfgNode


def add_core_config(cfg: CfgNode) -> None:
    """Add the node ``CLSLOC`` with its defaults to ``cfg``; nothing else is touched."""
    cfg.CLSLOC = node = CfgNode()

    # Datasets to register before anything is built, each a list:
    #   [name, "coco", json_file, image_root]
    #   [name, "voc", directory, split] or [name, "voc", directory, split, [class names]]
    # The flags --coco and --voc append to this list.
    node.DATASETS = []

    # At inference, give the localisation path only the RoIs with a score above the threshold
    # (where the classification does not need that path). The detections are the same either way.
    node.LAZY_LOCALISATION = True

    node.BEST = CfgNode()
    # Keep the checkpoint with the largest value of this metric as model_best.pth, e.g. "bbox/AP"
    # (with several test sets "<dataset>/bbox/AP"); compared every TEST.EVAL_PERIOD iterations and
    # at the end. Empty: keep none.
    node.BEST.METRIC = ""
    # Stop training after this many evaluations in a row without a new best; 0: never.
    node.BEST.PATIENCE = 0

    node.TEST = CfgNode()
    # Report the AP of every class beside the averages.
    node.TEST.PER_CLASS = False
