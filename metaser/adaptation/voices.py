"""Who speaks in clips, and how voices sound of which clips are given."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metaser.adaptation.calibration import probabilities
from metaser.adaptation.fitted import Constants, Fitted, constants_of_voice
from metaser.adaptation.model_file import NEUTRAL, ModelFile
from metaser.features.hear import gather, hear
from metaser.features.table import Features

HARDLY = 0.1
"""Probability of neutral up to which a clip that is given as neutral is clearly not.

Chosen on RAVDESS and EmoDB, in trials that are not kept: most of three clips were so in 0 to 2 % of
neutral triples of a voice, and in 69 to 100 % of those of another emotion. On EMOVO it was 10 to
16 % (of angry triples 78 to 86 %), on URDU 22 to 36 % (90 to 95 %).
"""

ONE = "one"
"""Stands for one speaker in all files, and is the name of that voice."""

FILE = "file"
"""Stands for another speaker in each file."""


def speakers_of(files: Sequence[Path], speaker: str) -> np.ndarray:
    """Return who speaks in each file, "" where that is not known.

    Parameters
    ----------
    files : sequence of Path
        The files.
    speaker : str
        ``ONE``, ``FILE``, or a regular expression whose group in a file's name, without extension,
        is the speaker; one whom it does not fit is not known.

    Raises
    ------
    ValueError
        If ``speaker`` is a pattern without a group, or fits no file.
    """
    if speaker in (ONE, FILE):
        return np.array([ONE if speaker == ONE else str(path) for path in files])
    pattern = compiled(speaker)
    found = [pattern.search(path.stem) for path in files]
    if not any(found):
        raise ValueError(
            f"--speaker {speaker!r} must fit the name of a file, but fits none, such as "
            f"{files[0].stem!r}: change it"
        )
    return np.array(["" if match is None else match[1] or "" for match in found])


def compiled(speaker: str) -> re.Pattern[str]:
    """Return the pattern of speakers, which must have a group.

    Raises
    ------
    ValueError
        If it is no regular expression, or has no group.
    """
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
    return pattern


@dataclass(frozen=True)
class Given:
    """Clips of voices that are known beside those to predict.

    Attributes
    ----------
    files : tuple of Path
        The clips.
    speakers : ndarray of str
        (clips,) who speaks in each.
    neutral : bool
        Whether they are neutral ones.
    """

    files: tuple[Path, ...]
    speakers: np.ndarray
    neutral: bool


def given_clips(
    found: Mapping[Path, Sequence[Path]], speaker: str | None, *, neutral: bool
) -> Given:
    """Return the given clips of one voice or of several, with who speaks.

    Parameters
    ----------
    found : mapping of Path to sequence of Path
        The audio files that are, or lie in, each of the given files and folders.
    speaker : str, optional
        See ``speakers_of``; ``ONE`` if not given. With a pattern, the speaker of a file inside a
        sub-folder of a folder is the sub-folder's name; of any other file the pattern tells.
    neutral : bool
        Whether the clips are neutral ones.

    Raises
    ------
    ValueError
        If the clips are of several voices where one is meant, or it cannot be told who speaks in a
        clip.
    """
    option = "--neutral" if neutral else "--voice"
    if speaker == FILE:
        raise ValueError(
            f"{option} must be of voices that are known by name, but another person is said to "
            "speak in each file: say --speaker PATTERN or --one-speaker"
        )
    files: list[Path] = []
    folders: list[str] = []
    for place, inside in found.items():
        files += inside
        folders += [(*path.relative_to(place).parts[:-1], "")[0] for path in inside]
    if speaker in (None, ONE):
        if len(set(folders)) > 1:
            raise ValueError(
                f"{option} must hold clips of one voice, but holds the folders "
                f"{', '.join(sorted(set(folders) - {''}))}: if each is a voice, say by --speaker "
                "PATTERN whose name stands in which file"
            )
        return Given(tuple(files), np.array([ONE] * len(files)), neutral)
    pattern = compiled(str(speaker))
    names = []
    for path, folder in zip(files, folders):
        match = pattern.search(path.stem)
        names.append(folder or (match[1] if match else "") or "")
        if not names[-1]:
            raise ValueError(
                f"it must be known who speaks in each clip of {option}, but --speaker "
                f"{speaker!r} does not fit {path.name}: put it into a folder named by its speaker"
            )
    return Given(tuple(files), np.array(names), neutral)


def known_voices(
    file: ModelFile,
    fitted: Fitted,
    given: Given,
    speakers: np.ndarray,
    tell: Callable[[str], None],
) -> Mapping[str, Constants]:
    """Return what each voice is normalised by, of which there are given clips.

    Parameters
    ----------
    file : ModelFile
        A model that knows voices.
    fitted : Fitted
        What scores the clips.
    given : Given
        The given clips.
    speakers : ndarray
        (clips,) who speaks in the clips to predict, "" where that is not known.
    tell : callable
        Called with a warning: about clips given as neutral that are clearly not, about voices of
        which no clip is given, and about given voices of whom there is nothing to predict.

    Raises
    ------
    ValueError
        If the model cannot tell where neutral clips lie, or none of the voices speaks.
    """
    if given.neutral and fitted.own.neutral is None:
        raise ValueError(
            "the model must know where neutral clips lie for --neutral, but it has learnt from "
            "none: adapt it to some, or give the same clips by --voice"
        )
    wanted, voices = set(speakers.tolist()) - {""}, sorted(set(given.speakers.tolist()))
    if not wanted & set(voices):
        raise ValueError(
            f"the given clips must be of voices that speak in the files, but they are of "
            f"{', '.join(voices)}, and in the files speak {', '.join(sorted(wanted)) or 'none'}: "
            "name them alike"
        )
    if unused := sorted(set(voices) - wanted):
        tell(f"clips are given of {', '.join(unused)}, who do not speak in the files")
    if absent := sorted(wanted - set(voices)):
        tell(
            f"no clip is given of {', '.join(absent)}: their voices count as not known, and their "
            "clips are normalised by the language"
        )
    heard = gather(list(hear(given.files, file.frontend())))
    found = {}
    for who in voices:
        rows = np.flatnonzero(given.speakers == who)
        if given.neutral:
            _judge_neutral(file, fitted, heard, rows, who, tell)
        found[who] = constants_of_voice(heard, rows, fitted.own, neutral=given.neutral)
    return found


def _judge_neutral(
    file: ModelFile,
    fitted: Fitted,
    heard: Features,
    rows: np.ndarray,
    who: str,
    tell: Callable[[str], None],
) -> None:
    """Tell if the model hears most clips of a voice that are given as neutral as something else."""
    classes = file.header.classes
    if not fitted.adapted.classes[classes.index(NEUTRAL)]:
        return  # the model cannot say neutral
    shares = probabilities(fitted.scores(heard, rows), file.temperature)
    unlikely = shares[:, classes.index(NEUTRAL)] <= HARDLY
    other = [classes[index] for index in shares[unlikely].argmax(axis=1)]
    if 2 * len(other) <= len(rows):
        return
    counts = ", ".join(f"{name} {other.count(name)}" for name in sorted(set(other)))
    whom = "" if who == ONE else f" of {who}"
    tell(
        f"{len(other)} of the {len(rows)} clips{whom} that are given as neutral sound clearly "
        f"otherwise to the model ({counts}): if they are not neutral, give them by --voice"
    )
