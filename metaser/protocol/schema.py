"""A protocol: which methods are compared on which tasks, and how, as a TOML file of values."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from metaser.files import bundled, read_toml
from metaser.naming import Section, explain, nearest
from metaser.outside import File, is_file, is_outside, read_files

BUNDLED = bundled("benchmarks")
"""The protocols that come with MetaSER."""

ProtocolKind = TypeVar("ProtocolKind", bound="ProtocolFile")

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


class Episodes(Section):
    """K-shot episodes: shots and queries per class, and how many episodes a cell has.

    ``unequal`` makes the classes of support and query unequal, see ``episodes.TaskSampler``.
    """

    shots: list[Count]
    queries: Count
    count: Count
    unequal: Annotated[float, Field(gt=0)] | None = None


class Split(Section):
    """A random split of the target: share tested on, and fractions of the rest to learn from."""

    test: Share
    fractions: list[Annotated[float, Field(gt=0, le=1)]]


class Training(Section):
    """How the outer loop runs.

    Parameters
    ----------
    updates : int
        Outer steps at most.
    meta_batch : int
        Episodes per step.
    rate : float
        Adam's learning rate at the start; it falls to 0 along a cosine.
    clip : float
        Largest norm of the gradient.
    validate_every : int
        Steps between validations.
    validation_episodes : int
        Episodes per validation, shared out over the source tasks.
    patience : int
        Validations without gain before training stops.
    engine : {"auto", "stacked", "loop"}
        How the episodes of a step run, see ``training.MetaBatch``.
    compile, mixed_precision : bool
        Compile the stacked step; take its products in bfloat16, but for validation: see
        ``training.MetaBatch``.
    diverged : {"stop", "skip"}
        What to do about an episode whose loss is not finite, or a step whose gradient is not: stop
        the run, or leave the episode (or all of the step's) out and count them.
    mask_frames, mask_channels : int
        SpecAugment: longest of the two stretches of time, and widest of the two bands of channels,
        that are masked in every clip; see ``training.augmentation``. 0 for none.
    """

    updates: Annotated[int, Field(ge=0)] = 1000
    meta_batch: Count = 8
    rate: Annotated[float, Field(ge=0)] = 1e-3
    clip: Annotated[float, Field(gt=0)] = 1.0
    validate_every: Count = 50
    validation_episodes: Count = 40
    patience: Count = 6
    engine: Literal["auto", "stacked", "loop"] = "auto"
    compile: bool = False
    mixed_precision: bool = False
    diverged: Literal["stop", "skip"] = "stop"
    mask_frames: Annotated[int, Field(ge=0)] = 0
    mask_channels: Annotated[int, Field(ge=0)] = 0


class TrainingPlan(Training):
    """How the outer loop runs, and what it draws from the source tasks.

    ``shots`` are drawn from at random; ``situations`` is the number of made-up recording
    situations in which every source corpus is heard in addition to its own, to which ``recordings``
    adds chosen ones (``{ noise = 10.0 }``, ``{ speed = 1.1 }``, … see ``recording.Situation``);
    ``held_out`` is the share of source speakers kept for validation.
    """

    updates: Count = 1000
    rate: Annotated[float, Field(gt=0)] = 1e-3
    shots: list[Count] = [5]
    queries: Count = 10
    speakers: Literal["disjoint", "same", "any"] = "disjoint"
    situations: Annotated[int, Field(ge=0)] = 0
    recordings: list[dict[str, Any]] = []
    held_out: Share = 0.2


class Choice(Section):
    """Learn each target from some of the sources only, by their distance from its unlabelled clips.

    ``by`` is one of ``selection.UNLABELLED``, of the set-up's front end as it is, not normalised.
    """

    count: Count
    by: Literal["mmd", "proxy_a"] = "mmd"
    order: Literal["nearest", "farthest"] = "nearest"


class Voice(Section):
    """What is known of the voices in a target, where ``normalise = "voice"``.

    ``clips`` is the number of unlabelled clips of each voice that are given, never those of the
    query; without it all clips of a voice are, those of the query, too (transductive). ``neutral``
    says that the given clips are neutral ones.
    """

    clips: Count | None = None
    neutral: bool = False

    @model_validator(mode="after")
    def _check(self) -> "Voice":
        if self.neutral and self.clips is None:
            raise ValueError("neutral clips must be counted: set clips, such as clips = 3")
        return self


class Setup(Section):
    """Front ends and a backbone, and the methods that run on them with their arguments.

    ``frontend`` is that of the audio, ``text`` that of the transcripts, ``video`` that of the
    videos. Each may be left out, but not all.

    ``batch_norm`` says what becomes of BatchNorm layers, see ``model.settle_batch_norm``.
    ``choose`` gives every target sources of its own. ``voice`` says what is known of the voices
    where ``normalise = "voice"``.
    """

    frontend: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    video: dict[str, Any] | None = None
    normalise: Literal["none", "corpus", "speaker", "voice"]
    voice: Voice = Voice()
    backbone: dict[str, Any]
    head_hidden: Count | None = None
    batch_norm: Literal["refuse", "task", "group"] = "refuse"
    training: TrainingPlan = TrainingPlan()
    choose: Choice | None = None
    methods: dict[str, dict[str, Any]]

    @model_validator(mode="before")
    @classmethod
    def _forget_choice(cls, content: Any) -> Any:
        """Drop the empty place that version 0.1.0 kept here for chosen sources."""
        if isinstance(content, dict) and content.get("sources_for") == {}:
            return {key: value for key, value in content.items() if key != "sources_for"}
        return content

    @model_validator(mode="after")
    def _check(self) -> "Setup":
        if not self.frontends:
            raise ValueError("a setup needs a frontend (of the audio), text or video: name one")
        if self.normalise != "voice" and self.voice != Voice():
            raise ValueError(
                f"voice needs normalise = 'voice', not {self.normalise!r}: change that, or leave "
                "voice out"
            )
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


class ProtocolFile(Section):
    """What is read from a TOML file that may name Python files."""

    _files: dict[str, File] = PrivateAttr(default_factory=dict)

    @property
    def files(self) -> dict[str, File]:
        """The Python files that it names, as they were when it was read."""
        return self._files


class Protocol(ProtocolFile):
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

    @property
    def sizes(self) -> list[int] | list[float]:
        """Numbers of shots, or fractions of the training data, at which there are cells."""
        if self.episodes is not None:
            return self.episodes.shots
        return self.split.fractions if self.split is not None else []

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
        named: list[list[Any]] = [self.classes, self.sources, self.targets, self.seeds, self.sizes]
        for values in named:
            twice = [value for value in values if values.count(value) > 1]
            if twice:
                raise ValueError(f"{twice[0]!r} is named twice in {values}: name it once")
        return self


def read_protocol(name: str | Path) -> Protocol:
    """Read a protocol by the name of a bundled one or the path of a TOML file.

    Raises
    ------
    FileNotFoundError
        If there is none (the bundled ones are named), or a Python file that it names is not there.
    ValueError
        If a key is unknown (the nearest known one is named), missing, or of the wrong type.
    """
    return validated(name, Protocol)


def validated(name: str | Path, kind: type[ProtocolKind]) -> ProtocolKind:
    """Read a protocol of some kind; arguments and errors as in ``read_protocol``."""
    path = Path(name)
    if not path.is_file():
        path = BUNDLED / f"{str(name).removesuffix('.toml')}.toml"
    if not path.is_file():
        known = sorted(file.stem for file in BUNDLED.glob("*.toml"))
        raise FileNotFoundError(
            f"there is no protocol {str(name)!r}.{nearest(str(name), known)} Give the path of a "
            f"TOML file, or one of {', '.join(known)}"
        )
    try:
        content = read_toml(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    dimensional = content.get("kind") == "dimensional"
    if dimensional != ("kind" in kind.model_fields):
        command = "dimensional" if dimensional else "benchmark"
        raise ValueError(f"{path} is a protocol for `metaser {command}`: run that instead")
    try:
        protocol = kind.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error, kind)}") from error
    protocol._files = read_files(named(content), path.parent)
    return protocol


def named(value: object) -> Iterator[str]:
    """Yield the names of classes outside the package in a protocol, or in a part of it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from (name for name in (key, inner) if is_outside(name) and is_file(name))
            yield from named(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from named(inner)
