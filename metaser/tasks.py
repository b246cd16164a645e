"""Tasks: one corpus of one language, described by a folder that holds `task.toml` and no code.

A task folder is named `<language>_<corpus>`. Its `task.toml` says where the audio lies below the
data root, how a clip's name (or a table) gives speaker and emotion, which classes the codes mean,
and which clips are the same recording. `read_task` turns it into a `Task` with one row a clip.
"""

import os
import re
import string
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pycountry
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from metaser import audio, clip_checks, labels
from metaser.modalities import (
    Transcripts,
    Vectors,
    Video,
    check_modalities,
    read_columns,
    read_transcripts,
    read_vectors,
)

_ABOARD = Path(__file__).parent / "aboard" / "tasks"
BUNDLED = _ABOARD if _ABOARD.is_dir() else Path(__file__).parent.parent / "tasks"
"""The task folders that come with MetaSER."""

RESERVED = ("file", "unit", "clique")
SILENT = 1e-3  # peak of -60 dB below full scale
SHORT = 0.3  # seconds

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Source(_Strict):
    """What naming by path and naming by table have in common."""

    speaker: Text | None = None  # template such as "{session}_{gender}", if not a group itself
    ignore: list[Text] = []  # globs, matched like the pattern, of files that are not looked at

    def check_groups(self, groups: Iterable[str], where: str) -> None:
        groups = set(groups)
        taken = groups.intersection(RESERVED[1:])
        if taken:
            raise ValueError(f"{where} uses the reserved name {min(taken)!r}; rename it")
        if "emotion" not in groups:
            raise ValueError(f"{where} gives no 'emotion'; it gives {sorted(groups)}")
        if self.speaker is None and "speaker" not in groups:
            raise ValueError(
                f"{where} gives no 'speaker'; name one, or set speaker to a template of what it "
                f'gives, {sorted(groups)}, such as "{{session}}{{gender}}"'
            )
        if self.speaker is not None and "speaker" in groups:
            raise ValueError(f"{where} gives 'speaker' and so does the template; keep one")
        for _, name, _, _ in string.Formatter().parse(self.speaker or ""):
            if name is not None and name not in groups:
                raise ValueError(
                    f"the speaker template names {name!r}, which {where} does not give"
                    f" ({sorted(groups)})"
                )


class _Files(_Source):
    pattern: Text

    @model_validator(mode="after")
    def _check(self) -> "_Files":
        groups = _compile(self.pattern).groupindex
        if "file" in groups:
            raise ValueError("the pattern uses the reserved name 'file'; rename the group")
        self.check_groups(groups, "the pattern")
        return self


class _Table(_Source):
    file: Text  # path or glob below the audio folder, or beside task.toml if place = "task"
    place: Literal["audio", "task"] = "audio"
    separator: Text | None = None
    columns: dict[Text, Text] | None = None  # our name -> the table's column
    pattern: Text | None = None  # of a line, where the table has no columns

    @model_validator(mode="after")
    def _check(self) -> "_Table":
        if (self.columns is None) == (self.pattern is None):
            raise ValueError("[table] takes either columns or the pattern of a line")
        if self.pattern is not None and self.separator is not None:
            raise ValueError("separator goes with columns; the pattern of a line needs none")
        groups = self.columns or _compile(self.pattern or "").groupindex
        if "file" not in groups:
            raise ValueError(f"[table] gives no 'file'; it gives {sorted(groups)}")
        self.check_groups(groups, "[table]")
        return self


class _RatingsTable(_Strict):
    file: Text  # in the task folder, or else below the audio folder
    separator: Text | None = None
    columns: dict[Text, Text]  # our name -> the table's column

    @model_validator(mode="after")
    def _check(self) -> "_RatingsTable":
        if "file" not in self.columns:
            raise ValueError(
                f"[ratings_table] gives no 'file'; its columns give {sorted(self.columns)}"
            )
        return self


