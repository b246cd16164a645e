"""A model file: a trained model, everything that is needed to use it, and its measured quality.

It is a safetensors file: numbers after a header of text, and nothing that runs. The key ``metaser``
of the header holds a ``Header`` as JSON. The tensors are ``method.*`` (what was learnt),
``source.centre`` and ``source.spread`` (means and deviations of the sources' features) and, in an
adapted model, ``model.*``, ``own.centre`` and ``own.spread``; where voices are known ``voice.*``,
too. ``source.neutral`` and ``own.neutral`` say where neutral clips lie, where labelled clips told.
"""

import json
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save as serialise
from torch import Tensor, nn

from metaser.adaptation.expect import Band, Expected, Folds, OffsetBand
from metaser.adaptation.fitted import Constants, Fitted, constants_of
from metaser.contracts import FrontEnd, Method, frontend_traits, model_of
from metaser.features.table import Features
from metaser.files import whole
from metaser.methods.inner_loop import Adapted
from metaser.naming import nearest
from metaser.outside import digest_here
from metaser.protocol.build import make_method, stored_frontend, with_encoder
from metaser.protocol.schema import Setup
from metaser.version import version

FORMAT = 3
"""Version of the format; raised when an older MetaSER could not read what is written."""

READ = (1, 2, 3)
"""Formats that are read."""

LIBRARIES = ("librosa", "numpy", "soundfile", "soxr", "torch")
"""Packages whose versions can change features or scores, in addition to the front end's own."""

PRIOR_CLIPS = 10.0
"""Number of clips that the sources' means and deviations count as, next to the given clips.

See benchmarks/README.md for how it was chosen.
"""


class Part(BaseModel):
    """A part of the header; numbers may be NaN, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")


class SourceTask(Part):
    """A task that was learnt from."""

    name: str
    version: int
    language: str
    corpus: str
    licence: str
    reference: str
    synthetic: bool
    clips: int
    speakers: int


class Measured(Part):
    """Quality on left-out tasks after adapting to some clips per class.

    Attributes
    ----------
    shots : int
        Clips per class; 0 is zero-shot.
    uar, low, high : float
        UAR in [0, 1], with the ends of its 95 % interval over tasks and draws.
    chance : float
        UAR of guessing.
    temperature : float
        The temperature that fits all tasks best.
    ece_before, ece_after : float
        Expected calibration error without a temperature, and with the one that fits the other
        tasks best.
    tasks : list of str
        The left-out tasks.
    draws : int
        Number of draws over all tasks.
    """

    shots: int
    uar: float
    low: float
    high: float
    chance: float
    temperature: float
    ece_before: float
    ece_after: float
    tasks: list[str]
    draws: int


class Adaptation(Part):
    """What a model was adapted to, and what to expect of it.

    Attributes
    ----------
    name : str
        Name of the task or folder of the clips.
    task_version : int or None
        Version of the task; None for a folder.
    synthetic : bool
        Whether the clips are synthetic speech.
    classes : list of str
        Classes of the clips.
    clips, shots : int
        Number of clips, and number of clips of the rarest class.
    speakers : int or None
        Number of speakers; None where it is not known.
    contents : list of str
        Digests of the audio of the clips.
    uar, low, high, folds, seen, unadapted, weight, contradicted
        What to expect, see ``Expected``.
    temperature : float
        What scores are divided by.
    """

    name: str
    task_version: int | None
    synthetic: bool
    classes: list[str]
    clips: int
    shots: int
    speakers: int | None
    contents: list[str]
    uar: float
    low: float
    high: float
    folds: Folds
    seen: float
    temperature: float
    trust: float = 0.0  # in the statistics of voices, where they are known
    unadapted: float = float("nan")
    weight: float = 1.0
    contradicted: bool = False

    @property
    def expected(self) -> Expected:
        """The UAR to expect on new clips."""
        return Expected(**{field.name: getattr(self, field.name) for field in fields(Expected)})


class Header(Part):
    """Everything in a model file besides its tensors."""

    format: int
    metaser: str
    libraries: dict[str, str]
    protocol: str
    setup_name: str
    setup: Setup
    method: str
    classes: list[str]
    channels: dict[str, int]
    domains: dict[str, int]
    seed: int
    sources: list[SourceTask]
    left_out: str
    quality: list[Measured]
    bands: list[Band | OffsetBand]
    adaptation: Adaptation | None = None
    outside: dict[str, str] = {}  # digests of the source of each outside class

    @property
    def synthetic(self) -> bool:
        """Whether the model has learnt from synthetic speech only."""
        return all(source.synthetic for source in self.sources)


NEUTRAL = "neutral"
"""The class whose clips can tell how a voice sounds by itself."""

UNADAPTED_TRUST = 0.5
"""How much the statistics of voices count where no labelled clip tells whether they are safe."""


@dataclass(frozen=True)
class ModelFile:
    """The content of a model file.

    Attributes
    ----------
    header : Header
        What it says about itself.
    method : Method
        What was learnt, ready to adapt.
    source : Constants
        Of the sources' features.
    fitted : Fitted or None
        What adapting to a language gave.
    encoder : str or Path, optional
        Folder of the pretrained encoder on this machine, if not where the header says. It is not
        written.
    """

    header: Header
    method: Method
    source: Constants
    fitted: Fitted | None = None
    encoder: str | Path | None = None

    @property
    def adapted(self) -> Adapted | None:
        """The model adapted to a language, for clips normalised by the language."""
        return None if self.fitted is None else self.fitted.adapted

    @property
    def own(self) -> Constants | None:
        """By which that language's features are normalised."""
        return None if self.fitted is None else self.fitted.own

    @property
    def predictor(self) -> Adapted:
        """The adapted model; if there is none, the trained one."""
        if self.adapted is not None:
            return self.adapted
        everything = torch.ones(len(self.header.classes), dtype=torch.bool)
        model = model_of(self.method)
        assert model is not None  # a recipe takes no method without one
        return Adapted(model, everything)

    @property
    def normalises(self) -> bool:
        """Whether features are normalised."""
        return self.header.setup.normalise != "none"

    @property
    def temperature(self) -> float:
        """What scores are divided by to make them probabilities."""
        if self.header.adaptation is not None:
            return self.header.adaptation.temperature
        return measured_at(self.header, 0).temperature

    @property
    def knows_voices(self) -> bool:
        """Whether features are normalised by who speaks, where that is known and safe."""
        return self.header.setup.normalise == "voice"

    def fitted_to(self, features: Features, rows: np.ndarray) -> Fitted:
        """What scores clips: what adapting gave, or the model that training left for these."""
        if self.fitted is not None:
            return self.fitted
        own = self.support_constants(features, rows)
        by_voice = self.predictor if self.knows_voices else None
        return Fitted(self.predictor, own, by_voice, UNADAPTED_TRUST if by_voice else 0.0)

    def support_constants(self, features: Features, rows: np.ndarray) -> Constants:
        """Return what a language is normalised by, from some of its clips."""
        if not self.normalises:
            return Constants(np.zeros(1, np.float32), np.ones(1, np.float32))
        return constants_of(features, rows, self.source, (PRIOR_CLIPS, PRIOR_CLIPS))

    def frontend(self) -> FrontEnd:
        """Return the front end that turns clips into frames.

        Raises
        ------
        ModuleNotFoundError
            If it needs an extra that is not installed; the message names the command.
        FileNotFoundError
            If its pretrained encoder is not there.
        ValueError
            If the encoder is another one than the model was made with.
        """
        setup = self.header.setup
        return stored_frontend(setup if self.encoder is None else with_encoder(setup, self.encoder))


