"""Which languages to learn from: distances compared with the transfer that was measured.

``metaser.features.distances`` computes distances. Here a model is also trained on every source
alone, by a protocol of the benchmark, and both are compared. The protocol runs once per source,
each time in a folder of its own, so that a run that was stopped continues where it was.
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

PROTOCOL, INSIDE = "similarity", "layers"
"""Bundled protocols, of transfer and of looking into networks."""

CORRUPTED = "statistics_mlp"
"""The setup that hears corrupted clips."""

VIEWS = ("none", "corpus")
"""How features are normalised before distances are computed."""


@dataclass(frozen=True)
class Pool:
    """The tasks that a protocol can compare here.

    Attributes
    ----------
    protocol : Protocol
        The protocol, with its classes, sources and setups.
    tasks : dict of str to Task
        The tasks that are present, with the clips of the protocol's classes only.
    places : Places
        Data root, task folders, feature cache and number of processes.
    """

    protocol: Protocol
    tasks: dict[str, Task]
    places: Places

    def sources(self, target: str) -> list[str]:
        """Return the present sources of other languages than the target's."""
        language = self.tasks[target].language
        names = [name for name in self.protocol.sources if name in self.tasks]
        return [name for name in names if self.tasks[name].language != language]

    def targets(self) -> list[str]:
        """Return the present targets of the protocol."""
        return [name for name in self.protocol.targets if name in self.tasks]


def open_pool(
    target: str | None = None,
    protocol: str = PROTOCOL,
    places: Places | None = None,
) -> Pool:
    """Read the tasks of a protocol, and a target that the protocol need not name.

    Parameters
    ----------
    target : str, optional
        Name of a task, or its folder.
    protocol : str
        Name of a bundled protocol, or path of a file.
    places : Places, optional
        Data root, task folders, feature cache and number of processes.

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
                f"the target must have some of the classes {plan.classes}, but {found.name} has "
                f"only {list(found.counts)}: choose a target that shares classes with the sources"
            )
        targets = dict.fromkeys([*plan.targets, found.name])
        plan = plan.model_copy(update={"targets": list(targets)})
    tasks, _ = present_tasks(plan, places)
    pool = Pool(plan, tasks, places)
    if target is not None and not pool.sources(found.name):
        raise FileNotFoundError(
            f"a source of another language than {found.name}'s must be present, but none of "
            f"{plan.sources} is: obtain one of them (`metaser tasks` tells how)"
        )
    return pool


def hear(pool: Pool, frontend: dict, names: Sequence[str], view: str) -> dict[str, Clips]:
    """Return one vector per clip of some tasks, from the cache where it has them.

    Parameters
    ----------
    pool : Pool
        Protocol and tasks.
    frontend : dict
        Name and arguments of a front end.
    names : sequence of str
        Names of the tasks.
    view : {"none", "corpus"}
        How features are normalised.
    """
    made = make_frontend(frontend)
    clips = {}
    for name in names:
        features = extract(pool.tasks[name], made, pool.places.cache, jobs=pool.places.jobs)
        features = normalise(features, pool.tasks[name], view)
        clips[name] = clips_of(pool.tasks[name], features)
    return clips


def distances(
    pool: Pool, target: str, frontend: dict, shots: int = 0, seed: int = 0, resamples: int = 200
) -> pd.DataFrame:
    """Return the distances of a target from each source, with and without normalising each corpus.

    Parameters
    ----------
    pool : Pool
        Protocol and tasks.
    target : str
        Name of the target.
    frontend : dict
        Name and arguments of a front end.
    shots : int
        Labelled clips per class of the target, for the distances that need them; 0 for none.
    seed : int
        Seed of all draws.
    resamples : int
        Draws behind each interval.

    Returns
    -------
    DataFrame
        As from ``features.distances.compare``, with a column ``normalise`` ("none" or "corpus").
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
        Protocol and tasks.
    out : Path
        Folder to write to; each source gets a results folder of the benchmark in it.
    targets : sequence of str
        Targets to score; all of the protocol if empty.
    console : rich.console.Console, optional
        Where progress is printed.

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
    """Read the measured transfer, one row per source, target and method.

    Parameters
    ----------
    out : Path
        Folder that ``measure`` has written to.

    Returns
    -------
    DataFrame
        ``source``, ``target``, ``method``, mean ``uar`` with interval ``low`` to ``high``
        (``stats.intervals`` over seeds and episodes), and the numbers of ``seeds``, of
        ``episodes`` in all and of the target's ``classes``.

    Raises
    ------
    ValueError
        If nothing was measured, or sources were not scored on the same episodes.
    """
    rows = pd.DataFrame(
        [row for path in sorted(out.glob("*/rows.jsonl")) for row in read_rows(path)]
    )
    if rows.empty:
        raise ValueError(
            f"{out} must hold rows of single sources, but holds none: measure them by --measure"
        )
    draws = rows.groupby(["target", "seed"])["digest"].nunique()
    if (draws > 1).any():
        raise ValueError(
            f"{out}: all sources must be scored on the same episodes, but they were scored on "
            f"different episodes of {draws.idxmax()[0]}: delete the folders in it and measure again"
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
    """Return the distances of a target, followed by its measured transfer.

    Parameters
    ----------
    table : DataFrame
        Distances, as ``distances`` returns them.
    pairs : DataFrame
        Measured transfer, as ``transfer`` returns it.
    target : str
        Name of the target.

    Returns
    -------
    DataFrame
        With the columns of ``table``. In rows of measured transfer, ``distance`` is the method and
        ``value`` the UAR.
    """
    own = pairs[pairs["target"] == target].drop(columns=["target", "classes"])
    own = own.rename(columns={"method": "distance", "uar": "value"})
    return pd.concat([table, own.assign(normalise="measured UAR")], ignore_index=True)


def controls(pool: Pool, pairs: pd.DataFrame) -> pd.DataFrame:
    """Return predictors that hear no target: a source's size, and its transfer to other targets.

    Parameters
    ----------
    pool : Pool
        Protocol and tasks.
    pairs : DataFrame
        Measured transfer of one method.

    Returns
    -------
    DataFrame
        ``target``, ``source``, ``predictor`` and ``score``; a higher score predicts a higher UAR.
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
    """Measure whether predictors rank the sources as measured transfer does.

    Parameters
    ----------
    scores : DataFrame
        ``target``, ``source``, ``predictor`` and ``score``; a higher score predicts a higher UAR.
    pairs : DataFrame
        ``target``, ``source`` and measured ``uar``, one row per pair.
    resamples : int
        Draws of the targets behind each interval.
    seed : int
        Seed of these draws.

    Returns
    -------
    DataFrame
        One row per predictor, with the numbers of ``targets`` and ``pairs`` and three values.
        ``within`` is the mean over targets of Spearman's correlation over a target's sources.
        ``pooled`` is the correlation over all pairs, which also depends on how hard targets are.
        ``gain`` is the UAR of the source that the predictor puts first, minus the mean over
        sources. Each has a 95 % percentile interval (``…_low``, ``…_high``) by drawing the targets
        again. Undefined correlations are NaN.
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
    """Return the rank correlation; NaN where one side is constant."""
    return float(spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else float("nan")


def _gain(scores: np.ndarray, uars: np.ndarray) -> float:
    """Return the UAR of the source with the highest score, minus the mean; NaN if a score is."""
    return np.nan if np.isnan(scores).any() else float(uars[np.argmax(scores)] - uars.mean())
