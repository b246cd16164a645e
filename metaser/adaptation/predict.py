"""Predict the emotion of clips or of long recordings."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

from metaser import audio, naming
from metaser.adaptation.calibration import probabilities
from metaser.adaptation.fitted import Fitted
from metaser.adaptation.model_file import ModelFile
from metaser.features.hear import Heard, gather, hear, hear_windows
from metaser.files import users_files
from metaser.tasks.clip_checks import UNREAD

PORTION = 256
"""Clips or windows that are scored at once."""

TOGETHER = 16
"""Files that are read at once, where some may fail."""

Reader = Callable[[Iterable[Path]], Iterator[Heard]]
"""From files to clips or windows."""

UNSURE = "unsure"
"""Reported in place of an emotion whose probability is below the threshold."""


def predict(
    file: ModelFile,
    paths: Sequence[str | Path],
    *,
    window: float | None = None,
    hop: float | None = None,
    abstain: float = 0.0,
    by_these: bool = False,
    speaker: str | None = None,
    failed: dict[str, str] | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Recognise the emotion of clips, or of each window of long recordings.

    Parameters
    ----------
    file : ModelFile
        An adapted model, or one that `metaser train` made.
    paths : sequence of str or Path
        Audio files, and folders of them.
    window, hop : float, optional
        Length of the windows and distance between their starts, in seconds; ``hop`` is half of
        ``window`` if not given. Without a window, a file is one clip.
    abstain : float
        Probability, in [0, 1], below which the emotion is "unsure".
    by_these : bool
        Normalise by all audio of ``paths`` together, instead of by the clips that the model was
        adapted to. A model that is not adapted does so in any case.
    speaker : str, optional
        Who speaks: "one" for one speaker in all files, "file" for another one in each, or a regular
        expression whose group in a file's name is the speaker (a name that it does not fit is of
        somebody unknown). A model that knows voices then looks at all clips of a speaker.
    failed : dict, optional
        Takes the name of each file that cannot be read, and why; the rest is then predicted. Where
        it is not given, the first such file is an error.
    progress : bool
        Show a progress bar.

    Returns
    -------
    DataFrame
        One row per clip or window: ``file``, ``start`` and ``end`` in seconds, ``emotion``,
        ``confidence``, and the probability of each class.

    Raises
    ------
    ValueError
        If there is no audio file, or an argument is out of range.
    AudioError
        If a file cannot be read, or is too long to be one clip.
    """
    if not 0 <= abstain <= 1:
        raise ValueError(
            f"abstain must be a probability from 0 to 1, not {abstain:g}: choose one such as 0.5"
        )
    files = audio_files(paths, failed)
    frontend = file.frontend()
    if window is None:
        if hop is not None:
            raise ValueError(
                f"hop must come with a window, not alone (hop = {hop:g}): add --window, in seconds"
            )
        read: Reader = partial(hear, frontend=frontend)
    else:
        length, step = window, window / 2 if hop is None else hop
        read = partial(hear_windows, frontend=frontend, window=length, hop=step)
    seen = track(files, "predicting", console=Console(stderr=True), transient=True)
    every: Iterable[Path] = seen if progress else files
    heard = read(every) if failed is None else _readable(every, read, failed)
    if speaker is not None and not file.knows_voices:
        raise ValueError(
            "the model must know voices for --speaker, but this one normalises by "
            f"{file.header.setup.normalise!r}: leave it out, or adapt a model such as starter"
        )
    tables = _tables(file, heard, abstain, by_these=by_these, speaker=speaker)
    found = list(tables)
    if not found:
        raise ValueError(
            f"at least one file must be readable, but none of {len(files)} is: {_listed(failed)}"
        )
    return pd.concat(found, ignore_index=True)


def _listed(failed: dict[str, str] | None) -> str:
    return naming.some([f"{name} ({why})" for name, why in (failed or {}).items()], 3)


def _readable(files: Iterable[Path], read: Reader, failed: dict[str, str]) -> Iterator[Heard]:
    """Yield what can be read, a few files at once; note why the others cannot be."""
    list(read([]))  # refuses wrong windows
    left = iter(files)
    while some_files := list(islice(left, TOGETHER)):
        try:
            yield from list(read(some_files))
        except (ValueError, OSError):
            for path in some_files:
                try:
                    yield from list(read([path]))
                except (ValueError, OSError) as error:
                    why = "" if path.name in str(error) else f"{path}: "
                    failed[readable_name(path)] = readable_name(f"{why}{error}")


