"""The path by which sound is read: whole clips or windows, through a front end."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from metaser import audio
from metaser.features.cache import file_stamp
from metaser.features.store import Ragged
from metaser.features.table import Features


def decode_noted(path: Path) -> tuple[np.ndarray, int, str]:
    """Samples, rate, and the note of a file: its size and time before it was read, its content."""
    stamp = file_stamp(path)
    samples, rate = audio.decode(path)
    return samples, rate, f"{stamp} {audio.digest(samples, rate)}"


PORTION_SECONDS = 120.0
"""Audio that is held at once, and a longer clip or window alone."""

LONGEST = 60.0
"""Seconds of a clip that has one label; whoever means more wants windows."""


@dataclass(frozen=True)
class Heard:
    """A stretch of audio through a front end.

    Attributes
    ----------
    file : Path
        Where it comes from.
    start, end : float
        In seconds.
    frames : ndarray
        (frames, channels) float32.
    content : str
        Digest of the file's audio; empty for a window.
    rate : int
        Samples a second of the file.
    """

    file: Path
    start: float
    end: float
    frames: np.ndarray
    content: str
    rate: int


def hear(files: Iterable[Path], frontend: Callable) -> Iterator[Heard]:
    """Decode clips and compute their features, some at a time; each in its order.

    Raises
    ------
    AudioError
        If a file cannot be read, is longer than ``LONGEST``, or gives features that are not finite.
    """
    return _through(_whole(files, frontend.rate), frontend)


def hear_windows(
    files: Iterable[Path], frontend: Callable, window: float, hop: float
) -> Iterator[Heard]:
    """Go through long recordings in windows, of which only some are held at once.

    A last window shorter than half of the others is left out, unless it is the only one.

    Parameters
    ----------
    files : iterable of Path
        Audio files of any length.
    frontend : callable
        See ``metaser.frontends``.
    window, hop : float
        Length of the windows and their distance, in seconds, above 0; ``hop`` at most ``window``.

    Raises
    ------
    ValueError
        If ``window`` or ``hop`` are out of range.
    AudioError
        As in ``hear``.
    """
    if not 0 < hop <= window <= LONGEST:
        raise ValueError(
            f"expected 0 < hop <= window <= {LONGEST:g} seconds, came window = {window:g} and "
            f"hop = {hop:g}"
        )
    return _through(_windows(files, frontend.rate, window, hop), frontend)


def _whole(files: Iterable[Path], rate: int) -> Iterator[tuple]:
    for path in files:
        seconds = audio.duration(path)
        if seconds > LONGEST:
            raise audio.AudioError(
                f"{path} is {seconds:.0f} s long, and one label for more than {LONGEST:g} s says "
                "little: go through it in windows (--window 4 --hop 2)"
            )
        samples, own = audio.decode(path)
        waveform = audio.convert(path, samples, own, rate)
        yield path, 0.0, len(samples) / own, waveform, audio.digest(samples, own), own


def _windows(files: Iterable[Path], rate: int, window: float, hop: float) -> Iterator[tuple]:
    for path in files:
        audio.duration(path)  # refuses what is no audio, in its own words
        with soundfile.SoundFile(path) as file:
            own = file.samplerate
            size, step = round(window * own), round(hop * own)
            blocks = file.blocks(size, size - step, dtype="float32", always_2d=True)
            heard = 0
            for index, samples in enumerate(blocks):
                heard = index * step + len(samples)
                if index and len(samples) < size / 2:
                    continue
                if not np.isfinite(samples).all():
                    raise audio.AudioError(f"{path}: samples are NaN or infinite")
                start = index * step / own
                waveform = audio.convert(path, samples, own, rate)
                yield path, start, start + len(samples) / own, waveform, "", own
            if heard < file.frames:
                raise audio.AudioError(
                    f"{path}: the file is truncated: its header states {file.frames} samples, "
                    f"{heard} could be decoded; fetch it again"
                )


def _through(stretches: Iterable[tuple], frontend: Callable) -> Iterator[Heard]:
    """Give portions of stretches to the front end."""
    held: list[tuple] = []
    samples = 0
    for stretch in stretches:
        if held and samples + len(stretch[3]) > PORTION_SECONDS * frontend.rate:
            yield from _portion(held, frontend)
            held, samples = [], 0
        held.append(stretch)
        samples += len(stretch[3])
    if held:
        yield from _portion(held, frontend)


def _portion(held: Sequence[tuple], frontend: Callable) -> Iterator[Heard]:
    many = getattr(frontend, "many", None) or (lambda waveforms: list(map(frontend, waveforms)))
    for (path, start, end, _, content, rate), frames in zip(held, many([s[3] for s in held])):
        if not np.isfinite(frames).all():
            raise audio.AudioError(f"{path}: {type(frontend).__name__} gives no finite features")
        yield Heard(path, start, end, frames, content, rate)


def gather(heard: Sequence[Heard]) -> Features:
    """The features of some stretches as one table."""
    lengths = np.array([len(one.frames) for one in heard])
    frames = np.concatenate([one.frames for one in heard])
    contents = np.array([one.content for one in heard])
    return Features(Ragged(frames, np.cumsum(lengths) - lengths, lengths), lengths, contents)


def mixed_rates(heard: Sequence[Heard]) -> str:
    """A sentence about clips of several sampling rates, or nothing."""
    rates = Counter(one.rate for one in heard)
    if len(rates) < 2:
        return ""
    said = ", ".join(f"{count} at {rate} Hz" for rate, count in sorted(rates.items()))
    return (
        f"the clips have different sampling rates ({said}); they were brought to one, but a rate "
        "that goes with a label can give it away"
    )
