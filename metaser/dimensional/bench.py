"""Run a protocol of ratings: every system on every target and seed, one row each.

The clips of all tasks are in one pool. A system is a function that learns from some rows of the
pool and predicts others (``fusion.Fit``). Scoring on unseen languages, cross-validation, and the
out-of-fold predictions behind a fusion then all call this function, each with other rows.
"""

import functools
import hashlib
import json
import logging
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
from metaser.dimensional.fusion import Fit, Predict, Rows, fuse, out_of_fold
from metaser.dimensional.meta import RatedClips, meta_learnt
from metaser.dimensional.protocol import (
    Adaptation,
    DimensionalProtocol,
    Fusion,
    Learning,
    Meta,
    View,
)
from metaser.dimensional.rating import FrameRater, predicted, tuned
from metaser.dimensional.system import FIELDS, System, cells
from metaser.features.extraction import extract
from metaser.features.table import normalise
from metaser.files import Places, write_json
from metaser.frontends import make_frontend
from metaser.methods.maml import MAML
from metaser.model import Model
from metaser.naming import construct, one_of
from metaser.protocol.schema import Training
from metaser.rows import append_row, read_rows
from metaser.tasks.task import Task, read_task, require_audio
from metaser.version import version

log = logging.getLogger(__name__)

PENALTIES = np.logspace(-1, 4, 11)
"""Penalties that ridge regression chooses from, by leaving out one training clip at a time."""


@dataclass(frozen=True, eq=False)
class Pool:
    """All clips of all tasks.

    Attributes
    ----------
    clips : pandas.DataFrame
        One row per clip: ``file``, ``speaker``, ``task``, ``unit`` (clips that share a speaker or a
        duplicate) and ``fold`` (clips that stay together when predicting out of fold: those of a
        language, or of a unit).
    ratings : ndarray
        (clips, ratings) in [-1, 1]; NaN where a clip is not rated.
    views : dict of str to Padded
        Features (clips, frames, channels) of all clips, by view.
    """

    clips: pd.DataFrame
    ratings: np.ndarray
    views: dict[str, Padded]


def run(protocol: DimensionalProtocol, out: str | Path, places: Places | None = None) -> Path:
    """Measure the cells of a protocol that a results folder lacks.

    Parameters
    ----------
    protocol : DimensionalProtocol
        What is compared.
    out : str or Path
        Results folder. ``rows.jsonl`` and ``protocol.json`` are written there.
    places : Places, optional
        Where corpora, task folders and cached features are. Its processes share the seeds.

    Returns
    -------
    Path
        The path of ``rows.jsonl``.

    Raises
    ------
    ValueError
        If a task lacks a rating of the protocol or has too few different values of it, or if the
        folder holds rows of other settings.
    FileNotFoundError
        If the audio of a task is not present.
    """
    out, places = Path(out), places or Places()
    rows = out / "rows.jsonl"
    names = protocol.sources + protocol.targets
    tasks = [_rated_task(name, protocol.ratings, places) for name in names]
    versions = {task.name: task.version for task in tasks}
    done = _done(rows, protocol, versions)
    missing = {
        seed: [cell for cell in cells(protocol) if (seed, *cell) not in done]
        for seed in protocol.seeds
    }
    missing = {seed: lacking for seed, lacking in missing.items() if lacking}
    if not missing:
        return rows
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "protocol.json", protocol.model_dump())
    pool = gather(protocol, tasks, places)
    Parallel(n_jobs=min(places.jobs, len(missing)))(
        delayed(_run_seed)(protocol, pool, versions, seed, lacking, rows)
        for seed, lacking in missing.items()
    )
    return rows


def settings(protocol: DimensionalProtocol) -> str:
    """Return a digest of all that decides a row's numbers, besides its seed and target."""
    excluded = {"title", "description", "seeds", "targets"}
    if protocol.meta is None:  # rows from before this section existed keep their digest
        excluded.add("meta")
    facts = protocol.model_dump(exclude=excluded)
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=6).hexdigest()


