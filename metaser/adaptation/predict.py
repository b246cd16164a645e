"""Hear clips or long recordings with a trained or adapted model."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from metaser import audio
from metaser.adaptation.calibration import probabilities
from metaser.adaptation.model_file import Constants, ModelFile, scores
from metaser.features.hear import Heard, gather, hear, hear_windows

PORTION = 256
"""Clips or windows that are scored at once."""

UNSURE = "unsure"
"""What stands for an emotion whose probability is below the threshold."""


def predict(
    file: ModelFile,
    paths: Sequence[str | Path],
    window: float | None = None,
    hop: float | None = None,
    abstain: float = 0.0,
    by_these: bool = False,
) -> pd.DataFrame:
    """Recognise the emotion of clips, or of each window of long recordings.

    Parameters
    ----------
    file : ModelFile
        Adapted to a language, or as `metaser train` made it.
    paths : sequence of str or Path
        Audio files, and folders of them.
    window, hop : float, optional
        Seconds; ``hop`` is half of ``window`` if not given. Without a window a file is one clip.
    abstain : float
        Probability, in [0, 1], below which the emotion is "unsure".
    by_these : bool
        Normalise by all audio of ``paths`` together, instead of by the clips that the model was
        adapted to. A model that is not adapted does so in any case.

    Returns
    -------
    DataFrame
        One row a clip or window: ``file``, ``start`` and ``end`` in seconds, ``emotion``,
        ``confidence``, and the probability of each class.

    Raises
    ------
    ValueError
        If there is no audio file, or an argument is out of range.
    AudioError
        If a file cannot be read, or is too long to be one clip.
    """
    if not 0 <= abstain <= 1:
        raise ValueError(f"abstain is a probability, expected 0 to 1, came {abstain:g}")
    files = audio_files(paths)
    frontend = file.frontend()
    if window is None:
        if hop is not None:
            raise ValueError(f"hop = {hop:g} needs a window: say --window, in seconds")
        heard: Iterable[Heard] = hear(files, frontend)
    else:
        heard = hear_windows(files, frontend, window, window / 2 if hop is None else hop)
    own = file.own
    if file.normalises and (own is None or by_these):
        heard = everything = list(heard)  # all features, for their means, but not the audio
        own = file.support_constants(gather(everything), np.arange(len(everything)))
    elif own is None:
        own = file.source
    tables = [_table(file, own, some, abstain) for some in _portions(heard)]
    return pd.concat(tables, ignore_index=True)


def audio_files(paths: Sequence[str | Path]) -> list[Path]:
    """The audio files among paths and below those of them that are folders.

    Raises
    ------
    FileNotFoundError
        If one of the paths does not exist.
    ValueError
        If a folder, or all of them, hold no audio.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = audio.find(path)
            if not found:
                raise ValueError(
                    f"{path} holds no audio file (known are {', '.join(audio.EXTENSIONS)})"
                )
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(f"expected an audio file or a folder, found none at {path}")
    if not files:
        raise ValueError("expected audio files or folders, came none")
    return files


def _portions(heard: Iterable[Heard]) -> Iterator[list[Heard]]:
    held: list[Heard] = []
    for one in heard:
        held.append(one)
        if len(held) == PORTION:
            yield held
            held = []
    if held:
        yield held


def _table(file: ModelFile, own: Constants, heard: Sequence[Heard], abstain: float) -> pd.DataFrame:
    found = scores(file.predictor, own, gather(heard), np.arange(len(heard)))
    chances = probabilities(found, file.temperature)
    best = chances.argmax(axis=1)
    confidence = chances.max(axis=1)
    names = np.array(file.header.classes, object)
    columns = {
        "file": [str(one.file) for one in heard],
        "start": [round(one.start, 3) for one in heard],
        "end": [round(one.end, 3) for one in heard],
        "emotion": np.where(confidence < abstain, UNSURE, names[best]),
        "confidence": confidence,
    }
    own_classes = file.predictor.classes.numpy()
    columns |= {name: chances[:, i] for i, name in enumerate(names) if own_classes[i]}
    return pd.DataFrame(columns)
