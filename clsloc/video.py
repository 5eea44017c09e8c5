"""Frames of video files in and out, with OpenCV, which is imported only here and only when used."""

import os
from collections.abc import Iterator
from types import ModuleType, TracebackType

import numpy as np

from clsloc.errors import UserError

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")


def is_video(path: str | os.PathLike) -> bool:
    """Whether the file name ends as that of a video."""
    return os.fspath(path).lower().endswith(VIDEO_SUFFIXES)


class VideoReader:
    """Iterates over the frames of a video, BGR (H, W, 3) of uint8.

    Attributes:
        fps: frames per second, 25 where the file does not say.
    """

    def __init__(self, path: str) -> None:
        """
        Raises:
            UserError: the file is no video that OpenCV can read.
        """
        self._path = path
        self._capture = _cv2().VideoCapture(path)
        if not self._capture.isOpened():
            raise UserError(f"{path!r} cannot be read as a video; convert it to an MP4 file.")
        self.fps: float = self._capture.get(_cv2().CAP_PROP_FPS) or 25.0

    def __iter__(self) -> Iterator[np.ndarray]:
        count = 0
        try:
            while True:
                ok, frame = self._capture.read()
                if not ok:
                    break
                count += 1
                yield frame
        finally:  # also where whoever iterates stops early
            self._capture.release()
        if not count:
            raise UserError(f"The video {self._path!r} has no frame that can be read.")


class VideoWriter:
    """Writes RGB frames of one size to an MP4 file; use it as a context."""

    def __init__(self, path: str | os.PathLike, fps: float) -> None:
        self._path = os.fspath(path)
        self._fps = fps
        self._writer = None

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.release()

    def write(self, frame: np.ndarray) -> None:
        """Append a frame (H, W, 3) of uint8; the first one sets the size.

        Raises:
            UserError: the file cannot be opened for writing.
        """
        height, width = frame.shape[:2]
        if self._writer is None:
            code = _cv2().VideoWriter_fourcc(*"mp4v")
            self._writer = _cv2().VideoWriter(self._path, code, self._fps, (width, height))
            if not self._writer.isOpened():
                raise UserError(f"The video {self._path!r} cannot be written; check the folder.")
        self._writer.write(np.ascontiguousarray(frame[:, :, ::-1]))


def _cv2() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"Videos need OpenCV, which cannot be imported ({error}); install "
            "opencv-python-headless."
        ) from error
    return cv2
