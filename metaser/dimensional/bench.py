"""Run a protocol of ratings: every system on every target and seed, one row each.

All clips of all tasks stand in one pool, and a system is a function that learns from some rows of
the pool and predicts others (``fusion.Fit``). Scoring on unseen languages, cross-validation and the
out-of-fold predictions behind a fusion are then the same function called with other rows.
"""

import functools
import hashlib
import json
import logging
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from sklearn.linear_model import RidgeCV
from torch import nn

from metaser.backbones import BACKBONES
from metaser.batch import Padded
from metaser.contracts import frontend_traits
from metaser.dimensional.concordance import ccc_of_moments, moments
from metaser.dimensional.fusion import Fit, Rows, fuse, out_of_fold
from metaser.dimensional.meta import RatedClips, meta_learnt
from metaser.dimensional.protocol import DimensionalProtocol, Learning, View
from metaser.dimensional.rating import FrameRater, predicted, tuned
from metaser.features.extraction import extract
from metaser.features.table import normalise
from metaser.files import Places, write_json
from metaser.frontends import make_frontend
from metaser.methods.maml import MAML
from metaser.model import Model
from metaser.protocol.schema import Training
from metaser.rows import append_row, read_rows
from metaser.tasks.task import Task, read_task, require_audio
from metaser.version import version

log = logging.getLogger(__name__)

PENALTIES = np.logspace(-1, 4, 11)
"""From which ridge regression chooses, by leaving out one training clip at a time."""


@dataclass(frozen=True)
class System:
    """One way of predicting ratings; its fields stand in the row.

    Attributes
    ----------
    view : str
        A view of the protocol, or "all" for a fusion of several.
    method : str
        "network", "ridge", "mean", "late", "multistage"; "adapted" from the network that learnt by
        CCC, "scratch", or "meta", adapted from one that was meta-learnt.
    loss : str
        By which a network learns, or adapts.
    tasking : str
        "multi": one model of all ratings; "single": one model a rating.
    shots : int
        Rated clips of the target that the system learns from.
    in_sample : bool
        Whether the fusion is fitted on the very clips that it is scored on, which is no score but
        shows what that mistake is worth.
    """

    view: str
    method: str
    loss: str = "ccc"
    tasking: str = "multi"
    shots: int = 0
    in_sample: bool = False


@dataclass(frozen=True, eq=False)
class Pool:
    """All clips of all tasks.

    Attributes
    ----------
    clips : pandas.DataFrame
        One row a clip: task, speaker, ``unit`` (clips that share a speaker or a duplicate) and
        ``fold`` (what stays together when predicting out of fold: a language, or a unit).
    ratings : ndarray
        (clips, ratings) in [-1, 1]; NaN where a clip is not rated.
    views : dict of str to Padded
        Features of all clips.
    """

    clips: pd.DataFrame
    ratings: np.ndarray
    views: dict[str, Padded]


def run(protocol: DimensionalProtocol, out: str | Path, places: Places | None = None) -> Path:
    """Measure what a results folder lacks of a protocol.

    Parameters
    ----------
    protocol : DimensionalProtocol
    out : str or Path
        Results folder: ``rows.jsonl`` and ``protocol.json``.
    places : Places, optional
        Corpora, task folders, feature cache, and processes, which share the seeds.

    Returns
    -------
    Path
        The file of rows.

    Raises
    ------
    ValueError
        If a task has no such rating, or the folder holds rows of other settings.
    FileNotFoundError
        If the audio of a task is not present.
    """
    out, places = Path(out), places or Places()
    rows = out / "rows.jsonl"
    tasks = [_read(name, protocol, places) for name in protocol.sources + protocol.targets]
    done = _done(rows, protocol, tasks)
    missing = {
        seed: [cell for cell in cells(protocol) if (seed, *cell) not in done]
        for seed in protocol.seeds
    }
    missing = {seed: own for seed, own in missing.items() if own}
    if not missing:
        return rows
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "protocol.json", protocol.model_dump())
    pool = gather(protocol, tasks, places)
    versions = {task.name: task.version for task in tasks}
    Parallel(n_jobs=min(places.jobs, len(missing)))(
        delayed(_run_seed)(protocol, pool, versions, seed, own, rows)
        for seed, own in missing.items()
    )
    return rows


def cells(protocol: DimensionalProtocol) -> Iterator[tuple[System, str]]:
    """Every system with every target, in the order of measuring."""
    for system in systems(protocol):
        for target in protocol.targets:
            yield system, target


