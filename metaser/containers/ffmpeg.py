"""Sound by PyAV (``pip install 'metaser[video]'``), where libsndfile lacks the format."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    import av

ESTIMATES = ("aac", "amr", "flv")
"""Readers that estimate the length of a file, or do not know it."""

MISSING = (
    "it is of a format that needs PyAV, which is not installed: pip install 'metaser[video]', or "
    "convert it by `ffmpeg -i clip.m4a clip.wav`"
)
"""What to do if PyAV is not there."""


class UnreadError(ValueError):
    """A file that PyAV cannot read; the message says why."""


class Reading:
    """The first sound in a file.

    Attributes
    ----------
    rate, channels : int
        Samples per second, and channels.
    seconds : float or None
        Length as stated; None where that is an estimate.
    notes : tuple of str
        What is not read, with the remedy.
    """

    def __init__(self, file: BinaryIO, reader: str) -> None:
        try:
            import av
        except ImportError as error:
            raise UnreadError(MISSING) from error
        self._error = av.FFmpegError
        file.seek(0)
        try:
            self._container = av.open(file, mode="r", format=reader, metadata_errors="replace")
            sounds = self._container.streams.audio
            if not sounds:
                raise UnreadError(
                    "there is no sound in the file, or not yet; fetch it again, or leave it out"
                )
            self._sound = sounds[0]
            if self._sound.codec_context is None:
                raise UnreadError(
                    "its sound is of a kind that this FFmpeg lacks; convert it by `ffmpeg -i "
                    "clip.m4a clip.wav`"
                )
            self._resampler = av.AudioResampler(format="fltp")
            self.rate, self.channels = self._sound.rate, self._sound.channels
            if not self.rate or not self.channels:
                raise UnreadError(_refusal(ValueError("no rate, or no channels")))
        except (av.FFmpegError, ValueError, OverflowError) as error:
            if isinstance(error, UnreadError):
                raise
            raise UnreadError(_refusal(error)) from error
        self.notes: tuple[str, ...] = ()
        if len(sounds) > 1:
            self.notes = (
                f"it holds {len(sounds)} sounds beside one another; the first was read: write the "
                "others to files of their own to read them, too",
            )
        self.seconds = None if reader in ESTIMATES else self._stated()

    def _stated(self) -> float | None:
        if self._sound.duration is not None and self._sound.time_base is not None:
            return float(self._sound.duration * self._sound.time_base)
        return None if self._container.duration is None else self._container.duration / 1e6

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield float32 (samples, channels) until nothing comes.

        Raises
        ------
        UnreadError
            If the file is damaged or truncated, or rate or channels change in it.
        """
        count = 0
        try:
            for frame in self._container.decode(self._sound):
                for block in self._converted(frame):
                    count += len(block)
                    yield block
        except self._error as error:
            raise UnreadError(_refusal(error)) from error
        if self.seconds is not None and count / self.rate < 0.99 * self.seconds - 0.1:
            raise UnreadError(
                f"the file is truncated: its header states {self.seconds:.1f} s, "
                f"{count / self.rate:.1f} s could be decoded; fetch it again"
            )

    def _converted(self, frame: "av.AudioFrame") -> Iterator[np.ndarray]:
        if (frame.sample_rate, frame.layout.nb_channels) != (self.rate, self.channels):
            raise UnreadError(
                f"its sound must stay at {self.rate} Hz and {self.channels} channels, but changes "
                f"to {frame.sample_rate} Hz and {frame.layout.nb_channels}; cut it there"
            )
        for part in self._resampler.resample(frame):
            yield np.ascontiguousarray(part.to_ndarray().T)

    def close(self) -> None:
        """Close what was opened."""
        self._container.close()


def _refusal(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return f"cannot be decoded ({reason}); the file is damaged or truncated: fetch it again"
