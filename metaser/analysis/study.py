"""The study of similarity: measure everything that its report shows."""

from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from metaser.analysis.inside import SHOTS, corrupted, probed, train_once
from metaser.analysis.transfer import (
    CORRUPTED,
    INSIDE,
    PROTOCOL,
    Pool,
    agreement,
    controls,
    distances,
    measure,
    open_pool,
)
from metaser.files import Places, write_table

FRONTENDS: dict[str, dict[str, Any]] = {
    "statistics": {"name": "statistics"},
    "speaker": {"name": "speaker"},
    "egemaps": {"name": "egemaps"},
    "statistics + speaker": {"name": "joined", "parts": ["statistics", "speaker"]},
}
"""Front ends whose distances the study compares."""


def predictors(pool: Pool, console: Console) -> pd.DataFrame:
    """Return every distance of every front end for all targets, as scores.

    Parameters
    ----------
    pool : Pool
        Protocol and tasks.
    console : rich.console.Console
        Where progress is printed.

    Returns
    -------
    DataFrame
        ``target``, ``source``, ``predictor`` and ``score``, the negative distance.
    """
    rows = []
    for (name, frontend), target in product(FRONTENDS.items(), pool.targets()):
        console.print(f"distances of {target} by {name}", highlight=False)
        for row in distances(pool, target, frontend, SHOTS, resamples=0).itertuples():
            view = "as it is" if row.normalise == "none" else "normalised"
            rows.append((target, row.source, f"{row.distance}, {name}, {view}", -row.value))
    return pd.DataFrame(rows, columns=["target", "source", "predictor", "score"])


def study(out: Path, places: Places | None = None, console: Console | None = None) -> None:
    """Measure everything that the page of ``analysis.report`` shows, and write it as CSV files.

    ``pairs.csv`` holds the measured transfer, ``scores.csv`` the scores that predict it, and
    ``agreement.csv`` how well they do. ``layers.csv`` and ``corruptions.csv`` look into the
    networks of the protocol ``layers``. Transfer that is in ``out`` is not measured again.

    Parameters
    ----------
    out : Path
        Folder to write to.
    places : Places, optional
        Data root, task folders, feature cache and number of processes.
    console : rich.console.Console, optional
        Where progress is printed.
    """
    console = console or Console(stderr=True)
    pool = open_pool(None, PROTOCOL, places)
    pairs = measure(pool, out, console=console)
    write_table(out / "pairs.csv", pairs)
    scores = predictors(pool, console)
    write_table(out / "scores.csv", scores)
    tables = []
    for method, own in pairs.groupby("method", sort=False):
        rivals = pd.concat([scores, controls(pool, own)])
        tables.append(agreement(rivals, own).assign(method=method))
    write_table(out / "agreement.csv", pd.concat(tables))
    inside = open_pool(None, INSIDE, places)
    layers, corruptions = [], []
    for setup in inside.protocol.setups:
        console.print(f"inside {setup}", highlight=False)
        trained = train_once(inside, setup)
        layers += [probed(trained, target) for target in inside.targets()]
        if setup == CORRUPTED:
            corruptions += [corrupted(trained, target) for target in inside.targets()]
    write_table(out / "layers.csv", pd.concat(layers))
    write_table(out / "corruptions.csv", pd.concat(corruptions))
