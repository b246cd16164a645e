"""The contracts: what a front end, a backbone, a method and outer terms must have, and may have.

Whatever fits a contract works, whoever wrote it; there is nothing to inherit from. What must be
there is written down as a ``typing.Protocol``. What may be there besides, and is heeded if it is,
is a *trait*: ``method_traits`` and ``frontend_traits`` read them in one place, with the value that
stands where one is absent. All other code asks the traits, never the object.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from metaser.batch import Batch, EpisodeBatch, Padded
from metaser.naming import MODALITIES, kind_of

Predictor = Callable[[dict[str, Padded]], Tensor]
"""From the modalities of some clips to scores (clips, classes) or ratings (clips, dimensions)."""


@runtime_checkable
class FrontEnd(Protocol):
    """From a waveform to frames of features.

    A frozen dataclass whose fields are its arguments, so that ``repr`` tells two settings apart.
    """

    rate: int
    """Samples per second that it wants; clips are resampled to it."""

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Return frames (frames, channels) in float32 for a waveform (samples,) in [-1, 1].

        Every clip gives the same channels and at least one frame, however short it is.
        """
        ...


@runtime_checkable
class Backbone(Protocol):
    """An ``nn.Module`` from padded frames to one embedding per clip.

    The first argument of its constructor is ``channels``. Those of ``forward`` are named by the
    modalities that it takes: ``audio``, ``text``, ``video``; it needs those without a default.
    Padding must not change the embedding.
    """

    dim: int
    """Numbers per embedding."""

    def forward(self, audio: Padded) -> Tensor:
        """Return embeddings (clips, dim) of padded frames (clips, frames, channels)."""
        ...


@runtime_checkable
class Method(Protocol):
    """How a model adapts to labelled clips.

    One that learns over episodes is an ``nn.Module`` with ``loss(episode)``, see
    ``LearningMethod``; one that needs the source clips has ``fit(sources)``, see ``FittedMethod``.
    It may have both, or neither.
    """

    def adapt(self, support: Batch) -> Predictor:
        """Return a predictor for the language of some labelled clips; the method stays as it is."""
        ...


@runtime_checkable
class LearningMethod(Method, Protocol):
    """A method that learns over episodes: an ``nn.Module`` whose constructor takes a ``model``."""

    def loss(self, episode: EpisodeBatch) -> Tensor:
        """Return the loss of an episode, a scalar (or one per task for a stack of episodes)."""
        ...


@runtime_checkable
class FittedMethod(Method, Protocol):
    """A method that is given the labelled clips of the source tasks before it adapts."""

    def fit(self, sources: Sequence[Batch]) -> None:
        """Take the clips of the source tasks, one batch per task; called after training."""
        ...


@runtime_checkable
class OuterTerms(Protocol):
    """Terms that a method adds to its outer loss."""

    def __call__(self, model: nn.Module, episode: EpisodeBatch, progress: float) -> Tensor:
        """Return the sum of the terms; ``progress`` is the share of the training that is over."""
        ...

    def catch_up(self, model: nn.Module, episodes: Sequence[EpisodeBatch], total: int) -> None:
        """Do what precedes an outer step, such as training adversaries."""
        ...


@dataclass(frozen=True)
class MethodTraits:
    """What a method may have besides ``adapt``.

    Attributes
    ----------
    learns : bool
        Whether it is trained over episodes: it has ``loss`` and no attribute ``pretrain = False``.
    fits : bool
        Whether it is given the source clips: it has ``fit`` and no ``use_sources = False``.
    order : {"mixed", "sequential"}
        Episodes of all source tasks mixed, or one task after the other (attribute ``order``).
    stackable : bool
        Whether ``loss`` also takes a stack of episodes and returns one loss per task.
    second_order : bool
        Whether its gradient needs second derivatives of the model.
    pairs_tasks : bool
        Whether support and query of an episode come from two source tasks.
    hears_other : bool
        Whether ``EpisodeBatch.other`` is to hold clips of another source task.
    shows_progress : bool
        Whether it has ``progress``, which is set to the share of the training that is over.
    terms : OuterTerms or None
        Terms of its outer loss that ``catch_up`` before each step.
    validation_loss : callable or None
        What to validate by: its own ``validation_loss(episode)``, or ``loss``.
    adaptation : frozenset of str
        Arguments that matter only after training (``ADAPTATION``): methods that differ in these
        alone share a training.
    takes_model, takes_domains : bool
        Whether its constructor wants a ``model``, and ``domains``: the number of speakers and of
        corpora of the sources, which ``Batch.domains`` numbers for each clip.
    takes_channels : bool
        Whether its constructor wants ``channels`` and ``classes``: how many of each there are.
    knows_speakers : bool
        Whether ``adapt`` is to be told who speaks: ``Batch.domains["speaker"]`` of the support.
    """

    learns: bool = False
    fits: bool = False
    order: Literal["mixed", "sequential"] = "mixed"
    stackable: bool = False
    second_order: bool = False
    pairs_tasks: bool = False
    hears_other: bool = False
    shows_progress: bool = False
    terms: OuterTerms | None = None
    validation_loss: Callable[[EpisodeBatch], Tensor] | None = None
    adaptation: frozenset[str] = frozenset()
    takes_model: bool = False
    takes_domains: bool = False
    takes_channels: bool = False
    knows_speakers: bool = False

    @property
    def wants_partner(self) -> bool:
        """Whether each episode needs a second source task."""
        return self.pairs_tasks or self.hears_other