class _Duplicates(_Strict):
    files: list[Annotated[list[Text], Field(min_length=2)]] = []
    speakers: list[Annotated[list[Text], Field(min_length=2)]] = []


class _Emotion(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, str]
    drop: list[str] = []
    new: list[str] = []

    @property
    def mapping(self) -> dict[str, str]:
        return self.__pydantic_extra__

    @model_validator(mode="after")
    def _check(self) -> "_Emotion":
        labels.check_mapping(self.mapping, self.drop, self.new)
        return self


class TaskFile(_Strict):
    """The content of a `task.toml`, validated; an unknown key is an error."""

    language: Text
    corpus: Text
    audio: Text
    version: Count
    speakers: Count
    utterances: Count
    licence: Text
    homepage: Text
    reference: Text
    synthetic: bool = False
    files: _Files | None = None
    table: _Table | None = None
    emotion: _Emotion
    ratings: dict[Text, Annotated[list[float], Field(min_length=2, max_length=2)]] = {}
    ratings_table: _RatingsTable | None = None
    transcripts: list[Transcripts] = []  # the first whose table is present counts
    vectors: dict[Text, Vectors] = {}  # by modality
    video: Video | None = None
    duplicates: _Duplicates = _Duplicates()
    examples: dict[str, dict[str, str]] = {}

    @model_validator(mode="after")
    def _check(self) -> "TaskFile":
        if (self.files is None) == (self.table is None):
            raise ValueError("expected either [files] with a pattern or [table], one of the two")
        if Path(self.audio).is_absolute() or ".." in Path(self.audio).parts:
            raise ValueError(
                f"audio = {self.audio!r} must be a folder below the data root, such as 'urdu'"
            )
        language_name(self.language)
        again = sorted({*self.groups, *RESERVED[1:]}.intersection(self.rated))
        if again:
            raise ValueError(
                f"[ratings_table] gives {again[0]!r}, and so does something else; rename it"
            )
        for name in self.ratings:
            if name not in (*self.groups, *self.rated):
                known = [*self.groups, *self.rated]
                raise ValueError(f"[ratings] names {name!r}, which is not among {known}")
        check_modalities(self.vectors, "[vectors]")
        for name, section in (("transcript", self.transcripts), ("video", self.video)):
            if name in self.groups and section:
                raise ValueError(
                    f"the pattern or table gives {name!r}, and so does a section of its own; keep "
                    "one of the two"
                )
        if self.files is not None:
            for name in (name for group in self.duplicates.files for name in group):
                if _match(_compile(self.files.pattern), name) is None:
                    raise ValueError(
                        f"[duplicates] names {name!r}, which the pattern does not match; "
                        "expected file names without extension"
                    )
        return self

    @property
    def source(self) -> _Files | _Table:
        return self.files or self.table

    @property
    def groups(self) -> list[str]:
        """Names that the pattern or the table gives, besides `file`."""
        columns = self.table.columns if self.table else None
        names = columns or _compile(self.source.pattern).groupindex
        return [name for name in names if name != "file"]

    @property
    def rated(self) -> list[str]:
        """Names that the table of ratings gives, besides `file`."""
        columns = self.ratings_table.columns if self.ratings_table else ()
        return [name for name in columns if name != "file"]


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
    table: pd.DataFrame | None = field(default=None, repr=False)
    vectors: dict[str, Path] = field(default_factory=dict)
    clips_found: int = 0
    speakers_found: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    dropped: tuple[str, ...] = field(default=(), repr=False)
    unmatched: tuple[str, ...] = field(default=(), repr=False)
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


