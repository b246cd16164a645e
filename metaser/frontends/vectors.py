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
        Frames as they are; or one frame per clip: their mean, or their mean and standard deviation.

    Raises
    ------
    ValueError
        If an argument is none of these.
    """

    modality: str
    pooling: str = "none"

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}, not {self.pooling!r}: choose one")

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Return frames (frames, channels), or one frame that pools them; no frames stay none."""
        if self.pooling == "none":
            return frames
        if not len(frames):
            moments = 1 if self.pooling == "mean" else 2
            return np.zeros((0, moments * frames.shape[1]), np.float32)
        mean = frames.mean(axis=0, keepdims=True)
        if self.pooling == "mean":
            return mean
        return np.concatenate([mean, frames.std(axis=0, keepdims=True)], axis=1)