def _done(
    rows: Path, protocol: DimensionalProtocol, versions: Mapping[str, int]
) -> set[tuple[int, System, str]]:
    """Return the seed, system and target of every row that there is."""
    done = set()
    for row in read_rows(rows):
        outdated = row["task_version"] != versions.get(row["target"], row["task_version"])
        if row["settings"] != settings(protocol) or outdated:
            raise ValueError(
                f"every row in {rows} must have the present settings and task versions, but there "
                f"are rows of other settings or another version of {row['target']}: name another "
                "folder by --out, or delete this one"
            )
        system = System(**{name: row[name] for name in FIELDS})
        done.add((row["seed"], system, row["target"]))
    return done


def _rated_task(name: str, ratings: Sequence[str], places: Places) -> Task:
    """Read a task and refuse one that cannot be scored on these ratings."""
    task = read_task(name, places.data, places.folders)
    for rating in ratings:
        if rating not in task.ratings:
            raise ValueError(
                f"{name} must have the rating {rating!r}, but its task.toml declares "
                f"{', '.join(sorted(task.ratings)) or 'none'} under [ratings]: declare it there, "
                "or leave out the task"
            )
    require_audio(task)
    for rating in ratings:
        values = task.table[rating].dropna()
        if values.nunique() < 2:
            raise ValueError(
                f"the rating {rating!r} of {name} must have at least 2 different values for a CCC, "
                f"not {values.nunique()} ({len(values)} of {len(task.table)} clips are rated): "
                "leave out the task or the rating"
            )
    return task


def gather(protocol: DimensionalProtocol, tasks: Sequence[Task], places: Places) -> Pool:
    """Put the clips of some tasks and their features into one pool.

    Raises
    ------
    ValueError
        If the front end of a view is learnable.
    """
    parts = []
    for task in tasks:
        clips = task.table[["file", "speaker"]].assign(task=task.name)
        clips["unit"] = [f"{task.name}:{unit}" for unit in task.table["unit"]]
        clips["fold"] = task.language if protocol.sources else clips["unit"]
        parts.append(clips)
    ratings = np.concatenate([task.table[protocol.ratings].to_numpy(float) for task in tasks])
    views = {name: _features(view, tasks, places) for name, view in protocol.views.items()}
    return Pool(pd.concat(parts, ignore_index=True), ratings, views)


def _features(view: View, tasks: Sequence[Task], places: Places) -> Padded:
    """Return the normalised features of all clips, padded to the longest."""
    frontend = make_frontend(view.frontend)
    if frontend_traits(frontend).learnable:
        raise ValueError(
            f"the front end of a view must not be learnable, as {view.frontend['name']!r} is: "
            "choose another"
        )
    parts = []
    for task in tasks:
        features = extract(task, frontend, places.cache, jobs=places.jobs, progress=True)
        parts.append(normalise(features, task, view.normalise))
    lengths = np.concatenate([features.lengths for features in parts])
    values = np.zeros((len(lengths), lengths.max(), parts[0].values.shape[2]), np.float32)
    start = 0
    for features in parts:
        frames = np.asarray(features.values)
        values[start : start + len(frames), : frames.shape[1]] = frames
        start += len(frames)
    mask = np.arange(values.shape[1]) < lengths[:, None]
    return Padded(torch.from_numpy(values), torch.from_numpy(mask))