def language_name(code: str) -> str:
    """Return the English name of an ISO 639 language code of two or three letters.

    Raises
    ------
    ValueError
        If there is no such code.
    """
    key = {2: "alpha_2", 3: "alpha_3"}.get(len(code))
    found = pycountry.languages.get(**{key: code}) if key and code == code.lower() else None
    if found is None:
        try:
            guess = pycountry.languages.lookup(code)
            hint = f"; {guess.name} has {getattr(guess, 'alpha_2', guess.alpha_3)!r}"
        except LookupError:
            hint = ""
        raise ValueError(
            f"language {code!r} is not a code of ISO 639; expected two or three small letters, "
            f"such as 'ur' or 'yue'{hint}"
        )
    short = getattr(found, "alpha_2", code)
    if short != code:
        raise ValueError(
            f"language {code!r} has a code of two letters, {short!r}: write that, so that all "
            "corpora of a language carry the same code"
        )
    return getattr(found, "common_name", found.name).partition(" (")[0]


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


def list_tasks(folders: Iterable[str | Path] = ()) -> dict[str, Path]:
    """List the task folders that come with MetaSER and those below further folders.

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
        If two task folders have the same name.
    """
    found: dict[str, Path] = {}
    for base in [BUNDLED, *map(Path, folders)]:
        if not base.is_dir() and base is not BUNDLED:
            raise FileNotFoundError(f"the folder of tasks {base} does not exist")
        inside = [base] if (base / "task.toml").is_file() else sorted(base.glob("*/"))
        inside = [folder.resolve() for folder in inside if (folder / "task.toml").is_file()]
        if not inside and base is not BUNDLED:
            raise FileNotFoundError(
                f"{base} holds no task folder; expected {base}/<language>_<corpus>/task.toml"
            )
        for folder in inside:
            if found.setdefault(folder.name, folder) != folder:
                raise ValueError(
                    f"two task folders are named {folder.name}: {found[folder.name]} and {folder}; "
                    "rename one"
                )
    return dict(sorted(found.items()))


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
        files, ignored = _find_files(facts, place)
        clips, unmatched = _describe_files(facts, _table_place(facts, folder, place), files)
        problems = _problems(facts, clips, unmatched)
        if problems and strict:
            raise ValueError("; ".join(problems))
        if facts.ratings_table is not None:
            clips = _with_ratings(facts.ratings_table, folder, place, clips)
        found = _table(facts, clips)
        found["table"] = found["table"].assign(**_beside(facts, place, found["table"]["file"]))
    except ValueError as error:
        raise ValueError(f"{folder.name} ({place}): {error}") from error
    return _task(
        folder,
        facts,
        audio=place,
        clips_found=len(clips),
        speakers_found=clips["speaker"].nunique(),
        unmatched=tuple(unmatched),
        ignored=ignored,
        problems=tuple(problems),
        vectors={
            name: place / own.file
            for name, own in facts.vectors.items()
            if (place / own.file).is_file()
        },
        **found,
    )


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
        f"there is no task {str(task)!r}.{labels.nearest(str(task), known)} "
        f"Known are {', '.join(known) or 'none'}; a folder of your own is added by --tasks"
    )