def measured_at(header: Header, shots: int) -> Measured:
    """Return the quality at the largest measured number of shots that is at most ``shots``.

    Where there is none, it is the quality at the smallest.
    """
    below = [measured for measured in header.quality if measured.shots <= shots]
    return max(below, key=lambda measured: measured.shots) if below else header.quality[0]


def library_versions(frontend: object) -> dict[str, str]:
    """Return the versions of the packages that a model's numbers depend on."""
    names = sorted({*LIBRARIES, *frontend_traits(frontend).libraries})
    return {name: package_version(name) for name in names}


def other_versions(header: Header) -> list[str]:
    """Return a sentence per package whose version here is not the one the model was made with."""
    found = []
    for name, theirs in header.libraries.items():
        try:
            ours = package_version(name)
        except PackageNotFoundError:
            ours = "absent"
        if ours != theirs:
            found.append(f"{name} was {theirs} and is {ours}")
    return found


def save(path: str | Path, file: ModelFile) -> None:
    """Write a model file, whole or not at all."""
    assert isinstance(file.method, nn.Module)  # as every method that learns
    tensors = {f"method.{name}": value for name, value in _learnt(file.method).items()}
    tensors |= _constant_tensors("source", file.source)
    if file.fitted is not None:
        heads = {"model": file.fitted.adapted, "voice": file.fitted.by_voice}
        for place, head in heads.items():
            learnt = {} if head is None else _learnt(head.model)
            tensors |= {f"{place}.{name}": value for name, value in learnt.items()}
        tensors |= _constant_tensors("own", file.fitted.own)
    tensors = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    unused = set() if file.header.outside else {"outside"}
    header = {"metaser": file.header.model_dump_json(exclude=unused)}
    with whole(path) as part:
        part.write_bytes(serialise(tensors, metadata=header))


def read_header(path: str | Path) -> Header:
    """Read the header of a model file alone.

    Raises
    ------
    FileNotFoundError, ValueError
        As in ``load``.
    """
    return _header(path, _open(path)[1])


