"""Tasks: one corpus of one language, described by a folder that holds `task.toml` and no code.

A task folder is named `<language>_<corpus>`. Its `task.toml` says where the audio lies below the
data root, how a clip's name (or a table) gives speaker and emotion, which classes the codes mean,
and which clips are the same recording. `read_task` turns it into a `Task` with one row a clip.
"""

import functools
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from metaser import naming
from metaser.files import bundled
from metaser.naming import some
from metaser.tasks import labels
from metaser.tasks.schema import TaskFile, read_facts
from metaser.tasks.table import (
    columns_beside,
    describe_files,
    find_files,
    make_table,
    problems_of,
    table_place,
    with_ratings,
)

log = logging.getLogger(__name__)

BUNDLED = bundled("tasks")
"""The task folders that come with MetaSER."""


@dataclass(frozen=True, eq=False)
class Task:
    """One corpus of one language.

    Attributes
    ----------
    name : str
        Name of the task folder, `<language>_<corpus>`.
    language, corpus, licence, homepage, reference : str
        Facts from `task.toml`; `language` is an ISO 639 code.
    version : int
        Raised whenever the folder changes results.
    speakers, utterances : int
        Declared size of the published corpus; compare `speakers_found` and `clips_found`.
    synthetic : bool
        Whether the speech was made by a machine.
    folder : pathlib.Path
        The task folder.
    classes : tuple of str
        Classes that the corpus has when complete, canonical order.
    ratings : dict of str to list of float
        Names of the ratings and the two ends of each's own scale.
    audio : pathlib.Path or None
        Folder of the audio; None where it is not present.
    table : pandas.DataFrame or None
        One row a usable clip, sorted by file: `file` (posix path below `audio`), `speaker`,
        `emotion` (class), `unit` and `clique` (int), then the other named groups as strings and
        the ratings in [-1, 1], NaN where a clip has none. Clips of one `unit` share a speaker or
        declared duplicates, clips of one `clique` declared duplicate files only. Where the task
        folder says so, `transcript` holds the words of each clip and `video` a posix path below
        `audio`; empty where a clip has none. None without audio.
    vectors : dict of str to pathlib.Path
        Files of precomputed vectors that are present, by modality.
    clips_found, speakers_found : int
        Clips that the pattern or table names, and their speakers; dropped codes included.
    left_out : dict of str to int
        Dropped codes with their counts.
    dropped : tuple of str
        The clips of these codes, as in `table`.
    unmatched : tuple of str
        Audio files below `audio` that are no clip by pattern or table.
    stray : tuple of str
        Rows of the table of labels that name no audio file, each by its line.
    people : tuple of str
        Speakers who are spelt in several ways, such as "F1 = f1"; they count as one.
    ignored : int
        Audio files below `audio` that the ignore list passes over.
    duplicates : int
        Declared groups of duplicate files or speakers of which at least two are present.
    problems : tuple of str
        What reading would have refused; empty unless read with ``strict=False``.
    """

    name: str
    language: str
    corpus: str
    version: int
    speakers: int
    utterances: int
    licence: str
    homepage: str
    reference: str
    synthetic: bool
    folder: Path
    classes: tuple[str, ...]
    audio: Path | None = None
    # Typed for tasks that are present, as nearly all code has them; see require_audio.
    table: pd.DataFrame = field(default=None, repr=False)  # type: ignore[assignment]
    vectors: dict[str, Path] = field(default_factory=dict)
    clips_found: int = 0
    speakers_found: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    dropped: tuple[str, ...] = field(default=(), repr=False)
    unmatched: tuple[str, ...] = field(default=(), repr=False)
    stray: tuple[str, ...] = field(default=(), repr=False)
    people: tuple[str, ...] = field(default=(), repr=False)
    ignored: int = 0
    duplicates: int = 0
    problems: tuple[str, ...] = ()
    ratings: dict[str, list[float]] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Usable clips of every class that has any, in canonical order."""
        found = Counter() if self.table is None else Counter(self.table["emotion"])
        return {name: found[name] for name in self.classes if found[name]}


def _task(folder: Path, facts: TaskFile, **found: Any) -> Task:
    own = {"audio", "files", "table", "emotion", "ratings_table", "duplicates", "examples"}
    shared = facts.model_dump(exclude=own | {"transcripts", "vectors", "video"})
    used = set(facts.emotion.mapping.values())
    classes = tuple(name for name in (*labels.CLASSES, *facts.emotion.new) if name in used)
    return Task(name=folder.name, folder=folder, classes=classes, **shared, **found)


def data_root(data: str | Path | None = None) -> Path | None:
    """Return the folder below which corpora lie: `data`, else METASER_DATA, else None.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    """
    chosen = data if data is not None else os.environ.get("METASER_DATA") or None
    if chosen is None:
        return None
    root = Path(chosen).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"the data root {root} (--data or METASER_DATA) is not a folder")
    return root


def list_tasks(folders: str | Path | Iterable[str | Path] = ()) -> dict[str, Path]:
    """List the task folders that come with MetaSER, those of installed packages, and further ones.

    A task folder of one's own takes the place of one of the same name that comes with MetaSER or a
    package; the log says so once.

    Parameters
    ----------
    folders
        Folders that hold task folders, or task folders themselves.

    Returns
    -------
    dict of str to pathlib.Path
        Task name to task folder, sorted by name.

    Raises
    ------
    FileNotFoundError
        If one of `folders` does not exist or holds no task folder.
    ValueError
        If two of `folders`, or two packages, have a task folder of the same name.
    """
    several = [folders] if isinstance(folders, str | Path) else folders
    installed = _by_task_name([BUNDLED, *_from_packages()])
    given = _by_task_name(map(Path, several))
    for name in sorted(given.keys() & installed.keys()):
        if given[name] != installed[name]:
            _say_replaced(name, given[name])
    return dict(sorted((installed | given).items()))


def _by_task_name(bases: Iterable[Path]) -> dict[str, Path]:
    """Return the task folders below some folders by name."""
    by_name: dict[str, Path] = {}
    for base in bases:
        if not base.is_dir() and base != BUNDLED:
            raise FileNotFoundError(f"the folder of tasks {base} does not exist")
        inside = [base] if (base / "task.toml").is_file() else sorted(base.glob("*/"))
        inside = [folder.resolve() for folder in inside if (folder / "task.toml").is_file()]
        if not inside and base != BUNDLED:
            raise FileNotFoundError(
                f"{base} holds no task folder; expected {base}/<language>_<corpus>/task.toml"
            )
        for folder in inside:
            if by_name.setdefault(folder.name, folder) != folder:
                raise ValueError(
                    f"two task folders are named {folder.name}: {by_name[folder.name]} and "
                    f"{folder}; rename one"
                )
    return by_name


def _from_packages() -> list[Path]:
    """Return the folders of tasks that installed packages add by entry points."""
    entries = entry_points(group="metaser.tasks")
    return [Path(str(entry.load().__file__)).parent for entry in entries]


@functools.cache
def _say_replaced(name: str, folder: Path) -> None:
    log.warning("the task %s is read from %s, not from the one that is installed", name, folder)


def read_task(
    task: str | Path,
    data: str | Path | None = None,
    folders: Iterable[str | Path] = (),
    strict: bool = True,
) -> Task:
    """Read a task folder and, where its audio is present, the table of its clips.

    No audio is decoded: names and tables are read, files are not opened.

    Parameters
    ----------
    task
        Name of a task, or path of a task folder.
    data
        Data root, see `data_root`.
    folders
        Folders that hold further tasks, see `list_tasks`.
    strict
        Whether problems with the clips (label not mapped, more clips than declared, …) raise;
        otherwise they are gathered in `Task.problems` and the clips concerned are left out.

    Returns
    -------
    Task

    Raises
    ------
    FileNotFoundError
        If there is no such task, or the data root does not exist.
    ValueError
        If `task.toml` is not valid or does not fit the audio found.
    """
    folder = find_task(task, folders)
    facts = read_facts(folder)
    root = data_root(data)
    place = root / facts.audio if root else None
    if place is None or not place.is_dir():
        return _task(folder, facts)
    try:
        files, ignored = find_files(facts, place)
        described = describe_files(facts, table_place(facts, folder, place), files, place)
        clips = described.clips
        problems = problems_of(facts, described)
        if problems and strict:
            raise ValueError("; ".join(problems))
        if facts.ratings_table is not None:
            clips = with_ratings(facts.ratings_table, folder, place, clips)
        found = make_table(facts, clips)
        found["table"] = found["table"].assign(
            **columns_beside(facts, place, found["table"]["file"], files)
        )
    except ValueError as error:
        raise ValueError(f"{folder.name} ({place}): {error}") from error
    return _task(
        folder,
        facts,
        audio=place,
        clips_found=len(clips),
        speakers_found=clips["speaker"].nunique(),
        unmatched=tuple(described.unmatched),
        stray=tuple(described.stray),
        people=tuple(described.people),
        ignored=ignored,
        problems=tuple(problems),
        vectors={
            name: place / own.file
            for name, own in facts.vectors.items()
            if (place / own.file).is_file()
        },
        **found,
    )


def clips_of(task: Task) -> pd.DataFrame:
    """Return the table of a task whose audio is present.

    Raises
    ------
    FileNotFoundError
        If it is not; the message says where to obtain it.
    """
    if task.table is None:
        raise FileNotFoundError(
            f"the audio of {task.name} must be present, but is not: obtain it from {task.homepage} "
            "and name the folder above it by --data or METASER_DATA"
        )
    return task.table


def require_audio(task: Task) -> Task:
    """Return the task if its audio is present, and say once how much of it was found.

    Raises
    ------
    FileNotFoundError
        As in ``clips_of``.
    """
    clips_of(task)
    if part := found_part(task):
        _say_part(task.name, part)
    return task


def found_part(task: Task) -> str:
    """Return how much of a task was found, such as "8 of 16 clips"; "" if it is complete."""
    if not task.clips_found:  # made in memory
        return ""
    parts = []
    if task.clips_found < task.utterances:
        parts.append(f"{task.clips_found} of {task.utterances} clips")
    if task.unmatched:
        files = some(task.unmatched, 3)
        parts.append(f"{len(task.unmatched)} audio files are unmatched ({files})")
    if task.stray:
        parts.append(
            f"{len(task.stray)} rows of the table name no audio file ({some(task.stray, 3)})"
        )
    return "; ".join(parts)


@functools.cache
def _say_part(name: str, part: str) -> None:
    log.warning("%s: found %s; `metaser tasks check %s` tells more", name, part, name)


def restrict(task: Task, classes: Sequence[str]) -> Task:
    """Return the task with the clips of some classes only; the others count as left out."""
    wanted = task.table["emotion"].isin(classes)
    others = task.table["emotion"][~wanted].value_counts().to_dict()
    table = task.table[wanted].reset_index(drop=True)
    left_out = {str(name): int(count) for name, count in others.items()} | task.left_out
    return replace(task, table=table, left_out=left_out)


def join_same_audio(task: Task, hashes: np.ndarray) -> Task:
    """Return the task with clips of identical audio joined into one unit and one clique.

    Parameters
    ----------
    task : Task
        A task whose audio is present.
    hashes : ndarray of str
        (clips,) hash of each clip's audio, in the order of the table.

    Returns
    -------
    Task
        The same task, if no two clips have the same audio.

    Examples
    --------
    The first and the third clip are one recording, so their speakers count as one:

    >>> import pandas as pd
    >>> table = pd.DataFrame({"file": ["a.wav", "b.wav", "c.wav"], "speaker": ["p", "q", "r"]})
    >>> facts = dict.fromkeys(("language", "corpus", "licence", "homepage", "reference"), "")
    >>> facts |= {"version": 1, "speakers": 3, "utterances": 3, "synthetic": False}
    >>> table = table.assign(emotion="sad", unit=range(3), clique=range(3))
    >>> task = Task("xx_toy", folder=Path(), classes=("sad",), table=table, **facts)
    >>> join_same_audio(task, np.array(["9f", "41", "9f"])).table["unit"].tolist()
    [0, 1, 0]
    """
    content = np.unique(hashes, return_inverse=True)[1]
    if len(np.unique(content)) == len(content):
        return task
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    table = require_audio(task).table.copy()
    for column in ("unit", "clique"):
        groups = table[column].to_numpy()
        size = groups.max() + 1
        nodes = size + content.max() + 1
        edges = coo_array((np.ones(len(groups)), (groups, size + content)), shape=(nodes, nodes))
        table[column] = connected_components(edges, directed=False)[1][groups]
    return replace(task, table=table)


def find_task(task: str | Path, folders: Iterable[str | Path] = ()) -> Path:
    """Return the folder of a task given by its name or by the path of its folder.

    Raises
    ------
    FileNotFoundError
        If there is none; the nearest known name is told.
    """
    known = list_tasks(folders)
    if str(task) in known:
        return known[str(task)]
    path = Path(task)
    path = path.parent if path.name == "task.toml" else path
    if (path / "task.toml").is_file():
        return path.resolve()
    if path.is_dir():
        raise FileNotFoundError(f"{path} is a folder, but holds no task.toml")
    raise FileNotFoundError(
        f"there is no task {str(task)!r}.{naming.nearest(str(task), known)} "
        f"Known are {', '.join(known) or 'none'}; a folder of your own is added by --tasks"
    )
