"""Build the table of a task's clips from the files below its audio folder."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from metaser import audio
from metaser.files import is_system, users_files
from metaser.naming import explain, some
from metaser.tasks import identity, labels
from metaser.tasks.matching import (
    by_table,
    compile_pattern,
    match_end,
    of_clips,
    without_extension,
)
from metaser.tasks.modalities import (
    Video,
    read_transcripts,
)
from metaser.tasks.schema import (
    Duplicates,
    Files,
    RatingsTable,
    Table,
    TaskFile,
)
from metaser.tasks.text_tables import pick_columns, read_lines, read_text_table


def by_name(source: Files) -> Callable[[str], dict[str, str] | None]:
    """Return a function that describes a clip by its file name.

    Parameters
    ----------
    source
        The [files] section of task.toml.

    Returns
    -------
    callable
        It takes a path without extension and returns the named groups of the pattern, and as `name`
        the part of the path that the pattern matches; None where the pattern does not match.
    """
    pattern = compile_pattern(source.pattern)

    def describe(stem: str) -> dict[str, str] | None:
        """Return the named groups for a path without extension."""
        match = match_end(pattern, stem)
        return None if match is None else {"name": match.group(), **match.groupdict(default="")}

    return describe


def find_files(facts: TaskFile, place: Path) -> tuple[list[str], int]:
    """Find the audio files below a folder.

    Returns
    -------
    files : list of str
        Posix paths below `place`, without the ignored files.
    ignored : int
        Number of files that the ignore list of task.toml matches.

    Raises
    ------
    ValueError
        If the folder holds no audio file.
    """
    films = facts.video.extension.lower() if facts.video else None
    found = [path for path in audio.find(place) if path.suffix.lower() != films]
    files = [path.relative_to(place).as_posix() for path in found]
    if not files:
        raise ValueError(
            f"the folder must hold audio files ({', '.join(audio.EXTENSIONS)}), but holds no audio "
            f"file: obtain the corpus from {facts.homepage}"
        )
    globs = [
        re.compile(".*".join(re.escape(part) for part in glob.split("*")))
        for glob in facts.source.ignore
    ]
    kept = [file for file in files if not any(match_end(glob, file) for glob in globs)]
    return kept, len(files) - len(kept)


def table_place(facts: TaskFile, folder: Path, audio_folder: Path | None) -> Path | None:
    """Return the folder below which the table of labels lies: the task's or the audio's."""
    return folder if facts.table and facts.table.place == "task" else audio_folder


@dataclass(frozen=True)
class Described:
    """What names or a table say about the audio files of a task.

    Attributes
    ----------
    clips : pandas.DataFrame
        One row per clip, all values as text: file, name, code (of the emotion), speaker (each
        person under one spelling, "" where not known), and the other named groups or columns.
    unmatched : list of str
        Files that are no clip.
    stray : list of str
        Rows of the table that name no file, each by its line.
    people : list of str
        Speakers that are spelt in several ways.
    """

    clips: pd.DataFrame
    unmatched: list[str]
    stray: list[str]
    people: list[str]


def describe_files(
    facts: TaskFile, place: Path | None, files: Sequence[str], audio_folder: Path | None = None
) -> Described:
    """Describe the clips among the audio files by their names or by a table.

    Parameters
    ----------
    facts
        Content of task.toml.
    place
        Folder of the table of labels, see `table_place`; needed only where the task has one.
    files
        Posix paths of the audio files.
    audio_folder
        Folder above them.
    """
    stray: list[str] = []
    if facts.files:
        describe = by_name(facts.files)
        found = [describe(without_extension(file)) for file in files]
    else:
        assert facts.table and place  # task.toml has one of [files] and [table]
        found, stray = by_table(table_rows(facts.table, place), files, audio_folder)
    pairs = list(zip(files, found, strict=True))
    rows = [{"file": file, **row} for file, row in pairs if row is not None]
    clips = pd.DataFrame(rows, columns=["file", "name", *facts.groups], dtype=object)
    if facts.source.speaker is not None:
        clips["speaker"] = [facts.source.speaker.format_map(row) for row in rows]
    people = identity.same_people(clips["speaker"])
    clips["speaker"] = identity.one_spelling(clips["speaker"])
    unmatched = [file for file, row in pairs if row is None]
    return Described(clips.rename(columns={"emotion": "code"}), unmatched, stray, people)


def name_reader(section: Mapping[str, Any]) -> Callable[[str], dict[str, str] | None]:
    """Return a function that describes a clip by its file name.

    Parameters
    ----------
    section
        Keys and values of a [files] section.

    Returns
    -------
    callable
        As from `by_name`.

    Raises
    ------
    ValueError
        If the section is not valid; the message is that of `read_facts`.
    """
    try:
        return by_name(Files.model_validate(dict(section)))
    except ValidationError as error:
        raise ValueError(explain(error, Files)) from error


def columns_beside(
    facts: TaskFile, place: Path, clips: Sequence[str], files: Sequence[str]
) -> dict[str, list[str]]:
    """Return the columns for transcripts and videos, as far as task.toml declares them.

    Parameters
    ----------
    facts
        Content of task.toml.
    place
        Folder of the audio.
    clips
        Posix paths of the clips below `place`.
    files
        Posix paths of all audio files below `place`.

    Returns
    -------
    dict of str to list of str
        `transcript` and `video`, one value per clip; "" where a clip has none.
    """
    beside: dict[str, Mapping[str, str]] = {}
    if facts.transcripts:
        beside["transcript"] = read_transcripts(facts.transcripts, place) or {}
    if facts.video:
        beside["video"] = find_videos(facts.video, place)
    columns = {}
    for what, found in beside.items():
        values = dict(zip(files, of_clips(found, files, place)[0], strict=True))
        columns[what] = [values[clip] or "" for clip in clips]
    return columns


def find_videos(video: Video, place: Path) -> dict[str, str]:
    """Find the video files of a task.

    Parameters
    ----------
    video
        The [video] section of task.toml.
    place
        Folder of the audio.

    Returns
    -------
    dict of str to str
        Posix path relative to `place`, by the path below the folder of videos without extension.
    """
    folder = place / video.folder
    videos = {}
    for path in users_files(folder):
        if not path.name.endswith(video.extension):
            continue
        name = path.relative_to(folder).as_posix().removesuffix(video.extension)
        videos[name] = Path(os.path.relpath(path, place)).as_posix()
    return videos


def table_rows(source: Table, place: Path) -> Iterable[tuple[str, dict[str, str]]]:
    """Read the rows of a table of labels.

    Parameters
    ----------
    source
        The [table] section of task.toml.
    place
        Folder below which the table lies.

    Yields
    ------
    str
        Where the row stands, such as "labels.csv, line 3".
    dict of str to str
        One row of the table: a value for each declared column, or for each named group of the
        pattern of a line.

    Raises
    ------
    ValueError
        If there is no such table, or it lacks a column.
    """
    paths = sorted(path for path in place.glob(source.file) if not is_system(path.name))
    if not paths:
        raise ValueError(
            f"found no table {source.file!r} below {place}: the task's README says how to obtain it"
        )
    for path in paths:
        if source.columns is not None:
            table = read_text_table(path, source.separator or ",")
            yield from pick_columns(table, path, source.columns)
            continue
        pattern = compile_pattern(source.pattern or "")
        for number, line in enumerate(read_lines(path, errors="replace"), start=1):
            if match := pattern.match(line):
                yield f"{path.name}, line {number}", match.groupdict(default="")


def with_ratings(
    source: RatingsTable, folder: Path, place: Path, clips: pd.DataFrame
) -> pd.DataFrame:
    """Add the columns of a table of ratings to the table of clips.

    Parameters
    ----------
    source
        The [ratings_table] section of task.toml.
    folder, place
        Folder of the task and of the audio; the table is looked for in this order.
    clips
        As `describe_files` returns them.

    Returns
    -------
    pandas.DataFrame
        `clips` with one more column of text per rating, "" where the table does not name a clip.

    Raises
    ------
    ValueError
        If there is no such table, it lacks a column, or it names none of the clips.
    """
    paths = [base / source.file for base in (folder, place) if (base / source.file).is_file()]
    if not paths:
        raise ValueError(
            f"found no table of ratings {source.file!r}, neither in {folder} nor in {place}: put "
            "it into one of them"
        )
    table = read_text_table(paths[0], source.separator or ",")
    rated = pick_columns(table, paths[0], source.columns)
    found, _ = by_table(rated, list(clips["file"]), place)
    rows = [row or {} for row in found]
    if not any(rows):
        first = clips["file"].iloc[0]
        raise ValueError(
            f"{paths[0].name} must name the clips, but names none of the clips, for example not "
            f"{first}: correct its column of files"
        )
    names = [name for name in source.columns if name != "file"]
    return clips.assign(**{name: [row.get(name, "") for row in rows] for name in names})


def problems_of(facts: TaskFile, found: Described) -> list[str]:
    """Say in sentences why the clips of a task cannot be used as they are.

    Parameters
    ----------
    facts
        Content of task.toml.
    found
        As `describe_files` returns it.

    Returns
    -------
    list of str
        One sentence per problem: no clips, clips that occur twice, clips without a speaker, more
        clips or speakers than declared, codes of emotions that are neither mapped nor dropped.
    """
    clips, unmatched = found.clips, found.unmatched
    if not len(clips):
        first = f", for example {unmatched[0]}" if unmatched else ""
        expected = next(iter(facts.examples), "that the pattern matches")
        sentence = f"none of {len(unmatched)} audio files has the name of a clip{first}"
        rows = f"; the table names {some(found.stray, 3)}" if found.stray else ""
        return [f"{sentence}; expected names such as {expected}{rows}"]
    problems = []
    copies = clips[clips["name"].duplicated(keep=False)].sort_values(["name", "file"])
    if len(copies):
        problems.append(
            f"{copies['name'].nunique()} clips occur more than once, for example "
            f"{' and '.join(copies['file'][:2])}: was the corpus unpacked twice? Keep one copy, or "
            "let the pattern begin with the folder in which they differ"
        )
    used = clips[~clips["code"].isin(facts.emotion.drop)]
    nobody = identity.of_nobody(list(used["file"]), list(used["speaker"]))
    if nobody:
        problems.append(
            f"every clip must have a speaker, but {len(nobody)} of {len(used)} have none: "
            f"{some(nobody)}; say who speaks there, or leave these files out by ignore, or, if one "
            'person speaks all clips, set speaker = "one" in place of the column'
        )
    speakers = clips["speaker"].nunique()
    if len(clips) > facts.utterances:
        problems.append(
            f"found {len(clips)} clips, more than the {facts.utterances} declared: correct "
            "utterances in task.toml, or remove the files that do not belong to this corpus"
        )
    if speakers > facts.speakers:
        problems.append(
            f"found {speakers} speakers, more than the {facts.speakers} declared: correct speakers "
            "in task.toml, or the pattern"
        )
    mapping, drop = facts.emotion.mapping, facts.emotion.drop
    unknown = labels.unmapped(list(clips["code"]), mapping, drop)
    return problems + labels.describe_unmapped(unknown, mapping, list(clips["file"]))


def make_table(facts: TaskFile, clips: pd.DataFrame) -> dict[str, Any]:
    """Turn the described clips into the table of a task.

    Parameters
    ----------
    facts
        Content of task.toml.
    clips
        As `describe_files` returns them, with ratings where there are any; columns are added.

    Returns
    -------
    dict
        Values of the attributes `table`, `left_out`, `dropped` and `duplicates` of a `Task`.

    Raises
    ------
    LabelError
        If a rating is not a number or lies outside its scale.
    """
    clips["emotion"] = [facts.emotion.mapping.get(code) for code in clips["code"]]
    clips["unit"], clips["clique"], present = _units(clips, facts.duplicates)
    for name, (low, high) in facts.ratings.items():
        clips[name] = labels.scale_ratings(_numbers(clips, name), low, high, list(clips["file"]))
    usable = clips[clips["emotion"].notna()].sort_values("file", ignore_index=True)
    for column in ("unit", "clique"):
        usable[column] = pd.factorize(usable[column])[0]
    extra = [name for name in facts.groups if name not in ("emotion", "speaker")] + facts.rated
    dropped = clips[clips["code"].isin(facts.emotion.drop)]
    return {
        "table": usable[["file", "speaker", "emotion", "unit", "clique", *extra]],
        "left_out": dict(sorted(Counter(dropped["code"]).items())),
        "dropped": tuple(sorted(dropped["file"])),
        "duplicates": present,
    }


def _numbers(clips: pd.DataFrame, name: str) -> list[float]:
    """Return one rating per clip as a number, NaN where a clip has none."""
    numbers = pd.to_numeric(clips[name], errors="coerce")
    words = clips[numbers.isna() & ~clips[name].str.strip().str.lower().isin(["", "nan"])]
    if len(words):
        raise labels.LabelError(
            f"the rating {name} of {words['file'].iloc[0]} must be a number, or empty where the "
            f"clip is not rated, not {words[name].iloc[0]!r}: correct the table"
        )
    return numbers.to_numpy(float).tolist()


def _units(clips: pd.DataFrame, declared: Duplicates) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the unit and the clique of each clip, and how many declared groups are present."""
    speakers = clips.groupby("speaker").indices
    alike = [list(places) for places in speakers.values()]
    by_person = {identity.plain_text(name): places for name, places in speakers.items()}
    joined = [
        [by_person[name] for name in map(identity.plain_text, group) if name in by_person]
        for group in declared.speakers
    ]
    depths = {name.count("/") for group in declared.files for name in group}
    ends: dict[str, list[int]] = {}
    for i, file in enumerate(clips["file"]):
        parts = without_extension(file).split("/")
        for depth in depths:
            ends.setdefault("/".join(parts[-depth - 1 :]), []).append(i)
    same = [[ends[name] for name in group if name in ends] for group in declared.files]
    present = sum(len(group) > 1 for group in same + joined)
    copies = [[place for places in group for place in places] for group in same]
    persons = [[place for places in group for place in places] for group in joined]
    return (
        _components(len(clips), copies + alike + persons),
        _components(len(clips), copies),
        present,
    )


def _components(count: int, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Join the clips of each group, and return the number of each clip's connected component."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = [(group[0], other) for group in groups for other in group[1:]]
    rows, columns = np.array(pairs, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(count, count))
    return connected_components(graph, directed=False)[1]
