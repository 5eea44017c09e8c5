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

    node.TEST = CfgNode()
    # Report the AP of every class beside the averages.
    node.TEST.PER_CLASS = False