def method_traits(method: Any, arguments: dict[str, Any] | None = None) -> MethodTraits:
    """Read the traits of a method, or of its class before it is built.

    Parameters
    ----------
    method : Method or class
        The class may be an entry of ``METHODS`` with presets.
    arguments : dict, optional
        What a class is going to be built with; decides ``pretrain`` and ``use_sources``.
    """
    kind = kind_of(method)
    given = dict(getattr(method, "keywords", {})) | (arguments or {})
    constructor = inspect.signature(kind).parameters if inspect.isclass(kind) else {}

    def value(name: str, default: Any) -> Any:
        if name in given:
            return given[name]
        held = getattr(kind, name, default)
        return default if isinstance(held, property) else held

    default = {name: one.default for name, one in constructor.items()}
    loss = getattr(kind, "loss", None)
    return MethodTraits(
        learns=loss is not None and bool(value("pretrain", default.get("pretrain", True))),
        fits=hasattr(kind, "fit") and bool(value("use_sources", default.get("use_sources", True))),
        order=value("order", "mixed"),
        stackable=bool(value("stackable", False)),
        second_order=bool(value("second_order", False)),
        pairs_tasks=bool(value("pairs_tasks", False)),
        hears_other=bool(value("hears_other", False)),
        shows_progress=hasattr(kind, "progress"),
        terms=None if inspect.isclass(kind) else getattr(kind, "terms", None),
        validation_loss=getattr(kind, "validation_loss", loss),
        adaptation=frozenset(getattr(kind, "ADAPTATION", ())),
        takes_model="model" in constructor,
        takes_domains="domains" in constructor,
        takes_channels="channels" in constructor,
        knows_speakers=bool(value("knows_speakers", False)),
    )


def changing_losses(method: Any) -> list[str]:
    """Return the arguments that make a method's loss depend on how much of the training is over."""
    names = ("first_order_share", "multi_step_share", "terms")
    return [name for name in names if getattr(method, name, None)]


def model_of(method: Any) -> nn.Module | None:
    """Return the model inside a method that learns; None if it has none."""
    return getattr(method, "model", None)


def generated_quality(method: Any) -> Any:
    """Return how good the clips are that a method generated last (a dataclass); None if none."""
    return getattr(method, "quality", None)


def evidence_of(predictor: Any) -> float | None:
    """Return how well the labelled clips speak for what a method learnt from them.

    It is a log-probability of the clips of one speaker as foretold from those of the others
    (attribute ``evidence`` of what ``adapt`` returned); None if the method does not say.
    """
    return getattr(predictor, "evidence", None)


def learnt_size(method: Any) -> int:
    """Return how many numbers a method learns."""
    parameters = method.parameters() if isinstance(method, nn.Module) else ()
    return sum(value.numel() for value in parameters if value.requires_grad)


@dataclass(frozen=True)
class FrontEndTraits:
    """What a front end may have besides ``rate`` and being called.

    Attributes
    ----------
    modality : {"audio", "text", "video"}
        What it reads (attribute ``modality``).
    rate : int or None
        Samples per second; None for one that reads no sound.
    learnable : bool
        Whether it is an ``nn.Module`` that is trained with the model.
    libraries : tuple of str
        Packages, besides those that all front ends need, whose version decides its numbers
        (``LIBRARIES``).
    trained : bool
        Whether it comes trained, at one rate (``TRAINED``).
    as_is : bool
        Whether what it reads (if it is learnt) or gives is neither normalised nor masked
        (``AS_IS``).
    engine : str
        What computes, where there is a choice (attribute ``engine``).
    revision, weights : str
        Version of a pretrained model, and the digest of its tensors, which tells what it is
        wherever it came from; empty without one.
    adapts : bool
        Whether inner loops change a learnable one (attribute ``adapts``).
    """

    modality: Literal["audio", "text", "video"] = "audio"
    rate: int | None = None
    learnable: bool = False
    libraries: tuple[str, ...] = ()
    trained: bool = False
    as_is: bool = False
    engine: str = ""
    revision: str = ""
    weights: str = ""
    adapts: bool = True


