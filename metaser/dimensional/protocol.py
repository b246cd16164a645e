"""A protocol of ratings: which ways of predicting them are compared on which tasks, as TOML."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from metaser.dimensional.fusion import MOST_STAGES
from metaser.naming import Section
from metaser.protocol.schema import Count, ProtocolFile, validated

Positive = Annotated[float, Field(gt=0)]


class View(Section):
    """A front end and the network that predicts ratings from its features.

    Attributes
    ----------
    frontend : dict
        Name and arguments of the front end. It must not be a learnable one.
    normalise : {"none", "corpus", "speaker"}
        Which clips share a mean and a deviation, see ``features.table.normalise``.
    network : dict
        Name and arguments of the network: one of ``BACKBONES``, with a dense layer as its head, or
        ``frames`` for a ``FrameRater``.
    """

    frontend: dict[str, Any]
    normalise: Literal["none", "corpus", "speaker"]
    network: dict[str, Any]


class Learning(Section):
    """How a network learns: arguments of ``rating.tuned``."""

    steps: Count
    rate: Positive
    batch_size: Annotated[int, Field(ge=2)] = 64


class Adaptation(Section):
    """How views adapt to a few rated clips of a target.

    Attributes
    ----------
    views : list of str
        The views that adapt.
    shots : list of int
        Numbers of rated clips to adapt to, at least 2 each.
    learning : Learning
        How a trained network adapts. One from scratch learns as in ``[learning]`` of the protocol.
    """

    views: Annotated[list[str], Field(min_length=1)]
    shots: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)]
    learning: Learning


class Meta(Section):
    """How the views of ``[adaptation]`` are meta-learnt, see ``meta.meta_learnt``."""

    updates: Count
    meta_batch: Count = 4
    queries: Annotated[int, Field(ge=2)] = 32
    inner_steps: Count = 5
    inner_rate: Positive
    rate: Positive = 1e-3
    adapt_steps: Count = 10


class Fusion(Section):
    """Which views are fused, and how.

    Attributes
    ----------
    views : list of str
        The views whose predictions are fused.
    stages : int
        Stages of the multistage fusion.
    strength : float
        C of the support vector regressions.
    """

    views: Annotated[list[str], Field(min_length=2)]
    stages: Annotated[int, Field(ge=2, le=MOST_STAGES)] = MOST_STAGES
    strength: Positive = 0.1


class DimensionalProtocol(ProtocolFile):
    """The content of ``benchmarks/<name>.toml`` with ``kind = "dimensional"``.

    With ``sources``, models learn from these and are scored on the targets. The predictions that a
    fusion learns from are then made with one language left out at a time. Without ``sources``, each
    target is cross-validated in ``folds`` parts that share no speaker.
    """

    kind: Literal["dimensional"]
    name: str
    title: str
    description: str
    ratings: Annotated[list[str], Field(min_length=1)]
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    sources: list[str] = []
    targets: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    folds: Annotated[int, Field(ge=2)] = 5
    views: Annotated[dict[str, View], Field(min_length=1)]
    learning: Learning
    adaptation: Adaptation | None = None
    meta: Meta | None = None
    fusion: Fusion | None = None

    @model_validator(mode="after")
    def _check(self) -> "DimensionalProtocol":
        self._check_names()
        self._check_adaptation()
        self._check_views()
        return self

    def _check_names(self) -> None:
        """Refuse names that come twice, targets among the sources, and weights of no rating."""
        named: list[list[Any]] = [self.ratings, self.sources, self.targets, self.seeds]
        for values in named:
            twice = [value for value in values if values.count(value) > 1]
            if twice:
                raise ValueError(f"{twice[0]!r} is named twice in {values}: name it once")
        both = sorted(set(self.sources) & set(self.targets))
        if both:
            raise ValueError(
                f"no model may learn from a target, but {both[0]!r} is a source and a target: "
                "remove it from one of the two"
            )
        stray = sorted(set(self.weights) - set(self.ratings))
        if stray:
            raise ValueError(
                f"weights must be of {' or '.join(self.ratings)}, not of {stray[0]!r}: remove it, "
                "or add it to ratings"
            )

    def _check_adaptation(self) -> None:
        """Refuse adaptation without sources, and meta-learning of what cannot adapt."""
        if self.adaptation is not None and not self.sources:
            raise ValueError(
                "[adaptation] needs sources, which its models learn from first: name some, or "
                "remove [adaptation]"
            )
        if self.meta is None:
            return
        if self.adaptation is None:
            raise ValueError(
                "[meta] needs [adaptation], which says which views adapt and to how many clips: "
                "add it, or remove [meta]"
            )
        for view in self.adaptation.views:
            if view in self.views and self.views[view].network.get("name") == "frames":
                raise ValueError(
                    f"[meta] needs a network that rates clips, but that of {view!r} rates frames: "
                    "take one of the backbones, or remove the view from [adaptation]"
                )

    def _check_views(self) -> None:
        """Refuse a view that a section names and the protocol does not have."""
        for section in (self.adaptation, self.fusion):
            for view in section.views if section else ():
                if view not in self.views:
                    raise ValueError(
                        f"views must be among {', '.join(sorted(self.views))}, not {view!r}: add "
                        f"[views.{view}], or remove it from the section that names it"
                    )


def read_dimensional(name: str) -> DimensionalProtocol:
    """Read a protocol of ratings by its name or path; errors are those of ``read_protocol``."""
    return validated(name, DimensionalProtocol)
