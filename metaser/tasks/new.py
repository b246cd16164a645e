"""Make a task folder from recordings that are labelled by their names or by a table.

`from_names` and `from_table` each turn a folder of audio into `Clips`. `write` makes the task
folder from them, after the same check as `metaser tasks check`. What the recordings do not show
(language, licence, consent, who speaks) must be given: it is never guessed.
"""

import os
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from metaser import audio
from metaser.files import users_files, written
from metaser.naming import nearest, some
from metaser.tasks import identity
from metaser.tasks.check import Check, check_task
from metaser.tasks.identity import plain_text
from metaser.tasks.matching import file_finder, plain_path, without_extension
from metaser.tasks.schema import language_name
from metaser.tasks.table import name_reader
from metaser.tasks.task import list_tasks, read_task

COLUMNS = {
    "file": ("file", "filename", "file_name", "path", "filepath", "file_path", "audio", "wav"),
    "emotion": ("emotion", "emotions", "label", "emotion_label", "category", "class"),
    "speaker": ("speaker", "speaker_id", "spk", "spk_id", "actor", "subject", "participant"),
    "text": ("text", "text_id", "sentence", "transcript", "transcription", "statement"),
}
"""Usual names of the columns of tables; the first one present is used."""

ONE_SPEAKER = "one"
"""Name of the speaker where one person speaks all clips."""

LABELS = "labels.csv"
"""Name of the table of labels in a task folder."""

NAME = re.compile(r"[\w-]+")
"""Valid names of a task folder."""


@dataclass(frozen=True)
class Clips:
    """The labelled clips found in a folder of audio.

    Attributes
    ----------
    folder : pathlib.Path
        The folder of audio.
    table : pandas.DataFrame
        One row per clip: `file` (posix path below `folder`), `emotion` (the corpus's own code),
        `speaker`, and `text` where that is known.
    section : dict
        The [files] section of task.toml that yields this table; empty for a table of labels.
    lacking : dict of str to tuple of str
        Audio files below `folder` that are no clip according to the pattern or the table, by what
        they lack: "name", "emotion" or "speaker".
    people : tuple of str
        Speakers that are spelt in several ways, such as "F1 = f1"; they count as one.
    """

    folder: Path
    table: pd.DataFrame
    section: dict[str, str]
    lacking: dict[str, tuple[str, ...]]
    people: tuple[str, ...]

    @property
    def rest(self) -> tuple[str, ...]:
        """Audio files that are no clip."""
        return tuple(sorted(file for files in self.lacking.values() for file in files))

    def tell_rest(self) -> str:
        """Return in words which files are no clip, and why."""
        why = {
            "name": "are not described",
            "emotion": "have no emotion",
            "speaker": "have no speaker",
        }
        total = len(self.table) + len(self.rest)
        return "; ".join(
            f"{len(files)} of {total} audio files {why[what]}: {some(files)}"
            for what, files in self.lacking.items()
            if files
        )


@dataclass(frozen=True)
class Facts:
    """Facts that only the person who made the recordings knows.

    Attributes
    ----------
    name : str
        Name of the task folder, `<language>_<corpus>`.
    language : str
        ISO 639 code.
    corpus, licence, homepage, reference : str
        Free text for task.toml.
    consent : str
        What the speakers agreed to, or the terms on which the recordings are used; free text for
        the README.
    """

    name: str
    language: str
    corpus: str
    licence: str
    consent: str
    homepage: str
    reference: str


def find_audio(folder: Path) -> list[str]:
    """List the audio files below a folder, as posix paths below it.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it holds no audio; the message says which files it holds instead.
    """
    files = [path.relative_to(folder).as_posix() for path in audio.find(folder)]
    foreign = [file for file in files if not _is_utf8(file)]
    if foreign:
        raise ValueError(
            f"the names of files must be in UTF-8, as a task is written, but {len(foreign)} are "
            f"not, such as {foreign[0]!r}: rename them, for example by convmv"
        )
    if files:
        return files
    others = sorted({path.suffix.lower() or "no extension" for path in _other_files(folder)})
    content = f"holds files of the kinds {', '.join(others)}" if others else "is empty"
    raise ValueError(
        f"{folder} must hold audio files that MetaSER reads ({', '.join(audio.EXTENSIONS)}), but "
        f"it {content}: convert video and other sound first, for example by "
        "`ffmpeg -i clip.mp4 clip.wav`"
    )


def _is_utf8(name: str) -> bool:
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def _other_files(folder: Path) -> list[Path]:
    """List the files below a folder that are no audio."""
    return [path for path in users_files(folder) if path.suffix.lower() not in audio.EXTENSIONS]


