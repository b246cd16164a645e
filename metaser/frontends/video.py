"""Front ends of video: a file becomes small grey pictures, one frame each."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metaser import video


@dataclass(frozen=True)
class VideoFrames:
    """Grey pictures, each pixel the mean of a block, row after row.

    Needs ``pip install "metaser[video]"``.

    Parameters
    ----------
    fps : float
        Pictures per second, above 0.
    size : int
        Pixels in width and in height, at least 1.
    seconds : float
        Longest clip, above 0; what exceeds it is cut.

    Raises
    ------
    ValueError
        If a number is out of its range.
    """

    LIBRARIES = ("av",)
    modality = "video"

    fps: float = 5.0
    size: int = 16
    seconds: float = 10.0

    def __post_init__(self) -> None:
        if not (self.fps > 0 and self.size >= 1 and self.seconds > 0):
            raise ValueError(
                "fps and seconds must be above 0, and size at least 1, not "
                f"{self.fps}, {self.seconds} and {self.size}: raise what is below"
            )

    def __call__(self, path: str | Path) -> np.ndarray:
        """Return (pictures, ``size`` x ``size``) float32, 0 black to 1 white, of a video file."""
        pictures = video.read(path, self.fps, self.size, self.seconds)
        return pictures.reshape(len(pictures), -1)
