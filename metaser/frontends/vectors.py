"""Vectors that a task folder holds, whatever computed them."""

from dataclasses import dataclass

import numpy as np

POOLINGS = ("none", "mean", "statistics")


@dataclass(frozen=True)
class Vectors:
    """The vectors of ``[vectors.<modality>]`` of a task folder.

    Parameters
    ----------
    modality : {"audio", "text", "video"}
        Which of them.
    pooling : {"none", "mean", "statistics"}
        Frames as they are; or one frame a clip: their mean, or their mean and standard deviation.

    Raises
    ------
    ValueError
        If an argument is none of these.
    """

    modality: str
    pooling: str = "none"

    def __post_init__(self):
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}, not {self.pooling!r}")

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Return (frames, channels) or one frame of (frames, channels); none stays none."""
        if self.pooling == "none":
            return frames
        moments = [frames.mean, frames.std][: 1 if self.pooling == "mean" else 2]
        if not len(frames):
            return np.zeros((0, len(moments) * frames.shape[1]), np.float32)
        return np.concatenate([moment(axis=0, keepdims=True) for moment in moments], axis=1)
