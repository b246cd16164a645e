"""What a `task.toml` may say, validated."""

import string
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import pycountry
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from metaser.files import read_toml
from metaser.naming import Section, explain
from metaser.tasks import labels
from metaser.tasks.matching import compile_pattern, match_end
from metaser.tasks.modalities import Transcripts, Vectors, Video, check_modalities

RESERVED = ("file", "unit", "clique")

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]


class _Source(Section):
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


class Files(_Source):
    """``[files]``: a pattern that is matched against the end of each file's path."""

    pattern: Text

    @model_validator(mode="after")
    def _check(self) -> "Files":
        groups = compile_pattern(self.pattern).groupindex
        if "file" in groups:
            raise ValueError("the pattern uses the reserved name 'file'; rename the group")
        self.check_groups(groups, "the pattern")
        return self


class Table(_Source):
    """``[table]``: a table of labels, by its columns or by the pattern of a line."""

    file: Text  # path or glob below the audio folder, or beside task.toml if place = "task"
    place: Literal["audio", "task"] = "audio"
    separator: Text | None = None
    columns: dict[Text, Text] | None = None  # our name -> the table's column
    pattern: Text | None = None  # of a line, where the table has no columns

    @model_validator(mode="after")
    def _check(self) -> "Table":
        if (self.columns is None) == (self.pattern is None):
            raise ValueError("[table] takes either columns or the pattern of a line")
        if self.pattern is not None and self.separator is not None:
            raise ValueError("separator goes with columns; the pattern of a line needs none")
        groups = self.columns or compile_pattern(self.pattern or "").groupindex
        if "file" not in groups:
            raise ValueError(f"[table] gives no 'file'; it gives {sorted(groups)}")
        self.check_groups(groups, "[table]")
        return self


class RatingsTable(Section):
    """``[ratings_table]``: a table of ratings next to the labels."""

    file: Text  # in the task folder, or else below the audio folder
    separator: Text | None = None
    columns: dict[Text, Text]  # our name -> the table's column

    @model_validator(mode="after")
    def _check(self) -> "RatingsTable":
        if "file" not in self.columns:
            raise ValueError(
                f"[ratings_table] gives no 'file'; its columns give {sorted(self.columns)}"
            )
        return self


class Duplicates(Section):
    """``[duplicates]``: files that are one recording, and speakers that are one person."""

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


class TaskFile(Section):
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
    files: Files | None = None
    table: Table | None = None
    emotion: _Emotion
    ratings: dict[Text, Annotated[list[float], Field(min_length=2, max_length=2)]] = {}
    ratings_table: RatingsTable | None = None
    transcripts: list[Transcripts] = []  # the first whose table is present counts
    vectors: dict[Text, Vectors] = {}  # by modality
    video: Video | None = None
    duplicates: Duplicates = Duplicates()
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
                if match_end(compile_pattern(self.files.pattern), name) is None:
                    raise ValueError(
                        f"[duplicates] names {name!r}, which the pattern does not match; "
                        "expected file names without extension"
                    )
        return self

    @property
    def source(self) -> Files | Table:
        """The section that says which clip a file is."""
        source = self.files or self.table
        assert source is not None  # see _check
        return source

    @property
    def groups(self) -> list[str]:
        """Names that the pattern or the table gives, besides `file`."""
        columns = self.table.columns if self.table else None
        names = columns or compile_pattern(self.source.pattern or "").groupindex
        return [name for name in names if name != "file"]

    @property
    def rated(self) -> list[str]:
        """Names that the table of ratings gives, besides `file`."""
        columns = self.ratings_table.columns if self.ratings_table else ()
        return [name for name in columns if name != "file"]


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
        facts = TaskFile.model_validate(read_toml(path))
        if not path.parent.name.startswith(f"{facts.language}_"):
            raise ValueError(
                f"language = {facts.language!r}, but the folder is named {path.parent.name}; "
                f"expected {facts.language}_<corpus>"
            )
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error, TaskFile)}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return facts
