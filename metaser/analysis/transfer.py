"""Which languages to learn from: cheap distances held against what each source really teaches.

`metaser.selection` measures distances; here every source also teaches alone, by a protocol of the
benchmark, and both are compared. The protocol is run once a source, each in a folder of its own, so
that a run which was stopped goes on where it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from scipy.stats import spearmanr

from metaser import stats
from metaser.benchmark.harness import Run
from metaser.benchmark.harness import measure as run_benchmark
from metaser.benchmark.plan import present_tasks
from metaser.features.distances import Clips, clips_of, compare
from metaser.features.extraction import extract
from metaser.features.table import normalise
from metaser.files import Places
from metaser.frontends import make_frontend
from metaser.protocol.schema import Protocol, read_protocol
from metaser.rows import read_rows
from metaser.tasks.task import Task, read_task, require_audio

PROTOCOL, INSIDE, CORRUPTED = "similarity", "layers", "statistics_mlp"
"""Bundled protocols of transfer and of looking inside; the set-up that is heard corrupted."""

VIEWS = ("none", "corpus")
"""How features are normalised before distances are taken; "corpus" removes the corpora's means."""


@dataclass(frozen=True)
class Pool:
    """The tasks that a protocol can compare here.

    Attributes
    ----------
    protocol : Protocol
        Gives classes, sources and set-ups.
    tasks : dict of str to Task
        Those that are present, with the clips of the protocol's classes only.
    places : Places
        Data root, task folders, feature cache and number of processes.
    """

    protocol: Protocol
    tasks: dict[str, Task]
    places: Places

    def sources(self, target: str) -> list[str]:
        """The present sources of other languages than the target's."""
        language = self.tasks[target].language
        names = [name for name in self.protocol.sources if name in self.tasks]
        return [name for name in names if self.tasks[name].language != language]

    def targets(self) -> list[str]:
        """The present targets of the protocol."""
        return [name for name in self.protocol.targets if name in self.tasks]


def open_pool(
    target: str | None = None,
    protocol: str = PROTOCOL,
    places: Places | None = None,
) -> Pool:
    """Read the tasks of a protocol, and a target that it may not name.

    Raises
    ------
    FileNotFoundError
        If the target is unknown (the nearest known task is named) or has no audio, or no source of
        another language is present.
    ValueError
        If the target has no clip of the protocol's classes.
    """
    plan, places = read_protocol(protocol), places or Places()
    if target is not None:
        found = require_audio(read_task(target, places.data, places.folders))
        if not found.table["emotion"].isin(plan.classes).any():
            raise ValueError(
                f"{found.name} has none of the classes {plan.classes}, only {list(found.counts)}: "
                "choose a target that shares classes with the sources"
            )
        targets = dict.fromkeys([*plan.targets, found.name])
        plan = plan.model_copy(update={"targets": list(targets)})
    tasks, _ = present_tasks(plan, places)
    pool = Pool(plan, tasks, places)
    if target is not None and not pool.sources(found.name):
        raise FileNotFoundError(
            f"no source task of another language than {found.name}'s is present; the protocol has "
            f"{plan.sources}: obtain one of them (`metaser tasks` tells how)"
        )
    return pool


def hear(pool: Pool, frontend: dict, names: Sequence[str], view: str) -> dict[str, Clips]:
    """One vector a clip of some tasks, from the cache where it has them."""
    made = make_frontend(frontend)
    found = {}
    for name in names:
        features = extract(pool.tasks[name], made, pool.places.cache, jobs=pool.places.jobs)
        features = normalise(features, pool.tasks[name], view)
        found[name] = clips_of(pool.tasks[name], features)
    return found


def distances(
    pool: Pool, target: str, frontend: dict, shots: int = 0, seed: int = 0, resamples: int = 200
) -> pd.DataFrame:
    """Distances of a target from each source, with and without normalising each corpus.

    Returns
    -------
    DataFrame
        As ``selection.compare``, with ``normalise`` ("none" or "corpus") besides.
    """
    tables = []
    for view in VIEWS:
        clips = hear(pool, frontend, [target, *pool.sources(target)], view)
        table = compare(clips.pop(target), clips, shots, resamples=resamples, seed=seed)
        tables.append(table.assign(normalise=view))
    return pd.concat(tables, ignore_index=True)


def measure(
    pool: Pool, out: Path, targets: Sequence[str] = (), console: Console | None = None
) -> pd.DataFrame:
    """Train on each source alone and score the targets of other languages, on the same episodes.

    Parameters
    ----------
    pool : Pool
        Its protocol says how.
    out : Path
        Gets a results folder of the benchmark for each source.
    targets : sequence of str
        Only these; all of the protocol if empty.
    console : rich.console.Console, optional
        Where progress is told.

    Returns
    -------
    DataFrame
        See ``transfer``.
    """
    for source in (name for name in pool.protocol.sources if name in pool.tasks):
        language = pool.tasks[source].language
        others = [name for name in pool.targets() if pool.tasks[name].language != language]
        wanted = [name for name in others if not targets or name in targets]
        if wanted:
            alone = pool.protocol.model_copy(update={"sources": [source], "targets": others})
            run_benchmark(
                Run(
                    protocol=alone,
                    out=out / source,
                    places=pool.places,
                    targets=tuple(wanted),
                    command=f"metaser similarity, {source} alone",
                    console=console or Console(stderr=True),
                )
            )
    return transfer(out)


