"""The page without the web: a model, the user's clips, adapting and predicting."""

import io
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from matplotlib.figure import Figure
from pydantic import BaseModel

from metaser import audio
from metaser.adaptation import card as model_card
from metaser.adaptation import predict as prediction
from metaser.adaptation.adapt import adapt
from metaser.adaptation.clips import Clips
from metaser.adaptation.model_file import Adaptation, ModelFile

FEW = 5
"""Clips per class below which the page asks for more."""

WINDOW, HOP = 4.0, 2.0
"""Length of the windows into which a long recording is divided, and their distance, in seconds."""

LONG = 10.0
"""Seconds above which a recording is divided into windows."""


MOST_VOICE = 20
"""Most new clips that are kept to know a voice by."""


@dataclass
class Desk:
    """State of one run of the page.

    Attributes
    ----------
    model : ModelFile
        The model with which the page was started, adapted or not.
    name : str
        Name of the model, for the user.
    folder : Path
        Folder of the clips.
    clips : dict of str to Clip
        Clips for labelling, by their keys.
    adapted : ModelFile or None
        The adapted model, which predicts; None until there is one.
    result : dict or None
        What the page shows about the model that was adapted here; None until there is one.
    learnt : list of Label
        The labels to which the model was adapted here.
    language : str
        The user's name for the language or group of these clips.
    who : {"named", "one", "unknown"}
        What the user has said of who speaks in them, see `Wish`.
    voice : list of Path
        New clips of the one person who speaks in all of them.
    lock : threading.Lock
        Held while the model works, so that it does one thing at a time.
    """

    model: ModelFile
    name: str
    folder: Path
    clips: dict[str, "Clip"] = field(default_factory=dict)
    adapted: ModelFile | None = None
    result: dict[str, Any] | None = None
    learnt: list["Label"] = field(default_factory=list)
    language: str = ""
    who: str = "named"
    voice: list[Path] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Clip:
    """A clip that the user has added.

    Attributes
    ----------
    name : str
        Name of the user's file.
    path : Path
        File in which the page keeps the clip.
    seconds : float
        Length of the clip.
    note : str
        A warning for the user, or "".
    emotion, speaker : str
        The labels that the user has given so far, or "".
    """

    name: str
    path: Path
    seconds: float = 0.0
    note: str = ""
    emotion: str = ""
    speaker: str = ""


class Said(BaseModel):
    """The user's labels for a clip: emotion and speaker."""

    emotion: str
    speaker: str = ""


class Label(Said):
    """The user's labels for the clip with this key."""

    key: str


class Wish(BaseModel):
    """What the page sends when the user presses Adapt: the language's name and the labels.

    ``who`` says who speaks: "named" by the labels, if at all; "one" person in all clips; "unknown".
    """

    name: str = ""
    who: Literal["named", "one", "unknown"] = "named"
    clips: list[Label]


@contextmanager
def own_names(clips: Iterable[Clip]) -> Iterator[None]:
    """Replace the paths of clips in error messages by the names of the user's files.

    Raises
    ------
    ValueError
        In place of any ValueError or OSError that is raised inside.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        text = str(error)
        for clip in clips:
            text = text.replace(str(clip.path), clip.name)
        raise ValueError(text) from error


def adapt_desk(desk: Desk, wish: Wish) -> dict[str, Any]:
    """Adapt the model to the labelled clips, and say how well it can be expected to do.

    Parameters
    ----------
    desk : Desk
        Its attributes `adapted`, `result`, `learnt`, `language` and `who` are set.
    wish : Wish
        What the page has sent.

    Returns
    -------
    dict
        What the page shows: ``name``; ``uar``, ``low``, ``high`` and ``chance`` in whole percent;
        ``above_chance``, whether the interval lies above chance; ``lines``, how the numbers were
        found; ``notes``, advice.

    Raises
    ------
    ValueError
        If a clip has no emotion, only some clips have a speaker, there are fewer than two emotions,
        or the model cannot learn from the clips. The message names clips by the user's files.
    """
    if not wish.clips:
        raise ValueError("there are no clips yet: add some of at least two emotions")
    gone = [label.key for label in wish.clips if label.key not in desk.clips]
    if gone:
        raise ValueError(f"{len(gone)} of the clips have been removed: reload the page")
    clips = [desk.clips[label.key] for label in wish.clips]
    missing = [clip.name for clip, label in zip(clips, wish.clips) if not label.emotion]
    if missing:
        raise ValueError(f"no emotion is chosen for {_listed(missing)}: choose one, or remove it")
    counts = Counter(label.emotion for label in wish.clips)
    if len(counts) < 2:
        raise ValueError(
            f"all {counts.total()} clips are {next(iter(counts))}: add clips of at least one other "
            "emotion, because the model learns how emotions differ"
        )
    speakers = _speakers(wish, clips)
    notes = []
    if few := [
        f"{emotion} ({counts[emotion]})" for emotion in sorted(counts) if counts[emotion] < FEW
    ]:
        notes.append(
            f"There are few clips of {', '.join(few)}: {FEW} or more of each emotion make the "
            "model better and its interval more reliable."
        )
    if speakers is None and wish.who == "named":
        notes.append(
            "Nobody is named: if several people speak, say who speaks in each clip. The model can "
            "then be tested on people whom it has not heard."
        )
    given = Clips(
        tuple(clip.path for clip in clips),
        tuple(label.emotion for label in wish.clips),
        speakers,
    )
    name = wish.name.strip() or "clips labelled on the page"
    with desk.lock, own_names(clips):
        desk.adapted = adapt(desk.model, given, name=name, tell=notes.append)
    desk.result = expectation(desk.adapted) | {"notes": notes}
    desk.learnt, desk.language, desk.who = wish.clips, wish.name, wish.who
    return desk.result


def _speakers(wish: Wish, clips: list[Clip]) -> tuple[str, ...] | None:
    """Return who speaks in each clip, None if that is not known."""
    if wish.who != "named":
        return ("one",) * len(clips) if wish.who == "one" else None
    speakers = tuple(label.speaker.strip() for label in wish.clips)
    nameless = [clip.name for clip, speaker in zip(clips, speakers) if not speaker]
    if any(speakers) and nameless:
        raise ValueError(
            f"some clips say who speaks, but not {_listed(nameless)}: name all speakers, or none"
        )
    return speakers if any(speakers) else None


def _listed(names: list[str], most: int = 3) -> str:
    """Join the first names, and say how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def adaptation_of(file: ModelFile) -> Adaptation:
    """Return to what a model was adapted.

    Raises
    ------
    ValueError
        If it is not adapted.
    """
    if file.header.adaptation is None:
        raise ValueError(
            "the model must be adapted, but is not adapted yet: label some clips and press Adapt"
        )
    return file.header.adaptation


