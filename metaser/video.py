"""Video files as small grey pictures, by PyAV (``pip install 'metaser[video]'``)."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import av


class VideoError(ValueError):
    """A file that cannot be used as video; the message says why."""


def read(path: str | Path, rate: float, size: int, seconds: float) -> np.ndarray:
    """Read a video file as grey pictures.

    Parameters
    ----------
    path : str or Path
        Video file of any kind that FFmpeg reads.
    rate : float
        Pictures per second, above 0. Picture k is the one on show at k / rate seconds.
    size : int
        Width and height of a picture, whatever the file's; every pixel is the mean of a block.
    seconds : float
        What comes later is cut.

    Returns
    -------
    numpy.ndarray
        (pictures, size, size) float32, 0 black to 1 white; at least one picture.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    VideoError
        If it cannot be decoded or has no picture; the message names it.
    ModuleNotFoundError
        If PyAV is missing.
    """
    try:
        import av
    except ImportError as error:
        raise ModuleNotFoundError(
            "reading video files needs PyAV, which is not installed: pip install 'metaser[video]'"
        ) from error
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no video file at {path}")
    times: list[float] = []
    pictures: list[np.ndarray] = []
    try:
        with av.open(str(path)) as file:
            if not file.streams.video:
                raise VideoError(f"{path}: the file has no video stream")
            for frame in file.decode(video=0):
                if frame.time is None:
                    raise VideoError(f"{path}: its pictures carry no times; convert it to MP4")
                if times and frame.time - times[0] >= seconds:
                    break
                times.append(frame.time)
                pictures.append(_grey(frame, size))
    except av.FFmpegError as error:
        raise VideoError(f"{path}: cannot be decoded ({error}); fetch it again") from error
    if not pictures:
        raise VideoError(f"{path}: the file holds no picture; fetch it again")
    clock = np.array(times) - times[0]
    wanted = np.arange(np.floor(clock[-1] * rate + 1e-6) + 1) / rate
    return np.stack(pictures)[np.searchsorted(clock, wanted + 1e-6) - 1]


def _grey(frame: "av.VideoFrame", size: int) -> np.ndarray:
    """Return a frame as (size, size) float32 in [0, 1]."""
    grey = frame.reformat(width=size, height=size, format="gray", interpolation="AREA")
    return grey.to_ndarray().astype(np.float32) / 255
