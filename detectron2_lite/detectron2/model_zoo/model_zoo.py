"""Configs and checkpoints of the stock box detectors, by the name of the config file."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import torch
from torch import nn

from detectron2._left_out import left_out_error
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file"]

_CONFIG_DIR = Path(__file__).with_name("configs")
_URL_PREFIX = "https://dl.fbaipublicfiles.com/detectron2"

# Config without extension -> path of the trained model below "<prefix>/<config>/".
_CHECKPOINTS = {
    "COCO-Detection/fast_rcnn_R_50_FPN_1x": "137635226/model_final_e5f7ce.pkl",
    "COCO-Detection/faster_rcnn_R_50_C4_1x": "137257644/model_final_721ade.pkl",
    "COCO-Detection/faster_rcnn_R_50_C4_3x": "137849393/model_final_f97cb7.pkl",
    "COCO-Detection/faster_rcnn_R_50_DC5_1x": "137847829/model_final_51d356.pkl",
    "COCO-Detection/faster_rcnn_R_50_DC5_3x": "137849425/model_final_68d202.pkl",
    "COCO-Detection/faster_rcnn_R_50_FPN_1x": "137257794/model_final_b275ba.pkl",
    "COCO-Detection/faster_rcnn_R_50_FPN_3x": "137849458/model_final_280758.pkl",
    "COCO-Detection/faster_rcnn_R_101_C4_3x": "138204752/model_final_298dad.pkl",
    "COCO-Detection/faster_rcnn_R_101_DC5_3x": "138204841/model_final_3e0943.pkl",
    "COCO-Detection/faster_rcnn_R_101_FPN_3x": "137851257/model_final_f6e8b1.pkl",
    "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x": "139173657/model_final_68b088.pkl",
    "COCO-Detection/retinanet_R_50_FPN_1x": "190397773/model_final_bfca0b.pkl",
    "COCO-Detection/retinanet_R_50_FPN_3x": "190397829/model_final_5bd44e.pkl",
    "COCO-Detection/retinanet_R_101_FPN_3x": "190397697/model_final_971ab9.pkl",
    "COCO-Detection/rpn_R_50_C4_1x": "137258005/model_final_450694.pkl",
    "COCO-Detection/rpn_R_50_FPN_1x": "137258492/model_final_02ce48.pkl",
    "Detectron1-Comparisons/faster_rcnn_R_50_FPN_noaug_1x": "137781054/model_final_7ab50c.pkl",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x": "138602847/model_final_e9d89b.pkl",
    "Misc/cascade_mask_rcnn_R_50_FPN_3x": "144998488/model_final_480dd8.pkl",
    "PascalVOC-Detection/faster_rcnn_R_50_C4": "142202221/model_final_b1acc2.pkl",
}


def get_config_file(config_path: str) -> str:
    """The file of a stock config such as ``COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml``.

    Raises RuntimeError if the zoo has no such file.
    """
    path = _CONFIG_DIR / config_path
    if not path.is_file():
        raise RuntimeError(
            f"'{config_path}' is not among the box-detection configs of the model zoo; "
            f"those are the files below {_CONFIG_DIR}."
        )
    return str(path)


def get_checkpoint_url(config_path: str) -> str:
    """The URL of the model trained with a stock config; the extension of the name is ignored.

    Raises RuntimeError if none was published or the config is not a stock one.
    """
    name = config_path.removesuffix(".yaml").removesuffix(".py")
    if name not in _CHECKPOINTS:
        raise RuntimeError(f"The model zoo has no trained model for '{config_path}'.")
    return f"{_URL_PREFIX}/{name}/{_CHECKPOINTS[name]}"


def get_config(config_path: str, trained: bool = False) -> CfgNode:
    """The complete config of a stock model, which may be changed freely.

    Args:
        config_path: as in :func:`get_config_file`.
        trained: point ``MODEL.WEIGHTS`` to the trained model; otherwise it stays what the config
            says, mostly a backbone trained on ImageNet.
    """
    if PurePosixPath(config_path).suffix == ".py":
        raise left_out_error("detectron2.model_zoo.get_config for a LazyConfig file (.py)")
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file(config_path))
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(config_path)
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """A stock model in training mode, with the weights that its config names.

    Args:
        config_path: as in :func:`get_config_file`.
        trained: as in :func:`get_config`.
        device: where the model lives; by default as the config says, or the CPU without CUDA.
    """
    cfg = get_config(config_path, trained)
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    if device is not None:
        cfg.MODEL.DEVICE = device
    model = build_model(cfg)
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model