def from_names(folder: Path, files: Sequence[str], pattern: str, one_speaker: bool) -> Clips:
    """Find the clips whose paths a regular expression matches.

    Parameters
    ----------
    folder
        The folder of audio.
    files
        Posix paths below it.
    pattern
        Regular expression with a group `emotion` and, unless one person speaks everything, a group
        `speaker`. It is matched against the end of the path without extension.
    one_speaker
        Whether one person speaks all clips.

    Raises
    ------
    ValueError
        If the pattern is no regular expression, lacks a group, or matches nothing.
    """
    section = {"pattern": pattern} | ({"speaker": ONE_SPEAKER} if one_speaker else {})
    describe = name_reader(section)
    described = {file: describe(without_extension(file)) for file in files}
    rows = [{"file": file, **row} for file, row in described.items() if row is not None]
    if not rows:
        raise ValueError(
            f"the pattern {pattern!r} matches none of {len(files)} files, for example not "
            f"{files[0]}: correct the pattern"
        )
    rest = tuple(file for file, row in described.items() if row is None)
    return _clips(folder, pd.DataFrame(rows), section, rest, one_speaker)


def _clips(
    folder: Path, rows: pd.DataFrame, section: dict[str, str], rest: tuple[str, ...], one: bool
) -> Clips:
    """Return the clips among some rows, apart from those whose emotion or speaker is not known."""
    if one:
        rows = rows.assign(speaker=ONE_SPEAKER)
    silent = rows["emotion"].str.strip() == ""
    people = identity.same_people(rows["speaker"])
    rows = rows.assign(speaker=identity.one_spelling(rows["speaker"]))
    nobody = ~silent & (rows["speaker"] == "")
    lacking = {
        "name": rest,
        "emotion": tuple(sorted(rows["file"][silent])),
        "speaker": tuple(sorted(rows["file"][nobody])),
    }
    columns = ["file", "speaker", "emotion", *(["text"] if "text" in rows else [])]
    clips = rows[~silent & ~nobody][columns].sort_values("file", ignore_index=True)
    if clips.empty:
        raise ValueError(
            f"at least one clip must have an emotion and a speaker, but none of {len(rows)} has: "
            "fill them in"
        )
    return Clips(folder, clips, section, lacking, tuple(people))


def find_column(table: pd.DataFrame, what: str, wanted: str | None = None) -> str | None:
    """Find the column of a table that holds a certain kind of value.

    Parameters
    ----------
    table
        Table of labels.
    what
        Kind of value, a key of `COLUMNS`.
    wanted
        Name of the column; without it, the usual names in `COLUMNS` are looked for.

    Returns
    -------
    str or None
        Name of the column; None if no column has a usual name.

    Raises
    ------
    ValueError
        If there is no column with the wanted name; the message gives the nearest one.
    """
    columns = list(table.columns)
    if wanted is not None:
        if wanted not in columns:
            raise ValueError(
                f"the table has no column {wanted!r}.{nearest(wanted, columns)} It has "
                f"{', '.join(columns)}: choose among these"
            )
        return wanted
    plain = {plain_text(column).replace(" ", "_"): column for column in columns}
    return next((plain[name] for name in COLUMNS[what] if name in plain), None)


def from_table(
    folder: Path,
    files: Sequence[str],
    table: pd.DataFrame,
    columns: Mapping[str, str | None],
    one_speaker: bool,
) -> Clips:
    """Find the clips that a table of labels names.

    Parameters
    ----------
    folder
        The folder of audio.
    files
        Posix paths below it.
    table
        One row per clip. A file is named by its whole path or by the end of it, with or without
        extension.
    columns
        Names of the columns for "file", "emotion" and, unless `one_speaker`, "speaker"; see
        `find_column`. "text" is optional.
    one_speaker
        Whether one person speaks all clips.

    Raises
    ------
    ValueError
        If a column is missing, the table gives a file two different labels, or it names a file
        that does not exist, is no audio, or shares its name with another.
    """
    used = {what: column for what, column in columns.items() if column is not None}
    if one_speaker:
        used.pop("speaker", None)
    elif "speaker" in used and not any(map(identity.is_known, table[used["speaker"]])):
        raise ValueError(
            f"the column {used['speaker']!r} must say who speaks, but it names nobody: fill it in, "
            "name another by --speaker COLUMN, or say --one-speaker if one person speaks all clips"
        )
    for what in ("file", "emotion", *["speaker"] * (not one_speaker)):
        if what not in used:
            raise ValueError(_no_column(table, what))
    rows = table[list(used.values())].set_axis(list(used), axis=1)
    rows = _resolved(folder, files, rows).drop_duplicates()
    twice = rows[rows["file"].duplicated(keep=False)].sort_values("file", kind="stable")
    if len(twice):
        first = twice[twice["file"] == twice["file"].iloc[0]]
        descriptions = " and ".join(
            ", ".join(map(repr, row)) for row in first.drop(columns="file").values.tolist()
        )
        raise ValueError(
            f"the table describes {twice['file'].nunique()} files twice, differently, for example "
            f"{first['file'].iloc[0]} by {descriptions}{_lines(first)}: keep one row per clip"
        )
    rest = tuple(sorted(set(files) - set(rows["file"])))
    return _clips(folder, rows, {}, rest, one_speaker)