def frontend_traits(frontend: Any) -> FrontEndTraits:
    """Read the traits of a front end, or of its class."""
    kind = kind_of(frontend)
    is_class = inspect.isclass(kind)
    return FrontEndTraits(
        modality=getattr(kind, "modality", "audio"),
        learnable=issubclass(kind if is_class else type(kind), nn.Module),
        libraries=tuple(getattr(kind, "LIBRARIES", ())),
        trained=bool(getattr(kind, "TRAINED", False)),
        as_is=bool(getattr(kind, "AS_IS", False)),
        rate=None if is_class else getattr(kind, "rate", None),
        engine="" if is_class else getattr(kind, "engine", ""),
        revision="" if is_class else getattr(extracted(kind), "revision", ""),
        weights="" if is_class else getattr(extracted(kind), "weights", ""),
        adapts=bool(getattr(kind, "adapts", True)),
    )


def extracted(frontend: Any) -> Any:
    """Return the front end whose frames are stored: itself, or what a learnable one reads."""
    return getattr(frontend, "extracted", frontend)


def compute_many(frontend: Any) -> Callable[[list], list[np.ndarray]]:
    """Return how to compute the frames of several clips: ``many``, or one after the other."""
    many = getattr(frontend, "many", None)
    return many if many is not None else lambda clips: [frontend(clip) for clip in clips]


def modalities_of(backbone: Any) -> dict[str, bool]:
    """Return the modalities that a backbone's ``forward`` takes, each with whether it needs it.

    Empty for a plain module, whose ``forward`` has other arguments.
    """
    takes = dict(inspect.signature(kind_of(backbone).forward).parameters)
    takes.pop("self", None)
    needs = {name: value.default is value.empty for name, value in takes.items()}
    return needs if needs.keys() <= set(MODALITIES) else {}


def check_method(kind: Any, name: str) -> None:
    """Refuse a class that is no method.

    Raises
    ------
    ValueError
        If it lacks a part of the contract; the message says which and what came.
    """
    real = kind_of(kind)
    if not inspect.isclass(real):
        raise ValueError(f"the method {name!r} must be a class with adapt(support), not {real!r}")
    if not callable(getattr(real, "adapt", None)):
        members = [key for key in vars(real) if not key.startswith("_")]
        raise ValueError(
            f"the method {name!r} must have adapt(support), which {real.__name__} lacks; it has "
            f"{', '.join(sorted(members)) or 'nothing'}: add it, see CONTRIBUTING.md"
        )
    if hasattr(real, "loss") and not issubclass(real, nn.Module):
        raise ValueError(
            f"the method {name!r} has loss(episode), so it must be an nn.Module, but "
            f"{real.__name__} is none: inherit from torch.nn.Module, or take loss away"
        )
    if hasattr(real, "loss") and "model" not in inspect.signature(real).parameters:
        raise ValueError(
            f"the method {name!r} has loss(episode), so its constructor must take a model, but "
            f"{real.__name__} takes {', '.join(inspect.signature(real).parameters) or 'nothing'}: "
            "add the argument model"
        )


def check_frontend(frontend: Any, name: str) -> None:
    """Refuse an object that is no front end.

    Raises
    ------
    ValueError
        If it cannot be called, or has no rate although it reads sound.
    """
    if not callable(frontend):
        raise ValueError(
            f"the front end {name!r} must be called with a waveform, but "
            f"{type(frontend).__name__} has no __call__: add it, see CONTRIBUTING.md"
        )
    reads = extracted(frontend)
    rate = getattr(reads, "rate", None)
    if frontend_traits(reads).modality == "audio" and not (isinstance(rate, int) and rate > 0):
        raise ValueError(
            f"the front end {name!r} must have a rate, in samples per second, above 0, not "
            f"{rate!r}: add a field rate: int = 16000"
        )


def check_backbone(kind: Any, name: str) -> None:
    """Refuse a class that is no ``nn.Module``.

    Raises
    ------
    ValueError
        If it is none; the message says what came.
    """
    real = kind_of(kind)
    if not (inspect.isclass(real) and issubclass(real, nn.Module)):
        raise ValueError(
            f"the backbone {name!r} must be a class that inherits from nn.Module, not {real!r}"
        )
