"""A protocol: which methods are compared on which tasks, and how, as a TOML file of values."""

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from metaser.files import bundled

BUNDLED = bundled("benchmarks")
"""The protocols that come with MetaSER."""

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Episodes(_Strict):
    """K-shot episodes: shots and queries a class, and how many episodes a cell has."""

    shots: list[Count]
    queries: Count
    count: Count


class Split(_Strict):
    """A random split of the target: share tested on, and fractions of the rest to learn from."""

    test: Share
    fractions: list[Annotated[float, Field(gt=0, le=1)]]


class TrainingPlan(_Strict):
    """What the outer loop draws from the source tasks, and how long it runs.

    ``shots`` are drawn from at random; ``situations`` is the number of made-up recording
    situations in which every source corpus is heard besides its own, to which ``recordings`` adds
    chosen ones (``{ noise = 10.0 }``, ``{ speed = 1.1 }``, … see ``recording.Situation``);
    ``held_out`` is the share of source speakers kept for validation. The rest are arguments of
    ``training.Training``.
    """

    shots: list[Count] = [5]
    queries: Count = 10
    speakers: Literal["disjoint", "same", "any"] = "disjoint"
    situations: Annotated[int, Field(ge=0)] = 0
    recordings: list[dict[str, Any]] = []
    held_out: Share = 0.2
    updates: Count = 1000
    meta_batch: Count = 8
    rate: Annotated[float, Field(gt=0)] = 1e-3
    validate_every: Count = 50
    validation_episodes: Count = 40
    patience: Count = 6
    engine: Literal["auto", "stacked", "loop"] = "auto"
    compile: bool = False
    mixed_precision: bool = False
    diverged: Literal["stop", "skip"] = "stop"
    mask_frames: Annotated[int, Field(ge=0)] = 0
    mask_channels: Annotated[int, Field(ge=0)] = 0


class Choice(_Strict):
    """Learn each target from some of the sources only, by their distance from its unlabelled clips.

    ``by`` is one of ``selection.UNLABELLED``, of the set-up's front end as it is, not normalised.
    """

    count: Count
    by: Literal["mmd", "proxy_a"] = "mmd"
    order: Literal["nearest", "farthest"] = "nearest"


class Setup(_Strict):
    """Front ends and a backbone, and the methods that run on them with their arguments.

    ``frontend`` is that of the audio, ``text`` that of the transcripts, ``video`` that of the
    videos. Each may be left out, but not all.

    ``batch_norm`` says what becomes of BatchNorm layers, see ``model.settle_batch_norm``.
    ``choose`` lets every target have sources of its own; what it chose is kept in ``sources_for``.
    """

    frontend: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    video: dict[str, Any] | None = None
    normalise: Literal["none", "corpus", "speaker"]
    backbone: dict[str, Any]
    head_hidden: Count | None = None
    batch_norm: Literal["refuse", "task", "group"] = "refuse"
    training: TrainingPlan = TrainingPlan()
    choose: Choice | None = None
    sources_for: dict[str, list[str]] = {}
    methods: dict[str, dict[str, Any]]

    @model_validator(mode="after")
    def _check(self) -> "Setup":
        if not self.frontends:
            raise ValueError("a setup needs a frontend (of the audio), text or video: name one")
        changes = {
            name: getattr(self.training, name)
            for name in ("situations", "recordings", "mask_frames", "mask_channels")
            if getattr(self.training, name)
        }
        if changes and self.frontend is None:
            raise ValueError(
                f"training changes the audio ({', '.join(changes)}), which the setup does not "
                "hear: leave that out, or add a frontend"
            )
        if self.choose is not None and self.frontend is None:
            raise ValueError("choose compares the audio of tasks: add a frontend, or leave it out")
        return self

    @property
    def frontends(self) -> dict[str, dict[str, Any]]:
        """Name and arguments of the front end of each modality."""
        given = {"audio": self.frontend, "text": self.text, "video": self.video}
        return {modality: facts for modality, facts in given.items() if facts is not None}


class Protocol(_Strict):
    """The content of ``benchmarks/<name>.toml``."""

    name: str
    title: str
    description: str
    classes: Annotated[list[str], Field(min_length=2)]
    sources: Annotated[list[str], Field(min_length=1)]
    targets: list[str] = []
    leave_one_language_out: list[int] = []  # seeds with which the sources are targets too
    speakers: Literal["disjoint", "any"] = "disjoint"
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    episodes: Episodes | None = None
    split: Split | None = None
    setups: Annotated[dict[str, Setup], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> "Protocol":
        if (self.episodes is None) == (self.split is None):
            raise ValueError("a protocol has either [episodes] or [split], one of the two")
        if not self.targets and not self.leave_one_language_out:
            raise ValueError("no targets: name some, or set leave_one_language_out = [0]")
        if self.split is not None and self.speakers != "any":
            raise ValueError("[split] ignores speakers: say so with speakers = 'any'")
        stray = [seed for seed in self.leave_one_language_out if seed not in self.seeds]
        if stray:
            raise ValueError(f"leave_one_language_out names seed {stray[0]}, not one of the seeds")
        sizes = self.episodes.shots if self.episodes else self.split.fractions
        for values in (self.classes, self.sources, self.targets, self.seeds, sizes):
            twice = [value for value in values if values.count(value) > 1]
            if twice:
                raise ValueError(f"{twice[0]!r} is named twice in {values}: name it once")
        return self


def read_protocol(name: str | Path) -> Protocol:
    """Read a protocol by the name of a bundled one or the path of a TOML file.

    Raises
    ------
    FileNotFoundError
        If there is none; the bundled ones are named.
    ValueError
        If a key is unknown (the nearest known one is named), missing, or of the wrong type.
    """
    return validated(name, Protocol)


def validated(name: str | Path, kind: type[BaseModel]) -> BaseModel:
    """Read a protocol of some kind; arguments and errors as in ``read_protocol``."""
    path = Path(name)
    if not path.is_file():
        path = BUNDLED / f"{str(name).removesuffix('.toml')}.toml"
    if not path.is_file():
        known = sorted(file.stem for file in BUNDLED.glob("*.toml"))
        raise FileNotFoundError(
            f"there is no protocol {str(name)!r}: give the path of a TOML file, or one of {known}"
        )
    try:
        facts = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    own = facts.get("kind") == "dimensional"
    if own != ("kind" in kind.model_fields):
        command = "dimensional" if own else "benchmark"
        raise ValueError(f"{path} is a protocol for `metaser {command}`: run that instead")
    try:
        return kind.model_validate(facts)
    except ValidationError as error:
        found = (_explain(problem, kind) for problem in error.errors())
        raise ValueError(f"{path}: {'; '.join(found)}") from error


def _section(where: tuple, kind: type[BaseModel]) -> type[BaseModel]:
    """The section of a protocol in which a key stands."""
    for part in where[:-1]:
        if part in kind.model_fields:
            kind = next(iter(_models(kind.model_fields[part].annotation)), kind)
    return kind


def _models(annotation: object) -> list[type[BaseModel]]:
    """Models named in an annotation, such as that of ``dict[str, Setup]`` or ``Split | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _explain(problem: dict, kind: type[BaseModel]) -> str:
    where = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        known = sorted(_section(problem["loc"], kind).model_fields)
        near = get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0)
        return f"unknown key {where}; did you mean {near[0]!r}?"
    if problem["type"] == "missing":
        return f"the key {where} is missing"
    value = "" if problem["type"] == "value_error" else f", not {problem['input']!r}"
    return f"{where or 'protocol'}: {problem['msg'].removeprefix('Value error, ')}{value}"