def _no_column(table: pd.DataFrame, what: str) -> str:
    """Return that a table has no column of a kind, and what to do."""
    usual = {name: COLUMNS[what][0] for name in COLUMNS[what]}
    close = next((c for c in table.columns if nearest(plain_text(c), usual)), None)
    hint = f" Did you mean {close!r}?" if close else ""
    more = ", or say --one-speaker" if what == "speaker" else ""
    return (
        f"the table has no column that is known to be the {what}.{hint} It has "
        f"{', '.join(table.columns)}: name it by --{what} COLUMN{more}"
    )


def _lines(rows: pd.DataFrame) -> str:
    """Return the lines of some rows in brackets, where they come from a table with lines."""
    if rows.index.name != "line":
        return ""
    return f" (line {some(list(map(str, rows.index)), 3)})"


def _resolved(folder: Path, files: Sequence[str], rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a table with the file below the folder that each of them means."""
    find = file_finder(files, folder)
    meant = [find(entry) for entry in rows["file"]]
    for entry, candidates in zip(rows["file"], meant, strict=True):
        if len(candidates) > 1:
            raise ValueError(
                f"the table must name one file per row, not {entry!r}, which may be "
                f"{' or '.join(candidates[:3])}: write the path with its folder"
            )
    missing = rows[[not candidates for candidates in meant]]
    if len(missing):
        first = missing["file"].iloc[0]
        why = (
            f" It exists, but is no audio that MetaSER reads ({', '.join(audio.EXTENSIONS)})."
            if first and (folder / plain_path(first)).is_file()
            else nearest(first, files)
        )
        raise ValueError(
            f"the table names {len(missing)} files that are not below {folder}, for example "
            f"{first!r}{_lines(missing)}.{why} Correct the table, or remove these rows"
        )
    return rows.assign(file=[candidates[0] for candidates in meant])


def same_audio(clips: Clips, jobs: int | None = None) -> list[list[str]]:
    """Find the clips that hold the same audio under several names.

    Parameters
    ----------
    clips
        From `from_names` or `from_table`.
    jobs
        Threads that decode; by default one per core.

    Returns
    -------
    list of list of str
        Groups of names without extension, as the [duplicates] section holds them.

    Raises
    ------
    ValueError
        If a file cannot be used as audio, or the same audio has two labels.
    """
    from joblib import Parallel, delayed

    work = (delayed(_digest)(clips.folder / file) for file in clips.table["file"])
    digests = Parallel(n_jobs=jobs or os.cpu_count(), prefer="threads")(work)
    broken = [message for content, message in digests if not content]
    if broken:
        raise ValueError(
            f"{len(broken)} files cannot be used ({'; '.join(broken[:5])}): repair or remove them"
        )
    groups = clips.table.groupby([content for content, _ in digests])
    same = [group for _, group in groups if len(group) > 1]
    for group in same:
        if group["emotion"].nunique() > 1 or group["speaker"].nunique() > 1:
            names = " and ".join(
                f"{row.file} ({row.emotion}, speaker {row.speaker})" for row in group.itertuples()
            )
            raise ValueError(
                f"the same audio has two labels: {names}. Keep the right one, remove the other"
            )
    return sorted([without_extension(file) for file in group["file"]] for group in same)


def _digest(path: Path) -> tuple[str, str]:
    """Return the hash of a file's audio and "", or "" and why it cannot be decoded."""
    try:
        return audio.content_hash(path), ""
    except audio.AudioError as error:
        return "", str(error)


def write(
    facts: Facts,
    clips: Clips,
    mapping: Mapping[str, str],
    drop: Collection[str],
    into: Path,
    data: Path,
    *,
    new: Collection[str] = (),
    ignore_rest: bool = False,
) -> tuple[Path, Check]:
    """Write the task folder, if `metaser tasks check` finds no problem with it.

    Parameters
    ----------
    facts
        What the user states about the recordings.
    clips
        From `from_names` or `from_table`.
    mapping
        Code of an emotion to its class.
    drop
        Codes to leave out.
    into
        Folder in which the task folder is made.
    data
        Data root: a folder above the clips' folder.
    new
        Classes of this corpus that `labels.CLASSES` lacks.
    ignore_rest
        Whether to leave out audio files that are no clip, and to list them in task.toml.

    Returns
    -------
    folder : pathlib.Path
        The task folder.
    check : Check
        Result of the check, with notes on the clips.

    Raises
    ------
    FileExistsError
        If the folder, or a task of that name, exists already.
    ValueError
        If the check finds a problem, or some files are no clip; nothing is written then.
    """
    folder = into / facts.name
    if folder.exists() or facts.name in list_tasks():
        raise FileExistsError(
            f"the task must have a new name, but a task {facts.name} is there already: choose "
            "another name"
        )
    if clips.rest and not ignore_rest:
        raise ValueError(
            f"every audio file must be a clip, but {clips.tell_rest()}; move them away, label "
            "them, or leave them out by --ignore-rest"
        )
    audio_name = clips.folder.relative_to(data).as_posix()
    same = same_audio(clips)
    document = _document(facts, clips, mapping, drop, new=new, audio_name=audio_name, same=same)
    into.mkdir(parents=True, exist_ok=True)
    with written(folder), tempfile.TemporaryDirectory(dir=into, prefix=".new-") as temporary:
        part = Path(temporary, facts.name)
        part.mkdir()
        _write_folder(part, document, facts, clips)
        task = read_task(part, data=data, strict=False)
        check = check_task(task, data=data)
        if check.problems:
            raise ValueError("nothing was written: " + "; ".join(check.problems))
        os.rename(part, folder)
    return folder, check


def _document(
    facts: Facts,
    clips: Clips,
    mapping: Mapping[str, str],
    drop: Collection[str],
    *,
    new: Collection[str],
    audio_name: str,
    same: list[list[str]],
) -> dict[str, Any]:
    """Return the content of task.toml."""
    table = clips.table
    document: dict[str, Any] = {
        "language": facts.language,
        "corpus": facts.corpus,
        "audio": audio_name,
        "version": 1,
        "speakers": int(table["speaker"].nunique()),
        "utterances": len(table),
        "licence": facts.licence,
        "homepage": facts.homepage,
        "reference": facts.reference,
    }
    ignore = {"ignore": list(clips.rest)} if clips.rest else {}
    if clips.section:
        document["files"] = clips.section | ignore
    else:
        columns = {
            column: column
            for column in table
            if not (column == "speaker" and _is_one_speaker(table))
        }
        one = {"speaker": ONE_SPEAKER} if _is_one_speaker(table) else {}
        document["table"] = {"file": LABELS, "place": "task", **one, **ignore, "columns": columns}
    lists = {key: sorted(value) for key, value in {"drop": drop, "new": new}.items() if value}
    document["emotion"] = dict(mapping) | lists
    if same:
        document["duplicates"] = {"files": same}
    used = table[table["emotion"].isin(list(mapping))].drop_duplicates("emotion")
    document["examples"] = {
        row.file: {"speaker": row.speaker, "emotion": mapping[row.emotion]}
        for row in used.itertuples()
    }
    return document


def _is_one_speaker(table: pd.DataFrame) -> bool:
    """Return whether one person speaks all clips."""
    return set(table["speaker"]) == {ONE_SPEAKER}


def _write_folder(folder: Path, document: dict[str, Any], facts: Facts, clips: Clips) -> None:
    """Write task.toml, README.md and, where names do not give the labels, the table of labels."""
    import tomli_w

    text = "# Made by `metaser tasks new`. Raise version whenever a line below changes results.\n"
    (folder / "task.toml").write_text(text + tomli_w.dumps(document), encoding="utf-8")
    if "table" in document:
        columns = list(document["table"]["columns"])
        clips.table[columns].to_csv(folder / LABELS, index=False)
    (folder / "README.md").write_text(_readme(document, facts, clips), encoding="utf-8")


def _readme(document: dict[str, Any], facts: Facts, clips: Clips) -> str:
    """Return the text of README.md."""
    counts = Counter(document["emotion"].get(code) for code in clips.table["emotion"])
    classes = ", ".join(f"{name} {count}" for name, count in counts.items() if name)
    speakers = (
        "One person speaks all clips. Scores then say how well this one voice is recognised, and "
        "nothing about other people."
        if _is_one_speaker(clips.table)
        else f"{document['speakers']} speakers."
    )
    return f"""# {facts.corpus} ({language_name(facts.language)})

{len(clips.table)} clips. {speakers}

- **Obtain**: {facts.homepage}; put the audio into `{document["audio"]}/` below the data root.
- **Licence**: {facts.licence}
- **Consent**: {facts.consent}
- **Classes**: {classes}.
- **Hazards**: run `metaser tasks check {facts.name}` and write here what it notes.

Citation: {facts.reference}
"""
