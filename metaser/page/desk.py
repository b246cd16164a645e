"""What stands behind the page: a model, the clips given, adapting and predicting; no web."""

import io
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from pydantic import BaseModel

from metaser import audio
from metaser.adaptation import card as model_card
from metaser.adaptation import predict as prediction
from metaser.adaptation.adapt import adapt
from metaser.adaptation.clips import Clips
from metaser.adaptation.model_file import ModelFile

FEW = 5
"""Clips a class below which the page asks for more."""

WINDOW, HOP = 4.0, 2.0
"""Seconds of the windows in which a long recording is gone through, and their distance."""

LONG = 10.0
"""Seconds above which a recording is gone through in windows."""


@dataclass
class Desk:
    """What one run of the page holds.

    Attributes
    ----------
    model : ModelFile
        To be adapted, or adapted already.
    name : str
        What to call it.
    folder : Path
        Where clips lie.
    clips : dict of str to Clip
        Clips that were given to be labelled, by a key.
    adapted : ModelFile or None
        What predicts.
    result : dict or None
        What was said of the model when it was adapted here.
    learnt : list of Label
        The labels that it was adapted to here.
    language : str
        What they were called.
    lock : threading.Lock
        Held while the model works: one thing at a time.
    """

    model: ModelFile
    name: str
    folder: Path
    clips: dict[str, "Clip"] = field(default_factory=dict)
    adapted: ModelFile | None = None
    result: dict | None = None
    learnt: list["Label"] = field(default_factory=list)
    language: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Clip:
    """A clip that was given.

    Attributes
    ----------
    name : str
        On the user's side.
    path : Path
        Where it lies.
    seconds : float
        Its length.
    note : str
        What the user should know of it.
    emotion, speaker : str
        What the user has said of it so far.
    """

    name: str
    path: Path
    seconds: float = 0.0
    note: str = ""
    emotion: str = ""
    speaker: str = ""


class Said(BaseModel):
    """What the user says of a clip."""

    emotion: str
    speaker: str = ""


class Label(Said):
    """What the user says of a certain clip."""

    key: str


class Wish(BaseModel):
    """What the user asks for by pressing Adapt."""

    name: str = ""
    clips: list[Label]


@contextmanager
def own_names(clips: Iterable[Clip]) -> Iterator[None]:
    """Let messages call files as the user does, not by where they lie."""
    try:
        yield
    except (ValueError, OSError) as error:
        text = str(error)
        for clip in clips:
            text = text.replace(str(clip.path), clip.name)
        raise ValueError(text) from error


def adapt_desk(desk: Desk, wish: Wish) -> dict:
    """Adapt the model to the labelled clips, and say what to expect of it.

    Raises
    ------
    ValueError
        If a clip has no label, only some have a speaker, there are fewer than two classes, or the
        clips cannot be learnt from; clips are called by the names that the user gave.
    """
    if not wish.clips:
        raise ValueError("there are no clips yet: add some of at least two emotions")
    gone = [label.key for label in wish.clips if label.key not in desk.clips]
    if gone:
        raise ValueError(f"{len(gone)} of the clips are not held any more: open the page anew")
    clips = [desk.clips[label.key] for label in wish.clips]
    missing = [clip.name for clip, label in zip(clips, wish.clips) if not label.emotion]
    if missing:
        raise ValueError(f"no emotion is chosen for {_listed(missing)}: choose one, or remove it")
    counts = Counter(label.emotion for label in wish.clips)
    if len(counts) < 2:
        raise ValueError(
            f"all {counts.total()} clips are {next(iter(counts))}: add clips of at least one other "
            "emotion, for the model learns how they differ"
        )
    speakers = [label.speaker.strip() for label in wish.clips]
    nameless = [clip.name for clip, speaker in zip(clips, speakers) if not speaker]
    if any(speakers) and nameless:
        raise ValueError(
            f"some clips say who speaks, but not {_listed(nameless)}: name all speakers, or none"
        )
    notes = []
    if few := [
        f"{emotion} ({counts[emotion]})" for emotion in sorted(counts) if counts[emotion] < FEW
    ]:
        notes.append(
            f"There are few clips of {', '.join(few)}: {FEW} or more of each emotion make the "
            "model better and its interval surer."
        )
    if not any(speakers):
        notes.append(
            "Nobody is named: if several people speak, say who speaks in each clip, and the "
            "interval can be found by leaving out people."
        )
    given = Clips(
        tuple(clip.path for clip in clips),
        tuple(label.emotion for label in wish.clips),
        tuple(speakers) if any(speakers) else None,
    )
    name = wish.name.strip() or "clips labelled on the page"
    with desk.lock, own_names(clips):
        desk.adapted = adapt(desk.model, given, name=name, tell=notes.append)
    desk.result = _expectation(desk.adapted) | {"notes": notes}
    desk.learnt, desk.language = wish.clips, wish.name
    return desk.result


def _listed(names: list[str], most: int = 3) -> str:
    """The first few of some names."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _expectation(file: ModelFile) -> dict:
    """What to expect of an adapted model, in percent and in sentences."""
    own = file.header.adaptation
    return {
        "name": own.name,
        "uar": round(100 * own.uar),
        "low": round(100 * own.low),
        "high": round(100 * own.high),
        "chance": round(100 / len(own.classes)),
        "above_chance": own.low > 1 / len(own.classes),
        "lines": model_card.expected_lines(file.header),
        "notes": [],
    }


def hear_recording(desk: Desk, clip: Clip) -> dict:
    """Recognise the emotion of a clip, and along time where it is long.

    Returns
    -------
    dict
        ``known``, whether the model was adapted to this very clip; ``chances``, the probability of
        each class (the mean over windows); ``rows`` of the windows; ``plot``, an SVG of them, empty
        if there is one only.
    """
    samples, rate = audio.decode(clip.path)
    seconds = len(samples) / rate
    known = audio.digest(samples, rate) in desk.adapted.header.adaptation.contents
    windows = (WINDOW, HOP) if seconds > LONG else (None, None)
    with desk.lock, own_names([clip]):
        table = prediction.predict(desk.adapted, [clip.path], *windows)
    classes = list(table.columns[table.columns.get_loc("confidence") + 1 :])
    chances = table[classes].mean()
    rows = table[["start", "end", "emotion", *classes]].round(3)
    return {
        "name": clip.name,
        "seconds": seconds,
        "known": known,
        "emotion": chances.idxmax(),
        "chances": {name: round(float(chances[name]), 3) for name in classes},
        "rows": rows.to_dict("records"),
        "plot": plot(table, classes) if len(table) > 1 else "",
    }


def plot(table: pd.DataFrame, classes: list[str]) -> str:
    """Draw the probabilities of windows along time, as SVG, a panel for each class.

    Parameters
    ----------
    table : DataFrame
        As ``metaser.prediction.predict`` gives it.
    classes : list of str
        Its columns that are drawn.
    """
    figure = Figure(figsize=(4.5, 0.4 + 0.8 * len(classes)), layout="constrained")
    middle = (table["start"] + table["end"]) / 2
    panels = figure.subplots(len(classes), sharex=True, sharey=True, squeeze=False)[:, 0]
    for name, axes in zip(classes, panels):
        axes.fill_between(middle, 100 * table[name], alpha=0.4)
        axes.plot(middle, 100 * table[name], linewidth=1)
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
        axes.set(ylim=(0, 100), yticks=(0, 50, 100), xlim=(0, table["end"].max()))
        axes.grid(alpha=0.3)
    figure.suptitle("probability in %", fontsize="medium")
    panels[-1].set_xlabel("seconds")
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    return drawn.getvalue()
