"""``catalog://``: short names for backbones and box detectors published with Detectron (Caffe2)."""

from __future__ import annotations

from typing import IO, Any

from detectron2.utils.file_io import PathHandler, PathManager

__all__ = ["ModelCatalog", "ModelCatalogHandler"]

_URL_PREFIX = "https://dl.fbaipublicfiles.com/detectron"

_BACKBONES = {
    "MSRA/R-50": "MSRA/R-50.pkl",
    "MSRA/R-101": "MSRA/R-101.pkl",
    "FAIR/R-50-GN": "47261647/R-50-GN.pkl",
    "FAIR/R-101-GN": "47592356/R-101-GN.pkl",
    "FAIR/X-101-32x8d": "20171220/X-101-32x8d.pkl",
    "FAIR/X-101-64x4d": "FBResNeXt/X-101-64x4d.pkl",
    "FAIR/X-152-32x8d-IN5k": "25093814/X-152-32x8d-IN5k.pkl",
}

# "<job>/<config>" -> time stamp and hash in the URL of the trained model.
_DETECTORS = {
    "35857197/e2e_faster_rcnn_R-50-C4_1x": "01_33_49.iAX0mXvW",
    "35857345/e2e_faster_rcnn_R-50-FPN_1x": "01_36_30.cUF7QR7I",
    "35857890/e2e_faster_rcnn_R-101-FPN_1x": "01_38_50.sNxI7sX7",
    "36761737/e2e_faster_rcnn_X-101-32x8d-FPN_1x": "06_31_39.5MIHi1fZ",
    "35998355/rpn_R-50-C4_1x": "08_00_43.njH5oD9L",
    "35998814/rpn_R-50-FPN_1x": "08_06_03.Axg0r179",
    "36225147/fast_R-50-FPN_1x": "08_39_09.L3obSdQ2",
}


class ModelCatalog:
    """Maps names of Detectron's models to URLs."""

    @staticmethod
    def get(name: str) -> str:
        """The URL for ``ImageNetPretrained/<backbone>`` or ``Caffe2Detectron/COCO/<model>``."""
        group, _, model = name.partition("/")
        if group == "ImageNetPretrained" and model in _BACKBONES:
            return f"{_URL_PREFIX}/{group}/{_BACKBONES[model]}"
        detector = model.removeprefix("COCO/")
        if group == "Caffe2Detectron" and detector in _DETECTORS:
            return _detector_url(detector)
        raise RuntimeError(
            f"'{name}' is not in the model catalog, which has ImageNetPretrained/ followed by one "
            f"of {sorted(_BACKBONES)} and Caffe2Detectron/COCO/ by one of {sorted(_DETECTORS)}."
        )


def _detector_url(name: str) -> str:
    job, config = name.split("/")
    # The Fast R-CNN config has another name in the URL than in the catalog.
    config_file = config.replace("fast_R", "fast_rcnn_R") + ".yaml"
    # Only the model without FPN was trained as a pure proposal network.
    model_type = "rpn" if config == "rpn_R-50-C4_1x" else "generalized_rcnn"
    return (
        f"{_URL_PREFIX}/{job}/12_2017_baselines/{config_file}.{_DETECTORS[name]}/output/train/"
        f"coco_2014_train%3Acoco_2014_valminusminival/{model_type}/model_final.pkl"
    )


class ModelCatalogHandler(PathHandler):
    """Opens ``catalog://<name>``, where :class:`ModelCatalog` knows the name."""

    PREFIX = "catalog://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, **kwargs: Any) -> str:
        url = ModelCatalog.get(path.removeprefix(self.PREFIX))
        return PathManager.get_local_path(url, **kwargs)

    def _open(self, path: str, mode: str = "r", **kwargs: Any) -> IO[Any]:
        return PathManager.open(self._get_local_path(path), mode, **kwargs)


PathManager.register_handler(ModelCatalogHandler())