def load(path: str | Path, encoder: str | Path | None = None) -> ModelFile:
    """Read a model file; its scores are bit-equal to those of the model that was written.

    Parameters
    ----------
    path : str or Path
        The file, or the name of a model aboard.
    encoder : str or Path, optional
        Folder of the pretrained encoder by which the model hears, in place of where the file says.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or no such folder.
    ModuleNotFoundError
        If the front end needs an extra that is not installed; the message names the command.
    ValueError
        If the file is cut off, is no model file of MetaSER, or is of another format; or if an
        encoder is named for a model that does not hear by one.
    """
    tensors, metadata = _open(path)
    header = _header(path, metadata)

    _check_outside(path, header)
    setup = header.setup if encoder is None else with_encoder(header.setup, encoder)

    def build() -> Any:
        return make_method(
            header.method,
            setup,
            classes=len(header.classes),
            stored=header.channels,
            seed=0,
            domains=header.domains,
        )

    method = build()
    _fill(path, method, _below("method.", tensors))
    source = _constants("source", tensors)
    if header.adaptation is None:
        return ModelFile(header, method, source, encoder=encoder)
    present = torch.tensor([name in header.adaptation.classes for name in header.classes])

    def head(part: str) -> Adapted:
        model = build().model
        _fill(path, model, _below(f"{part}.", tensors))
        return Adapted(model, present)

    own, trust = _constants("own", tensors), header.adaptation.trust
    voiced = any(name.startswith("voice.") for name in tensors)
    fitted = Fitted(head("model"), own, head("voice") if voiced else None, trust)
    return ModelFile(header, method, source, fitted, encoder)


def _check_outside(path: str | Path, header: Header) -> None:
    """Refuse a file that needs outside classes which are not here, or have changed.

    A class that a file names runs only if its source is on this machine already, unchanged.
    """
    for name, digest in header.outside.items():
        try:
            here = digest_here(name)
        except (ModuleNotFoundError, FileNotFoundError, ValueError) as error:
            raise type(error)(
                f"{path} was made with {name!r}, a class that must be here to use the file: {error}"
            ) from error
        if here != digest:
            raise ValueError(
                f"{path} was made with another source of {name!r} (digest {digest}, here {here}): "
                "use the version that the file was made with, or make the file again"
            )


def _learnt(module: nn.Module) -> dict[str, Tensor]:
    """Return the state without frozen parameters, such as a pretrained encoder's."""
    frozen = {name for name, value in module.named_parameters() if not value.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def _constant_tensors(name: str, constants: Constants) -> dict[str, Tensor]:
    """Return constants as tensors, with their names in a file."""
    parts = {
        "centre": constants.centre,
        "spread": constants.spread,
        "neutral": constants.neutral,
    }
    return {
        f"{name}.{part}": torch.from_numpy(values)
        for part, values in parts.items()
        if values is not None
    }


def _constants(name: str, tensors: dict[str, Tensor]) -> Constants:
    """Return the constants that ``_constant_tensors`` named."""
    own = _below(f"{name}.", tensors)
    return Constants(**{part: values.numpy() for part, values in own.items()})


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, named without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _fill(path: str | Path, module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load weights into a module; refuse any that are missing, unknown or of another shape."""
    wanted = _learnt(module)
    shared = wanted.keys() & state.keys()
    fitting = {name for name in shared if wanted[name].shape == state[name].shape}
    wrong = sorted((wanted.keys() | state.keys()) - fitting)
    if wrong:
        raise ValueError(
            f"{path}: the weights must fit the model that this version of MetaSER ({version()}) "
            f"builds, but {', '.join(wrong[:3])} do not: use the version that made the file"
        )
    module.load_state_dict(state, strict=False)
    module.eval()


ABOARD = Path(__file__).parent.parent / "models"
"""Models that come with MetaSER; README.md there states their licence."""


def aboard() -> dict[str, Path]:
    """Return the models that come with MetaSER, by name."""
    return {path.stem: path for path in sorted(ABOARD.glob("*.safetensors"))}


def find_model(model: str | Path) -> Path:
    """Return the file of a model: itself, or the one aboard of that name.

    Raises
    ------
    FileNotFoundError
        If there is neither; the names of those aboard are told.
    """
    path, known = Path(model), aboard()
    if path.is_file():
        return path
    if str(model) in known:
        return known[str(model)]
    raise FileNotFoundError(
        f"a model must be a file that `metaser train` made or one aboard ({', '.join(known)}), "
        f"and there is none at {path}.{nearest(str(model), known)}"
    )


def _open(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file and the texts of its header."""
    path = find_model(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = file.keys()  # the file itself cannot be iterated over
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} must be a model file, but is cut off or of another kind ({error}): fetch or "
            "make it again"
        ) from error


def _header(path: str | Path, metadata: dict[str, str]) -> Header:
    """Return the header that the texts of a safetensors file hold."""
    if "metaser" not in metadata:
        raise ValueError(
            f"{path} must be a model file of MetaSER, not another safetensors file: choose "
            "one that `metaser train` made"
        )
    facts = json.loads(metadata["metaser"])
    if facts.get("format") not in READ:
        raise ValueError(
            f"{path} must be of a format that this MetaSER {version()} reads "
            f"({', '.join(map(str, READ))}), not of format {facts.get('format')}, made by "
            f"MetaSER {facts.get('metaser')}: install the version that made the file"
        )
    try:
        return Header.model_validate_json(metadata["metaser"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{path}: the header must be valid, but is damaged ({where}: {first['msg']}): make the "
            "file again"
        ) from error
