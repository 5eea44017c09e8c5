"""Reading videos, with a stand-in for OpenCV."""

from types import SimpleNamespace

import numpy as np
import pytest

from clsloc import video
from clsloc.errors import UserError


class Capture:
    """Gives a number of frames, as OpenCV's VideoCapture does."""

    def __init__(self, frames: int) -> None:
        self.left = frames
        self.released = 0

    def isOpened(self) -> bool:  # noqa: N802 (OpenCV's name)
        return True

    def get(self, key: int) -> float:
        return 0.0

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.left -= 1
        return (True, np.zeros((4, 6, 3), np.uint8)) if self.left >= 0 else (False, None)

    def release(self) -> None:
        self.released += 1


@pytest.fixture
def open_video(monkeypatch):
    def open_video(frames):
        capture = Capture(frames)
        cv2 = SimpleNamespace(VideoCapture=lambda path: capture, CAP_PROP_FPS=5)
        monkeypatch.setattr(video, "_cv2", lambda: cv2)
        return video.VideoReader("clip.mp4"), capture

    return open_video


def test_a_video_is_closed_at_its_end(open_video):
    reader, capture = open_video(2)
    assert len(list(reader)) == 2
    assert (reader.fps, capture.released) == (25.0, 1)


def test_a_video_is_closed_where_reading_stops_early(open_video):
    reader, capture = open_video(3)
    for _ in reader:
        break
    assert (capture.left, capture.released) == (2, 1)


def test_a_video_without_a_frame_is_a_sentence(open_video):
    reader, capture = open_video(0)
    with pytest.raises(UserError, match=r"'clip\.mp4' has no frame"):
        list(reader)
    assert capture.released == 1
