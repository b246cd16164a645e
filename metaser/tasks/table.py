"""From the files below an audio folder to the table of a task's clips."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from metaser import audio
from metaser.naming import explain
from metaser.tasks import labels
from metaser.tasks.matching import (
    by_table,
    compile_pattern,
    match_end,
    of_clips,
    without_extension,
)
from metaser.tasks.modalities import (
    Video,
    read_columns,
    read_transcripts,
)
from metaser.tasks.schema import (
    Duplicates,
    Files,
    RatingsTable,
    Table,
    TaskFile,
)


def by_name(source: Files):
    pattern = compile_pattern(source.pattern)

    def describe(stem: str) -> dict[str, str] | None:
        match = match_end(pattern, stem)
        return match and {"name": match.group(), **match.groupdict(default="")}

    return describe


def find_files(facts: TaskFile, place: Path) -> tuple[list[str], int]:
    """Return the audio files below `place`, as posix paths, and how many are ignored."""
    files = [path.relative_to(place).as_posix() for path in audio.find(place)]
    if not files:
        raise ValueError(
            f"the folder holds no audio file (known are {', '.join(audio.EXTENSIONS)}); obtain the "
            f"corpus from {facts.homepage}"
        )
    globs = [
        re.compile(".*".join(re.escape(part) for part in glob.split("*")))
        for glob in facts.source.ignore
    ]
    kept = [file for file in files if not any(match_end(glob, file) for glob in globs)]
    return kept, len(files) - len(kept)


def table_place(facts: TaskFile, folder: Path, audio_folder: Path | None) -> Path | None:
    """Return the folder below which the table of labels lies."""
    return folder if facts.table and facts.table.place == "task" else audio_folder


def describe_files(
    facts: TaskFile, place: Path | None, files: Sequence[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Return one row a clip (file, name, code, speaker, groups) and the unmatched files."""
    describe = by_name(facts.files) if facts.files else by_table(table_rows(facts.table, place))
    rows, unmatched = [], []
    for file in files:
        row = describe(without_extension(file))
        if row is None:
            unmatched.append(file)
        else:
            rows.append({"file": file, **row})
    clips = pd.DataFrame(rows, columns=["file", "name", *facts.groups], dtype=object)
    if facts.source.speaker is not None:
        clips["speaker"] = [facts.source.speaker.format_map(row) for row in rows]
    return clips.rename(columns={"emotion": "code"}), unmatched


def name_reader(section: Mapping[str, Any]) -> Callable[[str], dict[str, str] | None]:
    """Return the function that reads a path without extension as a [files] section says.

    Raises
    ------
    ValueError
        If the section is not valid, as in `read_facts`.
    """
    try:
        return by_name(Files.model_validate(dict(section)))
    except ValidationError as error:
        raise ValueError(explain(error, Files)) from error


def columns_beside(facts: TaskFile, place: Path, files: Sequence[str]) -> dict[str, list[str]]:
    """Columns of transcripts and videos, where the task folder declares them."""
    columns = {}
    if facts.transcripts:
        columns["transcript"] = of_clips(read_transcripts(facts.transcripts, place) or {}, files)[0]
    if facts.video:
        columns["video"] = of_clips(find_videos(facts.video, place), files)[0]
    return {name: [value or "" for value in values] for name, values in columns.items()}


def find_videos(video: Video, place: Path) -> dict[str, str]:
    """Paths below ``place`` of the video files, by their paths below their folder, bare."""
    folder = place / video.folder
    found = {}
    for path in sorted(folder.rglob(f"*{video.extension}")):
        name = path.relative_to(folder).as_posix().removesuffix(video.extension)
        found[name] = Path(os.path.relpath(path, place)).as_posix()
    return found


def table_rows(source: Table, place: Path) -> Iterable[dict[str, str]]:
    paths = sorted(path for path in place.glob(source.file) if not path.name.startswith("."))
    if not paths:
        raise ValueError(
            f"found no table {source.file!r} below {place}; the README says how to get it"
        )
    for path in paths:
        if source.pattern is not None:
            matches = map(compile_pattern(source.pattern).match, _lines(path))
            yield from (match.groupdict(default="") for match in matches if match)
            continue
        yield from read_columns(path, source.separator or ",", source.columns)


