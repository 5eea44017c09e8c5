"""The path manager that every read and write of the package goes through."""

from typing import IO, Any

from iopath.common.file_io import HTTPURLHandler, OneDrivePathHandler, PathHandler
from iopath.common.file_io import PathManager as PathManagerBase

__all__ = ["PathManager", "PathHandler"]

PathManager = PathManagerBase()
"""The project's own instance, so that handlers registered here do not leak into other libraries."""


class Detectron2Handler(PathHandler):
    """Resolves ``detectron2://`` names to the public download site of the model zoo."""

    PREFIX = "detectron2://"
    S3_DETECTRON2_PREFIX = "https://dl.fbaipublicfiles.com/detectron2/"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, **kwargs: Any) -> str:
        url = self.S3_DETECTRON2_PREFIX + path.removeprefix(self.PREFIX)
        return PathManager.get_local_path(url, **kwargs)

    def _open(self, path: str, mode: str = "r", **kwargs: Any) -> IO[Any]:
        return PathManager.open(self._get_local_path(path), mode, **kwargs)


for _handler in (HTTPURLHandler(), OneDrivePathHandler(), Detectron2Handler()):
    PathManager.register_handler(_handler)