def read_facts(folder: str | Path) -> TaskFile:
    """Read and validate the `task.toml` of a task folder.

    Raises
    ------
    FileNotFoundError
        If the folder holds no `task.toml`.
    ValueError
        If the file is no TOML, a key is unknown (the nearest known one is named), missing or of
        the wrong type, or the language is not ISO 639 or not the prefix of the folder's name.
    """
    path = Path(folder).resolve() / "task.toml"
    if not path.is_file():
        raise FileNotFoundError(f"expected a task.toml in {folder}, found none")
    try:
        with path.open("rb") as file:
            raw = tomllib.load(file)
        facts = TaskFile.model_validate(raw)
        if not path.parent.name.startswith(f"{facts.language}_"):
            raise ValueError(
                f"language = {facts.language!r}, but the folder is named {path.parent.name}; "
                f"expected {facts.language}_<corpus>"
            )
    except ValidationError as error:
        raise ValueError(f"{path}: {_explain(error)}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return facts


def _explain(error: ValidationError) -> str:
    """Say in sentences what is wrong with a task.toml."""
    sentences = []
    for item in error.errors():
        where, name = [str(part) for part in item["loc"][:-1]], str((item["loc"] or ("",))[-1])
        section = f" in [{'.'.join(where)}]" if where else ""
        if item["type"] == "extra_forbidden":
            known = list(_MODELS[where[0]].model_fields if where else TaskFile.model_fields)
            hint = labels.nearest(name, known)
            if where and name in TaskFile.model_fields:
                hint = " It belongs at the top of the file, above the first [section]."
            sentences.append(f"unknown key {name!r}{section}.{hint} Known: {', '.join(known)}")
        elif item["type"] == "missing":
            sentences.append(f"the key {name!r} is missing{section}")
        elif item["type"] == "value_error":
            sentences.append(str(item["ctx"]["error"]))
        else:
            sentences.append(f"{name} = {item['input']!r}{section}: {item['msg']}")
    return "; ".join(sentences)


_MODELS = {
    "files": _Files,
    "table": _Table,
    "ratings_table": _RatingsTable,
    "duplicates": _Duplicates,
    "transcripts": Transcripts,
    "vectors": Vectors,
    "video": Video,
}


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"the pattern {pattern!r} is no regular expression: {error}") from error


def _match(pattern: re.Pattern[str], stem: str) -> re.Match[str] | None:
    """Match the end of a path without extension; the match begins at a file or folder name."""
    starts = [0, *(match.end() for match in re.finditer("/", stem))]
    for start in reversed(starts):
        match = pattern.fullmatch(stem, start)
        if match:
            return match
    return None


def without_extension(path: str) -> str:
    """Return a posix path without its audio extension."""
    base, _, extension = path.rpartition(".")
    return base if f".{extension.lower()}" in audio.EXTENSIONS else path


def _find_files(facts: TaskFile, place: Path) -> tuple[list[str], int]:
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
    kept = [file for file in files if not any(_match(glob, file) for glob in globs)]
    return kept, len(files) - len(kept)


def _table_place(facts: TaskFile, folder: Path, audio_folder: Path | None) -> Path | None:
    """Return the folder below which the table of labels lies."""
    return folder if facts.table and facts.table.place == "task" else audio_folder


