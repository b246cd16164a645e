"""A user's own recordings: labelled by the folders they lie in, heard in bounded portions."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from metaser import audio
from metaser.features import Features
from metaser.labels import nearest
from metaser.store import Ragged

PORTION_SECONDS = 120.0
"""Audio that is held at once, and a longer clip or window alone."""

LONGEST = 60.0
"""Seconds of a clip that has one label; whoever means more wants windows."""


@dataclass(frozen=True)
class Clips:
    """Labelled clips.

    Attributes
    ----------
    files : tuple of Path
        Audio files.
    emotions : tuple of str
        Class of each.
    speakers : tuple of str or None
        Who speaks in each; None where that is not known.
    """

    files: tuple[Path, ...]
    emotions: tuple[str, ...]
    speakers: tuple[str, ...] | None = None


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


def labelled_folder(
    folder: str | Path,
    classes: Collection[str],
    mapping: Mapping[str, str] | None = None,
    drop: Collection[str] = (),
    speaker: str | None = None,
) -> Clips:
    """Find the clips of a folder whose sub-folders are named by emotion.

    A sub-folder's name is a class as it stands, whatever its case and the spaces around it, or is
    mapped. Sub-folders below that are taken for speakers.

    Parameters
    ----------
    folder : str or Path
        E.g. with ``angry/ali/01.wav`` or ``angry/01.wav`` below.
    classes : collection of str
        Classes that are known.
    mapping : mapping of str to str, optional
        Name of a sub-folder to class, e.g. ``{"wütend": "angry"}``.
    drop : collection of str
        Names of sub-folders that are left out.
    speaker : str, optional
        Regular expression whose first group in a file's name, without extension, is the speaker.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If there are no clips, a name is neither a class nor mapped nor dropped (the nearest class
        is told), a sub-folder holds a file that is not audio, or ``speaker`` fits a name not.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"expected a folder of labelled clips, found none at {folder}")
    known = {_plain(name): name for name in classes}
    known |= {
        _plain(name): _known_class(target, classes) for name, target in (mapping or {}).items()
    }
    dropped = {_plain(name) for name in drop}
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    wanted = [path for path in inside if _plain(path.name) not in dropped]
    unknown = [path.name for path in wanted if _plain(path.name) not in known]
    if unknown:
        raise ValueError(_unknown(unknown, classes))
    files, emotions = [], []
    for path in wanted:
        found = audio.find(path)
        _refuse_others(path, found)
        files += found
        emotions += [known[_plain(path.name)]] * len(found)
    if not files:
        loose = len(audio.find(folder))
        hint = f"; {loose} audio files lie in it directly, without a label" if loose else ""
        raise ValueError(
            f"{folder} holds no labelled clips{hint}: expected a sub-folder for each emotion "
            f"({', '.join(classes)}) with audio files in it"
        )
    return Clips(tuple(files), tuple(emotions), _speakers(folder, files, speaker))


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()


def _known_class(target: str, classes: Collection[str]) -> str:
    name = _plain(target)
    if name not in classes:
        raise ValueError(
            f"{target!r} is not a class of the model.{nearest(name, classes)} "
            f"It knows {', '.join(classes)}"
        )
    return name


def _unknown(names: Sequence[str], classes: Collection[str]) -> str:
    guess = [nearest(_plain(name), classes) for name in names]
    said = ", ".join(f"{name!r}{hint}" for name, hint in zip(names, guess))
    return (
        f"sub-folders that are no class of the model: {said}; it knows {', '.join(classes)}. Say "
        f"what each means, e.g. --label '{names[0].strip()}={min(classes)}', or leave it out by "
        f"--drop '{names[0].strip()}'"
    )


def _refuse_others(folder: Path, found: Sequence[Path]) -> None:
    """Refuse files that are not audio by their name, and folders without any that is."""
    if not found:
        raise ValueError(
            f"{folder} holds no audio file (known are {', '.join(audio.EXTENSIONS)}): add some, or "
            "remove it"
        )
    others = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name[0] != "." and path not in set(found)
    ]
    if others:
        raise ValueError(
            f"{others[0]} is among the clips and is not audio by its name (known are "
            f"{', '.join(audio.EXTENSIONS)}); {len(others)} such files: move them elsewhere, or "
            "convert them to one of these"
        )


def _speakers(folder: Path, files: Sequence[Path], pattern: str | None) -> tuple[str, ...] | None:
    """Who speaks, by the file's name or by the folders below the emotion's."""
    if pattern is not None:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        matches = [compiled.search(path.stem) for path in files]
        for path, match in zip(files, matches):
            if match is None or not match.groups():
                raise ValueError(
                    f"{pattern!r} gives no speaker for {path.name}: expected a pattern with one "
                    "group that fits every name, such as '^([^_]+)_'"
                )
        return tuple(match[1] for match in matches)
    below = [path.relative_to(folder).parts[1:-1] for path in files]
    return tuple(map("/".join, below)) if all(below) else None


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


def refuse_two_labels(clips: Clips, contents: Sequence[str]) -> None:
    """Refuse clips of the same audio: under two labels, or twice, which would count as two."""
    first: dict[str, int] = {}
    for row, content in enumerate(contents):
        before = first.setdefault(content, row)
        if before == row:
            continue
        pair = f"{clips.files[before]} and {clips.files[row]}"
        if clips.emotions[before] != clips.emotions[row]:
            raise ValueError(
                f"{pair} are the same audio with two labels, {clips.emotions[before]} and "
                f"{clips.emotions[row]}: keep the right one"
            )
        raise ValueError(f"{pair} are the same audio: keep one of them")


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