def expectation(file: ModelFile) -> dict[str, Any]:
    """Return what to expect of an adapted model; see `adapt_desk` for the keys."""
    adaptation = adaptation_of(file)
    return {
        "name": adaptation.name,
        "uar": round(100 * adaptation.uar),
        "low": round(100 * adaptation.low),
        "high": round(100 * adaptation.high),
        "chance": round(100 / len(adaptation.classes)),
        "above_chance": adaptation.low > 1 / len(adaptation.classes),
        "lines": model_card.expected_lines(file.header),
        "notes": [],
    }


def adapted_model(desk: Desk) -> ModelFile:
    """Return the adapted model.

    Raises
    ------
    ValueError
        If there is none yet.
    """
    if desk.adapted is None:
        raise ValueError("there is no adapted model yet: label some clips and press Adapt first")
    return desk.adapted


def hear_recording(desk: Desk, clip: Clip, who: str = "unknown") -> dict[str, Any]:
    """Recognise the emotion of a clip, and how it changes over time if the clip is long.

    Parameters
    ----------
    desk : Desk
        If one person speaks in all new clips, a short one is added to its attribute `voice`, and
        the voice is known by the clips there; else these are removed.
    clip : Clip
        A recording.
    who : {"unknown", "one", "file"}
        Who speaks in the new clips: one person in all, or another in each file.

    Returns
    -------
    dict
        ``name``; ``seconds``; ``known``, whether the model was adapted to this clip; ``emotion``,
        the most probable class; ``chances``, the probability of each class in [0, 1], the mean over
        the windows; ``rows``, one dictionary per window; ``plot``, an SVG of the windows, "" if
        there is only one; ``notes``, what is to be known about the voice.

    Raises
    ------
    ValueError
        If there is no adapted model yet, or the clip cannot be used.
    """
    if who not in ("unknown", "one", "file"):
        raise ValueError(f"who speaks must be unknown, one or file, not {who!r}: reload the page")
    model = adapted_model(desk)
    samples, rate = audio.decode(clip.path)
    seconds = len(samples) / rate
    known = audio.digest(samples, rate) in adaptation_of(model).contents
    window, hop = (WINDOW, HOP) if seconds > LONG else (None, None)
    notes: list[str] = []
    by_clips = who == "one" and window is None  # the windows of a long one tell enough
    with desk.lock, own_names([clip]):
        table = prediction.predict(
            model,
            [clip.path],
            window=window,
            hop=hop,
            speaker=None if who == "unknown" else who,
            voice=[*desk.voice, clip.path] if by_clips else (),
            tell=notes.append,
        )
        _keep_voice(desk, clip if by_clips else None, who)
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
        "notes": notes,
    }


def _keep_voice(desk: Desk, clip: Clip | None, who: str) -> None:
    """Keep a clip of the person who speaks in all; remove those kept if there is no such person."""
    if clip is not None:
        kept = clip.path.with_stem(f"{clip.path.stem}-voice")
        desk.voice.append(Path(shutil.copy(clip.path, kept)))
    while len(desk.voice) > (MOST_VOICE if who == "one" else 0):
        desk.voice.pop(0).unlink()


def plot(table: pd.DataFrame, classes: list[str]) -> str:
    """Draw the probability of each class over time, one panel per class.

    Parameters
    ----------
    table : DataFrame
        Predictions for the windows of one recording, from `metaser.adaptation.predict.predict`.
    classes : list of str
        Columns to draw.

    Returns
    -------
    str
        The figure as SVG.
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
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    return buffer.getvalue()