def with_ratings(
    source: RatingsTable, folder: Path, place: Path, clips: pd.DataFrame
) -> pd.DataFrame:
    """Add the columns of the table of ratings, empty where it does not name a clip."""
    paths = [base / source.file for base in (folder, place) if (base / source.file).is_file()]
    if not paths:
        raise ValueError(f"found no table of ratings {source.file!r}, neither in {folder} nor here")
    describe = by_table(read_columns(paths[0], source.separator or ",", source.columns))
    rows = [describe(without_extension(file)) or {} for file in clips["file"]]
    if not any(rows):
        first = clips["file"].iloc[0]
        raise ValueError(f"{paths[0].name} names none of the clips, for example not {first}")
    names = [name for name in source.columns if name != "file"]
    return clips.assign(**{name: [row.get(name, "") for row in rows] for name in names})


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8-sig", errors="replace").splitlines()


def problems_of(facts: TaskFile, clips: pd.DataFrame, unmatched: Sequence[str]) -> list[str]:
    """Say what makes the clips found unusable."""
    if not len(clips):
        first = f", for example {unmatched[0]}" if unmatched else ""
        expected = next(iter(facts.examples), "that the pattern matches")
        sentence = f"none of {len(unmatched)} audio files has the name of a clip{first}"
        return [f"{sentence}; expected names such as {expected}"]
    problems = []
    again = clips[clips["name"].duplicated(keep=False)].sort_values(["name", "file"])
    if len(again):
        problems.append(
            f"{again['name'].nunique()} clips are there more than once, for example "
            f"{' and '.join(again['file'][:2])}: is the corpus unpacked twice? Keep one copy, or "
            "let the pattern begin with the folder that tells them apart"
        )
    speakers = clips["speaker"].nunique()
    if len(clips) > facts.utterances:
        problems.append(
            f"found {len(clips)} clips, more than the {facts.utterances} declared; correct "
            "utterances in task.toml, or remove what is not of this corpus"
        )
    if speakers > facts.speakers:
        problems.append(
            f"found {speakers} speakers, more than the {facts.speakers} declared; correct speakers "
            "in task.toml, or the pattern"
        )
    mapping, drop = facts.emotion.mapping, facts.emotion.drop
    unknown = labels.unmapped(list(clips["code"]), mapping, drop)
    return problems + labels.describe_unmapped(unknown, mapping, list(clips["file"]))


def make_table(facts: TaskFile, clips: pd.DataFrame) -> dict[str, Any]:
    """Return the table of usable clips, what was left out, and the duplicates present."""
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


def _numbers(clips: pd.DataFrame, name: str) -> np.ndarray:
    """Ratings as numbers, NaN where a clip has none."""
    numbers = pd.to_numeric(clips[name], errors="coerce")
    words = clips[numbers.isna() & ~clips[name].str.strip().str.lower().isin(["", "nan"])]
    if len(words):
        raise labels.LabelError(
            f"the rating {name} of {words['file'].iloc[0]} is {words[name].iloc[0]!r}; expected a "
            "number, or nothing where a clip is not rated"
        )
    return numbers.to_numpy(float)


def _units(clips: pd.DataFrame, declared: Duplicates) -> tuple[np.ndarray, np.ndarray, int]:
    """Return unit and clique of every clip, and how many declared groups are present."""
    speakers = clips.groupby("speaker").indices
    alike = [list(places) for places in speakers.values()]
    joined = [[speakers[name] for name in group if name in speakers] for group in declared.speakers]
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
    """Number the connected components of clips of which each group is joined."""
    pairs = [(group[0], other) for group in groups for other in group[1:]]
    rows, columns = np.array(pairs, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(count, count))
    return connected_components(graph, directed=False)[1]
