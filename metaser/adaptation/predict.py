"""Predict the emotion of clips or of long recordings."""

import logging
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
from metaser.adaptation.voices import ONE, Given, given_clips, known_voices, speakers_of
from metaser.features.hear import Heard, gather, hear, hear_windows, without_speech
from metaser.files import readable_name, users_files
from metaser.tasks.clip_checks import UNREAD

log = logging.getLogger(__name__)

PORTION = 256
"""Clips or windows that are scored at once."""

TOGETHER = 16
"""Files that are read at once, where some may fail."""

Reader = Callable[[Iterable[Path]], Iterator[Heard]]
"""From files to clips or windows."""

UNSURE = "unsure"
"""Reported in place of an emotion whose probability is below the threshold, or without speech."""


def predict(
    file: ModelFile,
    paths: Sequence[str | Path],
    *,
    window: float | None = None,
    hop: float | None = None,
    abstain: float = 0.0,
    by_these: bool = False,
    speaker: str | None = None,
    voice: Sequence[str | Path] = (),
    neutral: Sequence[str | Path] = (),
    tell: Callable[[str], None] = lambda sentence: None,
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
        Probability, in [0, 1], below which the emotion is "unsure"; so it is where there can be no
        speech, which is said as a warning of ``logging``.
    by_these : bool
        Normalise by all audio of ``paths`` together, instead of by the clips that the model was
        adapted to. A model that is not adapted does so in any case.
    speaker : str, optional
        Who speaks: "one" for one speaker in all files, "file" for another one in each, or a regular
        expression whose group in a file's name is the speaker (a name that it does not fit is of
        somebody unknown). A model that knows voices then looks at all clips of a speaker.
    voice, neutral : sequence of str or Path
        Files and folders: given clips of the voice, or neutral ones, of which one may be given. A
        voice is then known by them in place of the clips to predict. They are of one speaker, who
        speaks in all files; or with a pattern of several, in sub-folders named by speaker, or
        in files that the pattern fits.
    tell : callable
        Called with a warning, if the clips give reason for one.
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
    given = _given(voice, neutral, speaker)
    if given is not None:
        speaker = speaker or ONE
    if speaker is not None:
        _check_voices(file, tell)
    seen = track(files, "predicting", console=Console(stderr=True), transient=True)
    every: Iterable[Path] = seen if progress else files
    heard = read(every) if failed is None else _readable(every, read, failed)
    tables = _tables(
        file, heard, abstain, by_these=by_these, speaker=speaker, given=given, tell=tell
    )
    found = list(tables)
    if not found:
        raise ValueError(
            f"at least one file must be readable, but none of {len(files)} is: {_listed(failed)}"
        )
    return pd.concat(found, ignore_index=True)


def _given(
    voice: Sequence[str | Path], neutral: Sequence[str | Path], speaker: str | None
) -> Given | None:
    """Return the given clips of voices, if there are any."""
    if voice and neutral:
        raise ValueError(
            "clips of a voice must be given in one way, not both as neutral and as any: choose one "
            "of --voice and --neutral"
        )
    found = {Path(path): audio_files([path]) for path in voice or neutral}
    return given_clips(found, speaker, neutral=bool(neutral)) if found else None


def _check_voices(file: ModelFile, tell: Callable[[str], None]) -> None:
    """Refuse a model that cannot know voices, and tell if this one makes no use of them."""
    if not file.knows_voices:
        raise ValueError(
            "the model must know voices to be told who speaks, but this one normalises by "
            f"{file.header.setup.normalise!r}: leave it out, or adapt a model such as starter"
        )
    if file.fitted is None or file.fitted.trust:
        return
    if file.fitted.by_voice is None:
        tell(
            "the model was not told who speaks when it was adapted, so it makes no use of voices: "
            "adapt it again with speakers"
        )
    else:
        tell(
            "the clips that the model was adapted to do not show that knowing the voice is safe, "
            "for most of their speakers show one emotion, so it makes no use of voices"
        )


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


def _tables(
    file: ModelFile,
    heard: Iterable[Heard],
    abstain: float,
    *,
    by_these: bool,
    speaker: str | None,
    given: Given | None,
    tell: Callable[[str], None],
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
            own = file.support_constants(features, rows)
            fitted = replace(fitted, own=replace(own, neutral=fitted.own.neutral))
        if speaker is not None:
            speakers = speakers_of([h.file for h in everything], speaker)
            _tell_unknown(everything, speakers, tell)
            voices = known_voices(file, fitted, given, speakers, tell) if given else None
            found = fitted.scores(features, rows, speakers, voices)
            yield _table(file, everything, found, abstain)
            return
    elif fitted is None:
        fitted = Fitted(file.predictor, file.source)
    for some in _portions(heard):
        found = fitted.scores(gather(some), np.arange(len(some)))
        yield _table(file, some, found, abstain)


def _tell_unknown(
    heard: Sequence[Heard], speakers: np.ndarray, tell: Callable[[str], None]
) -> None:
    """Tell which files the pattern of speakers does not fit."""
    unknown = list(dict.fromkeys(h.file.name for h, who in zip(heard, speakers) if not who))
    if unknown:
        tell(
            f"who speaks is not known of {len(unknown)} files, whose names --speaker does not fit, "
            f"such as {unknown[0]}: they are normalised by the language"
        )


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
    unsure = (confidence < abstain) | np.array([bool(stretch.doubt) for stretch in heard])
    if warning := without_speech(heard):
        log.warning("%s; their emotion is %s", warning, UNSURE)
    names = np.array(file.header.classes, object)
    columns = {
        "file": [readable_name(stretch.file) for stretch in heard],
        "start": [round(stretch.start, 3) for stretch in heard],
        "end": [round(stretch.end, 3) for stretch in heard],
        "emotion": np.where(unsure, UNSURE, names[best]),
        "confidence": confidence,
    }
    present = file.predictor.classes.numpy()
    columns |= {name: shares[:, i] for i, name in enumerate(names) if present[i]}
    return pd.DataFrame(columns)
