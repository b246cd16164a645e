"""The systems that a protocol of ratings compares. Needs neither torch nor audio."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from metaser.dimensional.protocol import Adaptation, DimensionalProtocol

FUSIONS = {"mean": "mean of the views", "late": "late fusion", "multistage": "multistage"}
"""Methods of the view "all", with their names in reports."""

STARTS = {
    "adapted": "adapted to",
    "scratch": "from scratch on",
    "meta": "meta-learnt, adapted to",
}
"""Networks that learn from a few clips of the target, with how reports say so."""


@dataclass(frozen=True)
class System:
    """One way of predicting ratings. Its fields stand in the row.

    Attributes
    ----------
    view : str
        A view of the protocol, or "all" for a fusion of several.
    method : str
        "network" or "ridge"; of the view "all" one of ``FUSIONS``. With ``shots`` also "adapted"
        (from the network that learnt by the CCC loss), "scratch" (from a new network) or "meta"
        (from a meta-learnt network).
    loss : {"ccc", "mse"}
        The loss by which a network learns or adapts.
    tasking : {"multi", "single"}
        One model of all ratings, or one model per rating.
    shots : int
        Rated clips of the target that the system learns from; 0 for none.
    in_sample : bool
        Whether the fusion is fitted on the very clips that it is scored on. That is no result: it
        shows how much this mistake adds to the score.
    """

    view: str
    method: str
    loss: str = "ccc"
    tasking: str = "multi"
    shots: int = 0
    in_sample: bool = False

    @property
    def title(self) -> str:
        """The name of the system in reports and messages."""
        if self.method == "ridge":
            own = f" on {self.shots} clips alone" if self.shots else ""
            return f"{self.view}: ridge regression{own}"
        if self.view == "all":
            note = ", fitted on what it is scored on" if self.in_sample else ""
            return FUSIONS[self.method] + note
        parts = [{"ccc": "CCC loss", "mse": "MSE loss"}[self.loss]]
        if self.tasking == "single":
            parts.append("one model a rating")
        if self.shots:
            parts.append(f"{STARTS[self.method]} {self.shots} clips")
        return f"{self.view}: {', '.join(parts)}"


FIELDS = tuple(field.name for field in fields(System))
"""The fields of a row that say which system it belongs to, in the order of ``System``."""


def systems(protocol: DimensionalProtocol) -> list[System]:
    """Return the systems that a protocol compares, in the order of measuring."""
    found = []
    for view in protocol.views:
        found += [System(view, "ridge"), System(view, "network"), System(view, "network", "mse")]
        if len(protocol.ratings) > 1:
            found.append(System(view, "network", tasking="single"))
    if protocol.fusion is not None:
        found += [System("all", method) for method in FUSIONS]
        found += [System("all", method, in_sample=True) for method in ("late", "multistage")]
    if protocol.adaptation is not None:
        found += _adapting(protocol.adaptation, meta=protocol.meta is not None)
    return found


def cells(protocol: DimensionalProtocol) -> Iterator[tuple[System, str]]:
    """Yield every system with every target, in the order of measuring."""
    for system in systems(protocol):
        for target in protocol.targets:
            yield system, target


def _adapting(adaptation: Adaptation, *, meta: bool) -> Iterator[System]:
    """Yield the systems that learn from a few rated clips of the target."""
    for view in adaptation.views:
        for shots in adaptation.shots:
            yield System(view, "adapted", shots=shots)
            yield System(view, "adapted", "mse", shots=shots)
            yield System(view, "scratch", shots=shots)
            if meta:
                yield System(view, "meta", shots=shots)
                yield System(view, "ridge", shots=shots)