def readable_name(path: str | Path) -> str:
    """Return a path as text; bytes that are no UTF-8 stand as codes that begin with a backslash."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _tables(
    file: ModelFile,
    heard: Iterable[Heard],
    abstain: float,
    *,
    by_these: bool,
    speaker: str | None,
) -> Iterator[pd.DataFrame]:
    """Yield the predictions portion by portion, or all at once where all have to be heard first."""
    fitted = file.fitted
    if file.normalises and (fitted is None or by_these or speaker is not None):
        heard = everything = list(heard)  # all features, for their means, but not the audio
        if not everything:
            return
        features, rows = gather(everything), np.arange(len(everything))
        if fitted is None:
            fitted = file.fitted_to(features, rows)
        elif by_these:
            fitted = replace(fitted, own=file.support_constants(features, rows))
        if speaker is not None:
            found = fitted.scores(
                features, rows, speakers_of([h.file for h in everything], speaker)
            )
            yield _table(file, everything, found, abstain)
            return
    elif fitted is None:
        fitted = Fitted(file.predictor, file.source)
    for some in _portions(heard):
        found = fitted.scores(gather(some), np.arange(len(some)))
        yield _table(file, some, found, abstain)


def speakers_of(files: Sequence[Path], speaker: str) -> np.ndarray:
    """Return who speaks in each file, "" where that is not known; see ``predict``.

    Raises
    ------
    ValueError
        If ``speaker`` is a pattern without a group, or fits no file.
    """
    if speaker in ("one", "file"):
        return np.array(["one" if speaker == "one" else str(path) for path in files])
    try:
        pattern = re.compile(speaker)
    except re.error as error:
        raise ValueError(
            f"--speaker must be one, file or a regular expression, not {speaker!r}: {error}"
        ) from error
    if not pattern.groups:
        raise ValueError(
            f"--speaker must have a group for the speaker, not {speaker!r}: write e.g. '^([^_]+)_'"
        )
    found = [pattern.search(path.stem) for path in files]
    if not any(found):
        raise ValueError(
            f"--speaker {speaker!r} must fit the name of a file, but fits none, such as "
            f"{files[0].stem!r}: change it"
        )
    return np.array(["" if match is None else match[1] for match in found])


def audio_files(paths: Sequence[str | Path], failed: dict[str, str] | None = None) -> list[Path]:
    """Return the audio files among some paths, and inside those that are folders.

    Parameters
    ----------
    paths : sequence of str or Path
        Files and folders.
    failed : dict, optional
        Takes paths without audio and files of a folder that are sound of a kind that is not read,
        and why, as in ``predict``.

    Raises
    ------
    FileNotFoundError
        If one of the paths does not exist and ``failed`` is not given.
    ValueError
        If a folder holds no audio file and ``failed`` is not given, or there are no paths.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        try:
            files += _files_at(path)
        except (ValueError, OSError) as error:
            if failed is None:
                raise
            failed[readable_name(path)] = str(error)
        if failed is not None and path.is_dir():
            for other in users_files(path):
                if other.suffix.lower() in UNREAD:
                    failed[readable_name(other)] = (
                        f"{other} is video or sound of a kind that is not read: convert it, for "
                        "example by `ffmpeg -i clip.mp4 clip.wav`"
                    )
    if not files:
        if failed:
            raise ValueError(next(iter(failed.values())))
        raise ValueError("at least one audio file or folder must be given, not none: name some")
    return files


def _files_at(path: Path) -> list[Path]:
    """Return the audio files at a path: itself, or those in it."""
    if path.is_dir():
        found = audio.find(path)
        if not found:
            raise ValueError(
                f"{path} must hold audio files ({', '.join(audio.EXTENSIONS)}), but it holds "
                "none: choose another folder"
            )
        return found
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} must be an audio file or a folder, but there is none: check the path"
        )
    return [path]


def _portions(heard: Iterable[Heard]) -> Iterator[list[Heard]]:
    """Yield clips or windows in lists of ``PORTION``, or fewer at the end."""
    portion: list[Heard] = []
    for stretch in heard:
        portion.append(stretch)
        if len(portion) == PORTION:
            yield portion
            portion = []
    if portion:
        yield portion


def _table(
    file: ModelFile, heard: Sequence[Heard], logits: np.ndarray, abstain: float
) -> pd.DataFrame:
    """Return the predictions for some clips or windows, as ``predict`` does."""
    shares = probabilities(logits, file.temperature)
    best = shares.argmax(axis=1)
    confidence = shares.max(axis=1)
    names = np.array(file.header.classes, object)
    columns = {
        "file": [readable_name(stretch.file) for stretch in heard],
        "start": [round(stretch.start, 3) for stretch in heard],
        "end": [round(stretch.end, 3) for stretch in heard],
        "emotion": np.where(confidence < abstain, UNSURE, names[best]),
        "confidence": confidence,
    }
    present = file.predictor.classes.numpy()
    columns |= {name: shares[:, i] for i, name in enumerate(names) if present[i]}
    return pd.DataFrame(columns)