def systems(protocol: DimensionalProtocol) -> list[System]:
    """What the protocol compares."""
    found = []
    for view in protocol.views:
        found += [System(view, "ridge"), System(view, "network"), System(view, "network", "mse")]
        if len(protocol.ratings) > 1:
            found.append(System(view, "network", tasking="single"))
    if protocol.fusion is not None:
        fused = ("mean", "late", "multistage")
        found += [System("all", method) for method in fused]
        found += [System("all", method, in_sample=True) for method in fused[1:]]
    if protocol.adaptation is not None:
        for view in protocol.adaptation.views:
            for shots in protocol.adaptation.shots:
                found += [
                    System(view, "adapted", shots=shots),
                    System(view, "adapted", "mse", shots=shots),
                    System(view, "scratch", shots=shots),
                ]
                if protocol.meta is not None:
                    found += [System(view, "meta", shots=shots), System(view, "ridge", shots=shots)]
    return found


def settings(protocol: DimensionalProtocol) -> str:
    """Digest of all that decides a row's numbers, besides its seed and target."""
    selection = {"title", "description", "seeds", "targets"}
    # Where it is not set, rows from before there was such a section stand as they are.
    facts = protocol.model_dump(exclude=selection | (set() if protocol.meta else {"meta"}))
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=6).hexdigest()


def _done(rows: Path, protocol: DimensionalProtocol, tasks: Sequence[Task]) -> set[tuple]:
    """Cells that have a row."""
    versions = {task.name: task.version for task in tasks}
    done = set()
    for row in read_rows(rows):
        stale = row["task_version"] != versions.get(row["target"], row["task_version"])
        if row["settings"] != settings(protocol) or stale:
            raise ValueError(
                f"{rows} holds rows of other settings or another version of {row['target']}: name "
                "another folder by --out, or delete this one"
            )
        system = System(**{name: row[name] for name in System.__dataclass_fields__})
        done.add((row["seed"], system, row["target"]))
    return done


def _read(name: str, protocol: DimensionalProtocol, places: Places) -> Task:
    task = read_task(name, places.data, places.folders)
    for rating in protocol.ratings:
        if rating not in task.ratings:
            raise ValueError(
                f"{name} has no rating {rating!r}; its task.toml declares "
                f"{sorted(task.ratings) or 'none'} under [ratings]"
            )
    require_audio(task)
    for rating in protocol.ratings:
        values = task.table[rating].dropna()
        if values.nunique() < 2:
            raise ValueError(
                f"the rating {rating!r} of {name} has {values.nunique()} different values in "
                f"{len(task.table)} clips, of which {len(values)} are rated: a CCC needs at least 2"
            )
    return task


def gather(protocol: DimensionalProtocol, tasks: Sequence[Task], places: Places) -> Pool:
    """Put all clips of some tasks and their features into one pool."""
    parts = []
    for task in tasks:
        own = task.table[["file", "speaker"]].assign(task=task.name)
        own["unit"] = [f"{task.name}:{unit}" for unit in task.table["unit"]]
        own["fold"] = task.language if protocol.sources else own["unit"]
        parts.append(own)
    ratings = np.concatenate([task.table[protocol.ratings].to_numpy(float) for task in tasks])
    views = {
        name: _view(view, tasks, places, len(ratings)) for name, view in protocol.views.items()
    }
    return Pool(pd.concat(parts, ignore_index=True), ratings, views)


def _view(view: View, tasks: Sequence[Task], places: Places, clips: int) -> Padded:
    frontend = make_frontend(view.frontend)
    if frontend_traits(frontend).learnable:
        raise ValueError(f"front end {view.frontend['name']!r} is learnt; take one that is not")
    options = {"jobs": places.jobs, "progress": True}
    found = [
        normalise(extract(task, frontend, places.cache, **options), task, view.normalise)
        for task in tasks
    ]
    lengths = np.concatenate([features.lengths for features in found])
    values = np.zeros((clips, lengths.max(), found[0].values.shape[2]), np.float32)
    start = 0
    for features in found:
        own = np.asarray(features.values)
        values[start : start + len(own), : own.shape[1]] = own
        start += len(own)
    mask = np.arange(values.shape[1]) < lengths[:, None]
    return Padded(torch.from_numpy(values), torch.from_numpy(mask))