def _run_seed(
    protocol: DimensionalProtocol,
    pool: Pool,
    versions: Mapping[str, int],
    seed: int,
    missing: Sequence[tuple[System, str]],
    rows: Path,
) -> None:
    """Measure the missing cells of one seed and append their rows."""
    torch.set_num_threads(1)  # the processes share the cores
    bench = Bench(protocol, pool, seed)
    for system, target in missing:
        start = time.perf_counter()
        predictions = bench.predict(system, target)
        row = score(protocol, pool, target, predictions)
        row |= {
            "protocol": protocol.name,
            "settings": settings(protocol),
            **asdict(system),
            "target": target,
            "seed": seed,
            "seconds": round(time.perf_counter() - start, 2),
            "task_version": versions[target],
            "version": version(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        append_row(rows, row)
        log.info("seed %d, %s, %s: CCC %s", seed, system.title, target, row["ccc"])


def score(
    protocol: DimensionalProtocol, pool: Pool, target: str, predictions: np.ndarray
) -> dict[str, Any]:
    """Score the predictions for a target.

    Parameters
    ----------
    protocol : DimensionalProtocol
        Names the ratings.
    pool : Pool
        Holds the true ratings.
    target : str
        Name of the task.
    predictions : ndarray
        (clips, ratings) of the target's clips, in the order of the pool.

    Returns
    -------
    dict
        Fields of a row: the number of ``clips``, and by rating how many are ``missing``, the
        ``ccc``, and the ``moments`` of each speaker.
    """
    rows = _of(pool, [target])
    units = pool.clips["unit"].to_numpy()[rows]
    sums_of = {
        rating: moments(pool.ratings[rows, column], predictions[:, column], units)
        for column, rating in enumerate(protocol.ratings)
    }
    return {
        "clips": len(rows),
        "missing": {
            rating: int(np.isnan(pool.ratings[rows, column]).sum())
            for column, rating in enumerate(protocol.ratings)
        },
        "ccc": {
            rating: round(float(ccc_of_moments(sum(map(np.array, by_unit.values())))), 4)
            for rating, by_unit in sums_of.items()
        },
        "moments": {
            rating: {unit: [float(f"{x:.9g}") for x in sums] for unit, sums in by_unit.items()}
            for rating, by_unit in sums_of.items()
        },
    }


class Bench:
    """The systems of one seed. A network that several systems need is trained once.

    Parameters
    ----------
    protocol : DimensionalProtocol
        What is compared, and how networks learn.
    pool : Pool
        The clips of all its tasks.
    seed : int
        Decides initial parameters, the order of clips, and the clips to adapt to.
    """

    def __init__(self, protocol: DimensionalProtocol, pool: Pool, seed: int) -> None:
        self.protocol, self.pool, self.seed = protocol, pool, seed
        weights = [protocol.weights.get(rating, 1.0) for rating in protocol.ratings]
        self.weights = torch.tensor(weights)
        self._columns = tuple(range(len(protocol.ratings)))
        self._trained = functools.cache(self._train)
        self._meta_learnt = functools.cache(self._meta_learn)

    @property
    def _fusion(self) -> Fusion:
        assert self.protocol.fusion is not None, "only protocols with [fusion] have fused systems"
        return self.protocol.fusion

    @property
    def _adaptation(self) -> Adaptation:
        assert self.protocol.adaptation is not None, "only protocols with [adaptation] have shots"
        return self.protocol.adaptation

    @property
    def _meta(self) -> Meta:
        assert self.protocol.meta is not None, "only protocols with [meta] have meta-learnt systems"
        return self.protocol.meta

    def predict(self, system: System, target: str) -> np.ndarray:
        """Return ratings (clips, ratings) of all clips of a target.

        The system has learnt from none of these clips. There are two exceptions: the few clips of
        ``shots``, which are always of the half of the speakers that is not scored, and a fusion
        with ``in_sample``.
        """
        rows = _of(self.pool, [target])
        if system.shots:
            return self._adapt(system, rows)
        if system.in_sample:
            return self._in_sample(system, rows)
        fit = self.fit(system)
        if self.protocol.sources:
            return fit(_of(self.pool, self.protocol.sources))(rows)
        units = self.pool.clips["unit"].to_numpy()[rows]
        return out_of_fold(_within(fit, rows), units, self.protocol.folds)

    def fit(self, system: System) -> Fit:
        """Return the function that learns a system from some rows of the pool."""
        if system.view == "all":
            return functools.partial(self._fuse, system.method)
        if system.method == "ridge":
            return functools.partial(self._ridge, system.view)
        single = system.tasking == "single"
        groups = [(column,) for column in self._columns] if single else [self._columns]
        features = self.pool.views[system.view]

        def fit(rows: Rows) -> Predict:
            models = [
                self._trained(system.view, system.loss, group, rows.tobytes()) for group in groups
            ]
            return lambda others: np.hstack(
                [predicted(model, features[others]).numpy() for model in models]
            )

        return fit

    def _train(self, view: str, loss: str, columns: tuple[int, ...], rows: bytes) -> nn.Module:
        """Train a network; the rows are bytes, so that the cache can tell them apart."""
        numbers = np.frombuffer(rows, dtype=np.intp).copy()
        learning = self.protocol.learning
        return self._tune(self._new(view, columns), view, loss, columns, numbers, learning)

    def _new(self, view: str, columns: tuple[int, ...]) -> nn.Module:
        """Return the untrained network of a view, always with the same initial parameters."""
        channels = self.pool.views[view].values.shape[2]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return _network(self.protocol.views[view].network, channels, len(columns))

    def _tune(
        self,
        model: nn.Module,
        view: str,
        loss: str,
        columns: tuple[int, ...],
        rows: Rows,
        learning: Learning,
    ) -> nn.Module:
        """Return a copy of a model that has learnt the ratings in some columns from some rows."""
        return tuned(
            model,
            self.pool.views[view][rows],
            torch.from_numpy(self.pool.ratings[rows][:, columns]).float(),
            loss=loss,
            weights=self.weights[list(columns)],
            seed=self.seed,
            **learning.model_dump(),
        )

    def _ridge(self, view: str, rows: Rows) -> Predict:
        """Fit one ridge regression per rating, on the mean over the frames of each clip."""
        inputs = self.pool.views[view].mean().numpy()
        models = []
        for column in self.pool.ratings.T:
            rated = rows[~np.isnan(column[rows])]
            models.append(RidgeCV(PENALTIES).fit(inputs[rated], column[rated]))
        return lambda others: np.stack([model.predict(inputs[others]) for model in models], axis=1)

    def _base(self, rows: Rows) -> tuple[np.ndarray, Predict]:
        """Return what the fused views predict: out of fold for some rows, and for other rows."""
        fits = [self.fit(System(view, "network")) for view in self._fusion.views]
        groups = self.pool.clips["fold"].to_numpy()[rows]
        inside = [out_of_fold(_within(fit, rows), groups, self.protocol.folds) for fit in fits]
        models = [fit(rows) for fit in fits]
        return np.hstack(inside), lambda others: np.hstack([model(others) for model in models])

    def _fuse(self, method: str, rows: Rows) -> Predict:
        """Learn a fusion and all that it fuses from some rows."""
        if method == "mean":
            models = [self.fit(System(view, "network"))(rows) for view in self._fusion.views]
            return lambda others: np.mean([model(others) for model in models], axis=0)
        inside, outside = self._base(rows)
        fused = fuse(
            inside,
            self.pool.ratings[rows],
            self.pool.clips["fold"].to_numpy()[rows],
            stages=self._stages(method),
            strength=self._fusion.strength,
            folds=self.protocol.folds,
        )
        return lambda others: fused(outside(others))

    def _stages(self, method: str) -> int:
        return 1 if method == "late" else self._fusion.stages

    def _in_sample(self, system: System, rows: Rows) -> np.ndarray:
        """Fit the fusion on the target's own ratings and predict these, as the paper's script."""
        if self.protocol.sources:
            _, outside = self._base(_of(self.pool, self.protocol.sources))
            inputs = outside(rows)
        else:
            inputs, _ = self._base(rows)
        units = self.pool.clips["unit"].to_numpy()[rows]
        ratings = self.pool.ratings[rows]
        for _ in range(self._stages(system.method)):
            output = fuse(inputs, ratings, units, strength=self._fusion.strength)(inputs)
            inputs = np.hstack([inputs, output])
        return output

    def _adapt(self, system: System, rows: Rows) -> np.ndarray:
        """Learn from rated clips of one half of the speakers and predict the other; then swap."""
        units = self.pool.clips["unit"].to_numpy()[rows]
        name = self.pool.clips["task"].iloc[rows[0]]
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        halves = np.array_split(rng.permutation(np.unique(units)), 2)
        predictions = np.empty((len(rows), len(self._columns)))
        for half in halves:
            inside = np.isin(units, half)
            rated = rows[inside & ~np.isnan(self.pool.ratings[rows]).any(axis=1)]
            if len(rated) < system.shots:
                raise ValueError(
                    f"each half of the speakers of {name} must have at least {system.shots} rated "
                    f"clips to adapt to, not {len(rated)}: lower shots in [adaptation]"
                )
            support = rng.permutation(rated)[: system.shots]
            predictions[~inside] = self._adapted(system, support)(rows[~inside])
        return predictions

    def _adapted(self, system: System, support: Rows) -> Predict:
        """Learn a system with ``shots`` from its support set."""
        if system.method == "ridge":
            return self._ridge(system.view, support)
        features = self.pool.views[system.view]
        if system.method == "meta":
            clips = self._clips(system.view, support)
            rate = self._meta_learnt(system.view).adapt(clips.batch())
            return lambda others: rate({"audio": features[others]}).numpy()
        if system.method == "scratch":
            start, learning = self._new(system.view, self._columns), self.protocol.learning
        else:
            sources = _of(self.pool, self.protocol.sources)
            start = self._trained(system.view, "ccc", self._columns, sources.tobytes())
            learning = self._adaptation.learning
        model = self._tune(start, system.view, system.loss, self._columns, support, learning)
        return lambda others: predicted(model, features[others]).numpy()

    def _meta_learn(self, view: str) -> MAML:
        """Meta-learn the network of a view from all sources."""
        model, meta = self._new(view, self._columns), self._meta
        assert isinstance(model, Model), "the protocol refuses [meta] for networks of frames"
        return meta_learnt(
            model,
            [self._clips(view, _of(self.pool, [name])) for name in self.protocol.sources],
            shots=self._adaptation.shots,
            queries=meta.queries,
            training=Training(updates=meta.updates, meta_batch=meta.meta_batch, rate=meta.rate),
            inner_steps=meta.inner_steps,
            inner_rate=meta.inner_rate,
            adapt_steps=meta.adapt_steps,
            seed=self.seed,
        )

    def _clips(self, view: str, rows: Rows) -> RatedClips:
        """Return the rated clips in some rows, which are all of one task."""
        clips = self.pool.clips.iloc[rows]
        ratings = torch.from_numpy(self.pool.ratings[rows]).float()
        name, units = clips["task"].iloc[0], clips["unit"].to_numpy(str)
        return RatedClips(name, self.pool.views[view][rows], ratings, units)


def _of(pool: Pool, tasks: Sequence[str]) -> Rows:
    """Return the rows of some tasks."""
    return np.flatnonzero(pool.clips["task"].isin(tasks))


def _within(fit: Fit, rows: Rows) -> Fit:
    """Return the same function, with rows counted within a part of the pool."""

    def inside(train: Rows) -> Predict:
        predict = fit(rows[train])
        return lambda test: predict(rows[test])

    return inside


def _network(arguments: Mapping[str, Any], channels: int, ratings: int) -> nn.Module:
    """Build the network of a view from its name and arguments."""
    others = dict(arguments)
    name = others.pop("name", None)
    make = one_of(name, {**BACKBONES, "frames": FrameRater}, "network")
    what = f"network {name!r}"
    if name == "frames":
        return construct(make, others, what, channels, ratings)
    return Model(construct(make, others, what, channels), ratings)
