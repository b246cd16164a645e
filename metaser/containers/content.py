"""What examining a file gives, and the file as a decoder is to see it."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

Segment = bytes | tuple[int, int]
"""Bytes in place of those of a file, or the start and end of a stretch of the file."""


@dataclass(frozen=True)
class Piece:
    """One stream of sound in a file.

    Attributes
    ----------
    segments : tuple of Segment
        What a decoder must be given, in this order; empty for the whole file as it is.
    slack : int
        Samples per channel that may be missing at the end: a decoder cannot give them all.
    """

    segments: tuple[Segment, ...] = ()
    slack: int = 0


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes
    ----------
    pieces : tuple of Piece
        Streams of sound, one after the other.
    notes : tuple of str
        What the header states wrongly, or what is not read, each with the remedy.
    fault : str
        Why the file cannot be used, and what to do; "" if it can.
    ffmpeg : str
        Name of FFmpeg's reader, for a format that libsndfile lacks; else "".
    """

    pieces: tuple[Piece, ...] = (Piece(),)
    notes: tuple[str, ...] = ()
    fault: str = ""
    ffmpeg: str = ""


class Splice:
    """A file that is read as some of its stretches and other bytes, one after the other."""

    def __init__(self, file: BinaryIO, segments: Sequence[Segment]) -> None:
        self._file = file
        self._starts, self._segments = [0], []
        for segment in segments:
            length = len(segment) if isinstance(segment, bytes) else segment[1] - segment[0]
            if length > 0:
                self._segments.append(segment)
                self._starts.append(self._starts[-1] + length)
        self._place, self._index = 0, 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, as in any file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._starts[-1]}[whence]
        self._place = max(base + offset, 0)
        return self._place

    def tell(self) -> int:
        """Return the place."""
        return self._place

    def read(self, count: int) -> bytes:
        """Return the next bytes, fewer at the end."""
        parts = []
        while count > 0 and self._place < self._starts[-1]:
            while self._place < self._starts[self._index]:
                self._index -= 1
            while self._place >= self._starts[self._index + 1]:
                self._index += 1
            segment, within = self._segments[self._index], self._place - self._starts[self._index]
            here = min(count, self._starts[self._index + 1] - self._place)
            if isinstance(segment, bytes):
                part = segment[within : within + here]
            else:
                self._file.seek(segment[0] + within)
                part = self._file.read(here)
            if not part:
                break
            parts.append(part)
            self._place += len(part)
            count -= len(part)
        return b"".join(parts)
