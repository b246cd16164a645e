"""A protocol of ratings: which ways of predicting them are compared on which tasks, as TOML."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from metaser.dimensional.fusion import MOST_STAGES
from metaser.naming import Section
from metaser.protocol.schema import Count, ProtocolFile, validated

Positive = Annotated[float, Field(gt=0)]


class View(Section):
    """A front end and the network that predicts ratings from it.

    ``network`` names one of ``BACKBONES`` with its arguments, on which a dense layer follows, or
    ``frames``, a ``FrameRater``.
    """

    frontend: dict[str, Any]
    normalise: Literal["none", "corpus", "speaker"]
    network: dict[str, Any]


class Learning(Section):
    """Arguments of ``rating.tuned``."""

    steps: Count
    rate: Positive
    batch_size: Annotated[int, Field(ge=2)] = 64


class Adaptation(Section):
    """Which views adapt to so many rated clips of a target, and how."""

    views: Annotated[list[str], Field(min_length=1)]
    shots: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)]
    learning: Learning


class Meta(Section):
    """How the views of ``adaptation`` are meta-learnt, see ``meta.meta_learnt``."""

    updates: Count
    meta_batch: Count = 4
    queries: Annotated[int, Field(ge=2)] = 32
    inner_steps: Count = 5
    inner_rate: Positive
    rate: Positive = 1e-3
    adapt_steps: Count = 10


class Fusion(Section):
    """Which views are fused, in how many stages, and the C of the regressions."""

    views: Annotated[list[str], Field(min_length=2)]
    stages: Annotated[int, Field(ge=2, le=MOST_STAGES)] = MOST_STAGES
    strength: Positive = 0.1


class DimensionalProtocol(ProtocolFile):
    """The content of ``benchmarks/<name>.toml`` with ``kind = "dimensional"``.

    With ``sources``, models learn from these and are scored on the targets, and predictions that a
    fusion learns from are made with one language left out at a time. Without, each target is
    cross-validated: in each of ``folds`` parts are other speakers.
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
        for values in (self.ratings, self.sources, self.targets, self.seeds):
            twice = [value for value in values if values.count(value) > 1]
            if twice:
                raise ValueError(f"{twice[0]!r} is named twice in {values}: name it once")
        both = sorted(set(self.sources) & set(self.targets))
        if both:
            raise ValueError(f"{both[0]!r} is a source and a target: a target must be unheard")
        stray = sorted(set(self.weights) - set(self.ratings))
        if stray:
            raise ValueError(f"weights names {stray[0]!r}, which is not among {self.ratings}")
        if self.adaptation is not None and not self.sources:
            raise ValueError("[adaptation] needs sources, from which the models come")
        if self.meta is not None:
            if self.adaptation is None:
                raise ValueError("[meta] needs [adaptation], which says which views, and to what")
            for view in self.adaptation.views:
                if view in self.views and self.views[view].network.get("name") == "frames":
                    raise ValueError(
                        f"[meta] needs a network that rates clips, and {view!r} rates frames: take "
                        "one of the backbones, or leave the view out of [adaptation]"
                    )
        for section in (self.adaptation, self.fusion):
            for view in section.views if section else ():
                if view not in self.views:
                    raise ValueError(f"there is no view {view!r}; there are {sorted(self.views)}")
        return self


def read_dimensional(name: str) -> DimensionalProtocol:
    """Read a protocol of ratings by name or path; errors are those of ``read_protocol``."""
    return validated(name, DimensionalProtocol)