def _run_seed(protocol, pool: Pool, versions, seed: int, missing, rows: Path) -> None:
    torch.set_num_threads(1)
    bench = Bench(protocol, pool, seed)
    for system, target in missing:
        start = time.perf_counter()
        scored = bench.predict(system, target)
        row = score(protocol, pool, target, scored)
        row |= {
            "protocol": protocol.name,
            "settings": settings(protocol),
            **{name: getattr(system, name) for name in System.__dataclass_fields__},
            "target": target,
            "seed": seed,
            "seconds": round(time.perf_counter() - start, 2),
            "task_version": versions[target],
            "version": version(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        append_row(rows, row)
        log.info("seed %d, %s, %s: CCC %s", seed, system, target, row["ccc"])


def score(protocol: DimensionalProtocol, pool: Pool, target: str, scored: np.ndarray) -> dict:
    """Clips, missing ratings, CCC and each speaker's moments of a target's predictions."""
    rows = _of(pool, [target])
    units = pool.clips["unit"].to_numpy()[rows]
    own = {
        rating: moments(pool.ratings[rows, column], scored[:, column], units)
        for column, rating in enumerate(protocol.ratings)
    }
    return {
        "clips": len(rows),
        "missing": {
            rating: int(np.isnan(pool.ratings[rows, column]).sum())
            for column, rating in enumerate(protocol.ratings)
        },
        "ccc": {
            rating: round(float(ccc_of_moments(sum(map(np.array, found.values())))), 4)
            for rating, found in own.items()
        },
        "moments": {
            rating: {unit: [float(f"{x:.9g}") for x in sums] for unit, sums in found.items()}
            for rating, found in own.items()
        },
    }


def _of(pool: Pool, tasks: Sequence[str]) -> Rows:
    return np.flatnonzero(pool.clips["task"].isin(tasks))


class Bench:
    """The systems of one seed; networks that several systems need are trained once."""

    def __init__(self, protocol: DimensionalProtocol, pool: Pool, seed: int) -> None:
        self.protocol, self.pool, self.seed = protocol, pool, seed
        weights = [protocol.weights.get(rating, 1.0) for rating in protocol.ratings]
        self.weights = torch.tensor(weights)
        self._trained = functools.cache(self._train)
        self._meta_learnt = functools.cache(self._meta_learn)

    def predict(self, system: System, target: str) -> np.ndarray:
        """Ratings (clips, ratings) of all clips of a target, none of which the system has learnt.

        The exceptions are the few clips of ``shots``, which the half of the speakers that is scored
        never has, and a fusion ``in_sample``.
        """
        rows = _of(self.pool, [target])
        if system.shots:
            return self._adapt(system, rows)
        fit = self.fit(system)
        if system.in_sample:
            return self._in_sample(system, rows)
        if self.protocol.sources:
            return fit(_of(self.pool, self.protocol.sources))(rows)
        units = self.pool.clips["unit"].to_numpy()[rows]
        return out_of_fold(_within(fit, rows), units, self.protocol.folds)

    def fit(self, system: System) -> Fit:
        """The function that learns a system from some rows of the pool."""
        if system.view == "all":
            return functools.partial(self._fuse, system.method)
        if system.method == "ridge":
            return functools.partial(self._ridge, system.view)
        columns = range(len(self.protocol.ratings))
        groups = [(column,) for column in columns] if system.tasking == "single" else [(*columns,)]

        def fit(rows: Rows):
            models = [
                self._trained(system.view, system.loss, group, rows.tobytes()) for group in groups
            ]
            return lambda others: np.hstack(
                [predicted(model, self.pool.views[system.view][others]) for model in models]
            )

        return fit

    def _train(self, view: str, loss: str, columns: tuple[int, ...], rows: bytes) -> nn.Module:
        rows = np.frombuffer(rows, dtype=np.intp).copy()
        return self._tune(self._new(view, columns), view, loss, columns, rows)

    def _new(self, view: str, columns: tuple[int, ...]) -> nn.Module:
        arguments = dict(self.protocol.views[view].network)
        channels = self.pool.views[view].values.shape[2]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return _network(arguments, channels, len(columns))

    def _tune(self, model, view, loss, columns, rows, learning: Learning | None = None):
        learning = learning or self.protocol.learning
        ratings = torch.from_numpy(self.pool.ratings[rows][:, columns]).float()
        return tuned(
            model,
            self.pool.views[view][rows],
            ratings,
            loss,
            self.weights[list(columns)],
            seed=self.seed,
            **learning.model_dump(),
        )

    def _ridge(self, view: str, rows: Rows):
        inputs = self.pool.views[view].mean().numpy()
        models = []
        for column in self.pool.ratings.T:
            rated = rows[~np.isnan(column[rows])]
            models.append(RidgeCV(PENALTIES).fit(inputs[rated], column[rated]))
        return lambda others: np.stack([model.predict(inputs[others]) for model in models], axis=1)

    def _base(self, rows: Rows) -> tuple[np.ndarray, Callable[[Rows], np.ndarray]]:
        """Out-of-fold predictions of all fused views for some rows, and for others."""
        fits = [self.fit(System(view, "network")) for view in self.protocol.fusion.views]
        groups = self.pool.clips["fold"].to_numpy()[rows]
        inside = [out_of_fold(_within(fit, rows), groups, self.protocol.folds) for fit in fits]
        whole = [fit(rows) for fit in fits]
        return np.hstack(inside), lambda others: np.hstack([model(others) for model in whole])

    def _fuse(self, method: str, rows: Rows):
        plan = self.protocol.fusion
        if method == "mean":
            whole = [self.fit(System(view, "network"))(rows) for view in plan.views]
            return lambda others: np.mean([model(others) for model in whole], axis=0)
        inside, outside = self._base(rows)
        fused = fuse(
            inside,
            self.pool.ratings[rows],
            self.pool.clips["fold"].to_numpy()[rows],
            1 if method == "late" else plan.stages,
            plan.strength,
            self.protocol.folds,
        )
        return lambda others: fused(outside(others))

    def _in_sample(self, system: System, rows: Rows) -> np.ndarray:
        """Fit the fusion on the target's own ratings and predict those, as the paper's script."""
        if self.protocol.sources:
            _, outside = self._base(_of(self.pool, self.protocol.sources))
            inputs = outside(rows)
        else:
            inputs, _ = self._base(rows)
        plan, units = self.protocol.fusion, self.pool.clips["unit"].to_numpy()[rows]
        stages = 1 if system.method == "late" else plan.stages
        own = self.pool.ratings[rows]
        for _ in range(stages):
            output = fuse(inputs, own, units, 1, plan.strength)(inputs)
            inputs = np.hstack([inputs, output])
        return output

    def _adapt(self, system: System, rows: Rows) -> np.ndarray:
        """Learn from rated clips of one half of the speakers, predict the other, and in turn."""
        columns = (*range(len(self.protocol.ratings)),)
        units = self.pool.clips["unit"].to_numpy()[rows]
        name = self.pool.clips["task"].iloc[rows[0]]
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        halves = np.array_split(rng.permutation(np.unique(units)), 2)
        if system.method == "scratch":
            start = self._new(system.view, columns)
        elif system.method == "adapted":
            sources = _of(self.pool, self.protocol.sources)
            start = self._trained(system.view, "ccc", columns, sources.tobytes())
        found = np.empty((len(rows), len(columns)))
        for half in halves:
            inside = np.isin(units, half)
            rated = rows[inside & ~np.isnan(self.pool.ratings[rows]).any(axis=1)]
            if len(rated) < system.shots:
                raise ValueError(
                    f"half of the speakers of {name} have {len(rated)} rated clips; {system.shots} "
                    "are wanted to adapt to: lower shots in [adaptation]"
                )
            support = rng.permutation(rated)[: system.shots]
            if system.method in ("meta", "ridge"):
                rate = self._rater(system, support)
                found[~inside] = rate(rows[~inside])
                continue
            learning = self.protocol.adaptation.learning
            if system.method == "scratch":
                learning = self.protocol.learning
            model = self._tune(start, system.view, system.loss, columns, support, learning)
            found[~inside] = predicted(model, self.pool.views[system.view][rows[~inside]])
        return found

    def _rater(self, system: System, support: Rows) -> Callable[[Rows], np.ndarray]:
        """Ridge regression on some clips alone, or the meta-learnt model adapted to them."""
        if system.method == "ridge":
            return self._ridge(system.view, support)
        view = self.pool.views[system.view]
        adapted = self._meta_learnt(system.view).adapt(self._clips(system.view, support).batch())
        return lambda others: adapted({"audio": view[others]}).numpy()

    def _meta_learn(self, view: str) -> MAML:
        plan = self.protocol.meta
        sources = [self._clips(view, _of(self.pool, [name])) for name in self.protocol.sources]
        return meta_learnt(
            self._new(view, (*range(len(self.protocol.ratings)),)),
            sources,
            self.protocol.adaptation.shots,
            plan.queries,
            Training(updates=plan.updates, meta_batch=plan.meta_batch, rate=plan.rate),
            plan.inner_steps,
            plan.inner_rate,
            plan.adapt_steps,
            self.seed,
        )

    def _clips(self, view: str, rows: Rows) -> RatedClips:
        """Rated clips of one task."""
        clips = self.pool.clips.iloc[rows]
        ratings = torch.from_numpy(self.pool.ratings[rows]).float()
        name, units = clips["task"].iloc[0], clips["unit"].to_numpy(str)
        return RatedClips(name, self.pool.views[view][rows], ratings, units)


def _within(fit: Fit, rows: Rows) -> Fit:
    """The same function with rows counted within a part of the pool."""

    def inside(train: Rows):
        predict = fit(rows[train])
        return lambda test: predict(rows[test])

    return inside


def _network(arguments: dict, channels: int, ratings: int) -> nn.Module:
    name = arguments.pop("name", None)
    known = {*BACKBONES, "frames"}
    if name not in known:
        raise ValueError(f"network must be one of {sorted(known)}, not {name!r}")
    try:
        if name == "frames":
            return FrameRater(channels, ratings, **arguments)
        return Model(BACKBONES[name](channels, **arguments), ratings)
    except TypeError as error:
        raise ValueError(f"network {name!r}: {error}") from error
