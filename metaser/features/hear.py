"""The one path by which sound is read: files become stretches of sound, and those become frames.

Extraction, adapting, predicting and selecting all read sound here, so each of them gets the same
from a file.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from metaser import audio
from metaser.contracts import FrontEnd, compute_many
from metaser.features.store import Ragged
from metaser.features.table import Features
from metaser.files import readable_name
from metaser.speech import lacks_speech

PORTION_SECONDS = 120.0
"""Seconds of audio in memory at once; a longer clip or window is read alone."""

LONGEST = 60.0
"""Longest clip with one label, in seconds; longer recordings are read in windows."""


@dataclass(frozen=True)
class Stretch:
    """A clip, or a window of a recording, as sound.

    Attributes
    ----------
    file : Path
        The audio file.
    start, end : float
        Place in the file, in seconds.
    waveform : ndarray
        (samples,) float32 in [-1, 1] at the requested rate; before ``at_rate``, (samples,
        channels) at the file's own rate.
    content : str
        Digest of the file's audio; empty for a window.
    rate : int
        Samples per second of the file.
    doubt : str
        Why there can be no speech in it, if that was looked at.
    """

    file: Path
    start: float
    end: float
    waveform: np.ndarray
    content: str
    rate: int
    doubt: str = ""


@dataclass(frozen=True)
class Heard:
    """A stretch of audio through a front end.

    Attributes
    ----------
    file : Path
        The audio file.
    start, end : float
        Place in the file, in seconds.
    frames : ndarray
        (frames, channels) float32 features.
    content : str
        Digest of the file's audio; empty for a window.
    rate : int
        Samples per second of the file.
    doubt : str
        Why there can be no speech in it, if that was looked at.
    """

    file: Path
    start: float
    end: float
    frames: np.ndarray
    content: str
    rate: int
    doubt: str = ""


def read_clip(path: Path, longest: float = math.inf) -> Stretch:
    """Decode a whole file; its waveform is (samples, channels) at the file's own rate.

    Raises
    ------
    AudioError
        If the file cannot be read, or lasts more than ``longest`` seconds.
    """
    samples, rate = audio.decode(path, longest)
    return Stretch(path, 0.0, len(samples) / rate, samples, audio.digest(samples, rate), rate)


def at_rate(clip: Stretch, rate: int) -> Stretch:
    """Return a decoded clip as mono sound at ``rate`` samples per second."""
    return replace(clip, waveform=audio.convert(clip.file, clip.waveform, clip.rate, rate))


def hear(files: Iterable[Path], frontend: FrontEnd) -> Iterator[Heard]:
    """Decode clips and yield their features in the order of the files, a few in memory at a time.

    Raises
    ------
    AudioError
        If a file cannot be read, is longer than ``LONGEST``, or gives features that are not finite.
    """
    return compute_frames(_clips(files, frontend.rate), frontend)


def hear_windows(
    files: Iterable[Path], frontend: FrontEnd, window: float, hop: float
) -> Iterator[Heard]:
    """Yield the features of long recordings in windows, a few in memory at a time.

    A last window shorter than half of ``window`` is left out, unless it is the only one.

    Parameters
    ----------
    files : iterable of Path
        Audio files of any length.
    frontend : FrontEnd
        See ``metaser.frontends``.
    window, hop : float
        Length of the windows and distance between their starts, in seconds, above 0; ``hop`` is
        at most ``window``.

    Raises
    ------
    ValueError
        If ``window`` or ``hop`` are out of range.
    AudioError
        As in ``hear``.
    """
    if not 0 < hop <= window <= LONGEST:
        raise ValueError(
            f"windows must have 0 < hop <= window <= {LONGEST:g} seconds, not window = {window:g} "
            f"and hop = {hop:g}: choose others, such as --window 4 --hop 2"
        )
    return compute_frames(_windows(files, frontend.rate, window, hop), frontend)


def _clips(files: Iterable[Path], rate: int) -> Iterator[Stretch]:
    for path in files:
        yield _doubted(at_rate(read_clip(path, LONGEST), rate), rate)


def _windows(files: Iterable[Path], rate: int, window: float, hop: float) -> Iterator[Stretch]:
    for path in files:
        with audio.opened(path) as sound:
            size, step = round(window * sound.rate), round(hop * sound.rate)
            for index, samples in enumerate(_overlapping(sound.blocks(), size, step)):
                if index and len(samples) < size / 2:
                    continue
                start = index * step / sound.rate
                end = start + len(samples) / sound.rate
                stretch = Stretch(path, start, end, samples, "", sound.rate)
                yield _doubted(at_rate(stretch, rate), rate)


def _doubted(stretch: Stretch, rate: int) -> Stretch:
    return replace(stretch, doubt=lacks_speech(stretch.waveform, rate))


def _overlapping(blocks: Iterable[np.ndarray], size: int, step: int) -> Iterator[np.ndarray]:
    """Yield windows of ``size`` samples that begin every ``step``, a shorter one at the end."""
    held, ended = None, 0  # samples from the next window on, and how many of them were given
    for block in blocks:
        held = block if held is None else np.concatenate([held, block])
        while len(held) >= size:
            yield held[:size]
            held, ended = held[step:], size - step
    if held is not None and len(held) > ended:
        yield held


def compute_frames(stretches: Iterable[Stretch], frontend: FrontEnd) -> Iterator[Heard]:
    """Yield the features of stretches in their order, ``PORTION_SECONDS`` of sound at a time.

    Raises
    ------
    AudioError
        If the features of a stretch are not finite; the message names the file.
    """
    portion: list[Stretch] = []
    samples = 0
    for stretch in stretches:
        if portion and samples + len(stretch.waveform) > PORTION_SECONDS * frontend.rate:
            yield from _compute(portion, frontend)
            portion, samples = [], 0
        portion.append(stretch)
        samples += len(stretch.waveform)
    if portion:
        yield from _compute(portion, frontend)


def _compute(portion: Sequence[Stretch], frontend: FrontEnd) -> Iterator[Heard]:
    frames = compute_many(frontend)([stretch.waveform for stretch in portion])
    for stretch, values in zip(portion, frames):
        if not np.isfinite(values).all():
            raise audio.AudioError(
                f"{stretch.file}: the features of {type(frontend).__name__} must be finite, but "
                "some are not finite: check the file by `metaser tasks check`"
            )
        place = stretch.file, stretch.start, stretch.end
        yield Heard(*place, values, stretch.content, stretch.rate, stretch.doubt)


def gather(heard: Sequence[Heard]) -> Features:
    """Return the features of some stretches as one table, one row per stretch."""
    lengths = np.array([len(stretch.frames) for stretch in heard])
    frames = np.concatenate([stretch.frames for stretch in heard])
    contents = np.array([stretch.content for stretch in heard])
    return Features(Ragged(frames, np.cumsum(lengths) - lengths, lengths), lengths, contents)


def without_speech(heard: Sequence[Heard]) -> str:
    """Return a warning about stretches in which there can be no speech, or "" if there are none."""
    doubted = [stretch for stretch in heard if stretch.doubt]
    if not doubted:
        return ""
    named = list(
        dict.fromkeys(f"{readable_name(stretch.file)} ({stretch.doubt})" for stretch in doubted)
    )
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return (
        f"{len(doubted)} of {len(heard)} clips or windows hold no speech: {', '.join(named[:3])}"
        f"{more}; listen to them"
    )


def mixed_rates(heard: Sequence[Heard]) -> str:
    """Return a warning about clips of several sampling rates, or "" if all have one rate."""
    rates = Counter(stretch.rate for stretch in heard)
    if len(rates) < 2:
        return ""
    listed = ", ".join(f"{count} at {rate} Hz" for rate, count in sorted(rates.items()))
    return (
        f"the clips have different sampling rates ({listed}); they were brought to one, but a rate "
        "that goes with a label can give it away"
    )