def _describe_files(
    facts: TaskFile, place: Path | None, files: Sequence[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Return one row a clip (file, name, code, speaker, groups) and the unmatched files."""
    describe = _by_name(facts.files) if facts.files else _by_table(_table_rows(facts.table, place))
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
        return _by_name(_Files.model_validate(dict(section)))
    except ValidationError as error:
        raise ValueError(_explain(error)) from error


def _by_name(source: _Files):
    pattern = _compile(source.pattern)

    def describe(stem: str) -> dict[str, str] | None:
        match = _match(pattern, stem)
        return match and {"name": match.group(), **match.groupdict(default="")}

    return describe


def _by_table(found: Iterable[dict[str, str]]):
    rows: dict[str, dict[str, str]] = {}
    for row in found:
        name = without_extension(row.pop("file"))
        if rows.setdefault(name, row) != row:
            raise ValueError(f"the table describes {name!r} twice, differently; correct it")

    def describe(stem: str) -> dict[str, str] | None:
        name = _by_end(rows, stem)
        return None if name is None else {"name": name, **rows[name]}

    return describe


def _by_end(names: Mapping[str, Any], stem: str) -> str | None:
    """The shortest end of a path, beginning at a file or folder name, that is among the names."""
    parts = stem.split("/")
    ends = ("/".join(parts[i:]) for i in reversed(range(len(parts))))
    return next((end for end in ends if end in names), None)


def of_clips(found: Mapping[str, Any], files: Iterable[str]) -> tuple[list[Any], list[str]]:
    """What belongs to each clip, matched by the end of its path, with or without extension.

    Parameters
    ----------
    found
        Anything by the name of a clip.
    files
        Posix paths of clips.

    Returns
    -------
    own : list
        In the order of the clips; None where a clip has nothing.
    stray : list of str
        Names in ``found`` that are no clip's.
    """
    by_stem = {without_extension(name): name for name in found}
    ends = [_by_end(by_stem, without_extension(file)) for file in files]
    own = [None if end is None else found[by_stem[end]] for end in ends]
    used = {by_stem[end] for end in ends if end is not None}
    return own, [name for name in found if name not in used]


def _beside(facts: TaskFile, place: Path, files: Sequence[str]) -> dict[str, list[str]]:
    """Columns of transcripts and videos, where the task folder declares them."""
    columns = {}
    if facts.transcripts:
        columns["transcript"] = of_clips(read_transcripts(facts.transcripts, place) or {}, files)[0]
    if facts.video:
        columns["video"] = of_clips(_find_videos(facts.video, place), files)[0]
    return {name: [value or "" for value in values] for name, values in columns.items()}


def _find_videos(video: Video, place: Path) -> dict[str, str]:
    """Paths below ``place`` of the video files, by their paths below their folder, bare."""
    folder = place / video.folder
    found = {}
    for path in sorted(folder.rglob(f"*{video.extension}")):
        name = path.relative_to(folder).as_posix().removesuffix(video.extension)
        found[name] = Path(os.path.relpath(path, place)).as_posix()
    return found


def _table_rows(source: _Table, place: Path) -> Iterable[dict[str, str]]:
    paths = sorted(path for path in place.glob(source.file) if not path.name.startswith("."))
    if not paths:
        raise ValueError(
            f"found no table {source.file!r} below {place}; the README says how to get it"
        )
    for path in paths:
        if source.pattern is not None:
            matches = map(_compile(source.pattern).match, _lines(path))
            yield from (match.groupdict(default="") for match in matches if match)
            continue
        yield from read_columns(path, source.separator or ",", source.columns)


def _with_ratings(
    source: _RatingsTable, folder: Path, place: Path, clips: pd.DataFrame
) -> pd.DataFrame:
    """Add the columns of the table of ratings, empty where it does not name a clip."""
    paths = [base / source.file for base in (folder, place) if (base / source.file).is_file()]
    if not paths:
        raise ValueError(f"found no table of ratings {source.file!r}, neither in {folder} nor here")
    describe = _by_table(read_columns(paths[0], source.separator or ",", source.columns))
    rows = [describe(without_extension(file)) or {} for file in clips["file"]]
    if not any(rows):
        first = clips["file"].iloc[0]
        raise ValueError(f"{paths[0].name} names none of the clips, for example not {first}")
    names = [name for name in source.columns if name != "file"]
    return clips.assign(**{name: [row.get(name, "") for row in rows] for name in names})


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8-sig", errors="replace").splitlines()


def _problems(facts: TaskFile, clips: pd.DataFrame, unmatched: Sequence[str]) -> list[str]:
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


def _table(facts: TaskFile, clips: pd.DataFrame) -> dict[str, Any]:
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


def _units(clips: pd.DataFrame, declared: _Duplicates) -> tuple[np.ndarray, np.ndarray, int]:
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


@dataclass(frozen=True)
class Check:
    """What `check_task` found: `problems` make it fail, `notes` are suspicious, `good` is good."""

    name: str
    facts: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    good: tuple[str, ...] = ()

    def text(self) -> str:
        """Return all findings as lines of text."""
        lines = [self.name, *(f"  {line}" for line in self.facts)]
        lines += [f"  good: {line}" for line in self.good]
        lines += [f"  note: {line}" for line in self.notes]
        lines += [f"  PROBLEM: {line}" for line in self.problems]
        count = len(self.problems)
        verdict = f"{count} problem{'s' if count > 1 else ''}" if count else "nothing wrong"
        return "\n".join([*lines, f"  {verdict}"])


def check_task(
    task: Task, data: Path | None = None, subset: bool = False, jobs: int | None = None
) -> Check:
    """Examine a task thoroughly: its folder, its names and labels, every sample of its audio.

    Parameters
    ----------
    task
        Read with ``strict=False``, so that all problems are listed and not the first alone.
    data
        Data root in which the audio is expected: a problem if it is not there. Without it, absent
        audio is a note.
    subset
        Whether fewer clips or speakers than declared are intended.
    jobs
        Threads that decode; by default one a core.

    Returns
    -------
    Check
    """
    facts = read_facts(task.folder)
    problems = [
        *task.problems,
        *_check_examples(facts, _table_place(facts, task.folder, task.audio)),
    ]
    if not (task.folder / "README.md").is_file():
        problems.append("the folder holds no README.md, which says how to obtain the corpus")
    if task.table is None:
        notes = [f"only the folder was checked, no audio; obtain it from {task.homepage}"]
        if data is not None:
            problems.append(f"no audio of {task.corpus}: expected the folder {data / facts.audio}")
        return Check(task.name, (), tuple(problems), tuple(notes))
    notes = _check_classes(task)
    (notes if subset else problems).extend(_check_counts(task, subset))
    if task.unmatched:
        problems.append(
            f"unmatched files ({len(task.unmatched)}): {clip_checks.some(task.unmatched)}"
        )
    wrong, stray, absent = _check_beside(task, facts)
    problems += wrong
    (notes if subset else problems).extend(stray)
    heard, suspicious, good = _check_audio(task, jobs)
    notes += [*absent, *suspicious, *clip_checks.other_files(task.audio)]
    return Check(task.name, tuple(_summary(task)), (*problems, *heard), tuple(notes), tuple(good))


def _summary(task: Task) -> list[str]:
    table = task.table
    lines = [
        f"audio: {task.audio}",
        f"clips: {task.clips_found} of {task.utterances} declared",
        f"speakers: {task.speakers_found} of {task.speakers} declared",
        f"groups of declared duplicates present: {task.duplicates}",
        f"files ignored: {task.ignored}",
    ]
    for name in task.classes:
        own = table[table["emotion"] == name]
        lines.append(f"class {name}: {len(own)} clips of {own['speaker'].nunique()} speakers")
    lines += [
        f"rating {name}: {table[name].notna().sum()} of {len(table)} clips" for name in task.ratings
    ]
    lines += [f"left out {code}: {count} clips" for code, count in task.left_out.items()]
    for column, what in (("transcript", "text"), ("video", "video")):
        if column in table:
            lines.append(f"{what}: {(table[column] != '').sum()} of {len(table)} clips")
    return lines


def _check_counts(task: Task, subset: bool) -> list[str]:
    pairs = [
        (task.clips_found, task.utterances, "clips"),
        (task.speakers_found, task.speakers, "speakers"),
    ]
    advice = "as intended" if subset else "pass --subset if this is intended"
    return [
        f"{found} of {declared} {what}: a subset; {advice}"
        for found, declared, what in pairs
        if found < declared
    ]


def _check_beside(task: Task, facts: TaskFile) -> tuple[list[str], list[str], list[str]]:
    """What is wrong beside the audio, what belongs to no clip, and what is declared but absent."""
    files = [path.relative_to(task.audio).as_posix() for path in audio.find(task.audio)]
    found: dict[str, Mapping[str, Any]] = {}
    wrong, absent = [], []
    if facts.transcripts:
        texts = read_transcripts(facts.transcripts, task.audio)
        names = " or ".join(table.file for table in facts.transcripts)
        if texts is None:
            absent.append(f"no transcripts: found no table {names} below {task.audio}")
        found[f"the table of transcripts ({names})"] = texts or {}
    for modality, own in facts.vectors.items():
        if modality not in task.vectors:
            absent.append(f"no {modality} vectors: found no file {own.file} below {task.audio}")
            continue
        try:
            found[own.file] = read_vectors(task.vectors[modality])
        except ValueError as error:
            wrong.append(str(error))
    if facts.video:
        found["the video folder"] = _find_videos(facts.video, task.audio)
        if not found["the video folder"]:
            where = (task.audio / facts.video.folder).resolve()
            absent.append(f"no videos: found no *{facts.video.extension} below {where}")
    stray = []
    for where, own in found.items():
        names = of_clips(own, files)[1]
        if names:
            stray.append(
                f"{where} names files that are not there ({len(names)}): {clip_checks.some(names)}"
            )
    return wrong, stray, absent


def _check_classes(task: Task) -> list[str]:
    units = task.table.groupby("emotion")["unit"].nunique()
    return [
        f"class {name} comes from one speaker only: no speaker-disjoint episode can hold it"
        for name in task.classes
        if units.get(name) == 1
    ]


def _check_examples(facts: TaskFile, place: Path | None) -> list[str]:
    """Hold the [examples] of task.toml against its pattern, or its table where that is present."""
    wrong = []
    for example, expected in facts.examples.items():
        found = _describe_example(facts, place, example)
        if found is None:
            wrong.append(f"example {example!r} is not matched")
            continue
        for key, value in expected.items():
            if key not in found:
                wrong.append(f"example {example!r} gives no {key!r}; it gives {', '.join(found)}")
            elif found[key] != value:
                wrong.append(f"example {example!r} gives {key} {found[key]!r}, expected {value!r}")
    return wrong


def _describe_example(facts: TaskFile, place: Path | None, example: str) -> dict[str, str] | None:
    if facts.files:
        found = _by_name(facts.files)(without_extension(example))
    elif facts.table.pattern is not None:
        match = _compile(facts.table.pattern).match(example)
        found = match and match.groupdict(default="")
    elif place is not None:
        found = _by_table(_table_rows(facts.table, place))(without_extension(example))
    else:
        return facts.examples[example]
    if found is None:
        return None
    if facts.source.speaker is not None:
        found["speaker"] = facts.source.speaker.format_map(found)
    code = found["emotion"]
    dropped = code in facts.emotion.drop
    return {**found, "emotion": "drop" if dropped else facts.emotion.mapping.get(code, code)}


def _check_audio(task: Task, jobs: int | None) -> tuple[list[str], list[str], list[str]]:
    """Decode every usable clip; return what is wrong with them, suspicious, and good."""
    from joblib import Parallel, delayed

    files = list(task.table["file"])
    heard = Parallel(n_jobs=jobs or os.cpu_count(), prefer="threads")(
        delayed(clip_checks.listen)(task.audio / file) for file in files
    )
    clique = dict(zip(files, task.table["clique"], strict=True))
    unusable, silent, short = [], [], []
    copies: dict[str, list[str]] = {}
    for file, clip in zip(files, heard, strict=True):
        if clip.error:
            unusable.append(f"{file}: {clip.error}")
            continue
        copies.setdefault(clip.digest, []).append(file)
        if clip.peak < SILENT:
            silent.append(file)
        if clip.seconds < SHORT:
            short.append(f"{file} ({clip.seconds:.2f} s)")
    double = [
        " = ".join(group) for group in copies.values() if len({clique[file] for file in group}) > 1
    ]
    problems = {
        "unusable files": unusable,
        "silent files, peak below -60 dBFS": silent,
        "the same audio under several names, not declared under [duplicates]": double,
    }
    notes = {f"clips shorter than {SHORT} s": short}
    good, suspicious = clip_checks.judge(task.table, heard)
    return _counted(problems), _counted(notes) + suspicious, good


def _counted(findings: dict[str, list[str]]) -> list[str]:
    return [
        f"{what} ({len(items)}): {clip_checks.some(items)}"
        for what, items in findings.items()
        if items
    ]