def transfer(out: Path) -> pd.DataFrame:
    """What was measured: one row a source, target and method.

    Returns
    -------
    DataFrame
        ``source``, ``target``, ``method``, mean ``uar`` with interval ``low`` to ``high``
        (``stats.interval`` over seeds and episodes), ``seeds``, ``episodes`` in all, and
        ``classes`` of the target.

    Raises
    ------
    ValueError
        If nothing was measured, or sources were not scored on the same episodes.
    """
    rows = pd.DataFrame(
        [row for path in sorted(out.glob("*/rows.jsonl")) for row in read_rows(path)]
    )
    if rows.empty:
        raise ValueError(f"{out} holds no rows of single sources: measure them by --measure")
    draws = rows.groupby(["target", "seed"])["digest"].nunique()
    if (draws > 1).any():
        raise ValueError(
            f"{out}: the sources were scored on different episodes of {draws.idxmax()[0]}: delete "
            "the folders in it and measure again"
        )
    rows["source"] = rows["sources"].str[0]
    rows["own"] = [sum(map(bool, map(sum, confusion))) for confusion in rows["confusion"]]
    cells = rows.groupby(["source", "target", "method"], sort=False)
    found = stats.intervals({key: own["uar"].tolist() for key, own in cells})
    return pd.DataFrame(
        [
            (
                *key,
                own.mean,
                own.low,
                own.high,
                own.seeds,
                own.episodes,
                cells.get_group(key)["own"].max(),
            )
            for key, own in found.items()
        ],
        columns=[
            "source",
            "target",
            "method",
            "uar",
            "low",
            "high",
            "seeds",
            "episodes",
            "classes",
        ],
    )


def with_transfer(table: pd.DataFrame, pairs: pd.DataFrame, target: str) -> pd.DataFrame:
    """Distances of a target, followed by what was measured: ``distance`` is then the method."""
    own = pairs[pairs["target"] == target].drop(columns=["target", "classes"])
    own = own.rename(columns={"method": "distance", "uar": "value"})
    return pd.concat([table, own.assign(normalise="measured UAR")], ignore_index=True)


def controls(pool: Pool, pairs: pd.DataFrame) -> pd.DataFrame:
    """Predictors that hear no target: a source's size, and how well it teaches the other targets.

    Returns
    -------
    DataFrame
        ``target``, ``source``, ``predictor`` and ``score``, of which more promises more.
    """
    relative = pairs["uar"] - pairs.groupby("target")["uar"].transform("mean")
    rows = []
    for pair in pairs.itertuples():
        elsewhere = (pairs["source"] == pair.source) & (pairs["target"] != pair.target)
        table = pool.tasks[pair.source].table
        for name, score in (
            ("clips of the source", len(table)),
            ("speakers of the source", table["speaker"].nunique()),
            ("UAR that the source gives other targets", relative[elsewhere].mean()),
        ):
            rows.append((pair.target, pair.source, name, float(score)))
    return pd.DataFrame(rows, columns=["target", "source", "predictor", "score"])


def agreement(
    scores: pd.DataFrame, pairs: pd.DataFrame, resamples: int = 500, seed: int = 0
) -> pd.DataFrame:
    """Measure whether a predictor ranks the sources as measured transfer does.

    Parameters
    ----------
    scores : DataFrame
        ``target``, ``source``, ``predictor`` and ``score``, of which more promises more.
    pairs : DataFrame
        ``target``, ``source`` and measured ``uar``, one row a pair.
    resamples : int
        Draws of the targets behind each interval.
    seed : int
        Of these draws.

    Returns
    -------
    DataFrame
        One row a predictor: ``within``, the mean over targets of Spearman's correlation over a
        target's sources; ``pooled``, the correlation over all pairs, which also holds how hard
        targets are; ``gain``, the UAR of the source that the predictor puts first minus the mean
        over sources; each with 95 % percentile intervals (``…_low``, ``…_high``) by drawing the
        targets again; ``targets`` and ``pairs``. Undefined correlations are NaN.
    """
    rng = np.random.default_rng(seed)
    names = sorted(pairs["target"].unique())
    draws = rng.integers(len(names), size=(resamples, len(names)))
    rows = []
    for name, own in scores.groupby("predictor", sort=False):
        joined = own.merge(pairs, on=["target", "source"], validate="one_to_one")
        parts = [joined[joined["target"] == target] for target in names]
        values = [(part["score"].to_numpy(), part["uar"].to_numpy()) for part in parts]
        within = np.array([_spearman(*pair) for pair in values])
        gain = np.array([_gain(*pair) for pair in values])
        pooled = _spearman(*map(np.concatenate, zip(*values)))
        again = [_spearman(*map(np.concatenate, zip(*[values[i] for i in draw]))) for draw in draws]
        row = {"predictor": name, "targets": len(names), "pairs": len(joined)}
        for what, value, resampled in (
            ("within", within.mean(), within[draws].mean(axis=1)),
            ("pooled", pooled, np.array(again)),
            ("gain", gain.mean(), gain[draws].mean(axis=1)),
        ):
            defined = resampled[~np.isnan(resampled)]
            low, high = np.quantile(defined, [0.025, 0.975]) if defined.size else (np.nan, np.nan)
            row |= {what: value, f"{what}_low": low, f"{what}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; NaN where one side is constant."""
    return float(spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else float("nan")


def _gain(scores: np.ndarray, uars: np.ndarray) -> float:
    """What the first by score is worth over the mean; NaN where a score is."""
    return np.nan if np.isnan(scores).any() else float(uars[np.argmax(scores)] - uars.mean())
