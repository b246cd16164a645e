"""`metaser probe`: what can be read from the embeddings of a protocol's methods."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from metaser.cli.options import Cache, Data, Folders, plain_errors

if TYPE_CHECKING:
    from metaser.benchmark.materials import Material
    from metaser.files import Places
    from metaser.model import Model
    from metaser.protocol.schema import Protocol
    from metaser.stats import Comparison, Interval

CELL = ("setup", "clips", "read", "reader", "method")
"""Fields of a row that name a cell of the table; its rows differ by seed and corpus."""


def probe(
    protocol: Annotated[str, typer.Argument(help="Name of a protocol, or path of its TOML file.")],
    methods: Annotated[
        str, typer.Option(help="Methods, separated by commas; all are compared with the first.")
    ],
    out: Annotated[
        Path, typer.Option(help="Results folder of the protocol; its trainings are used.")
    ],
    data: Data = None,
    tasks: Folders = None,
    cache: Cache = None,
) -> None:
    """Measure how well a classifier reads speaker, corpus and emotion from embeddings.

    Writes probe.md and probe.jsonl into the results folder.
    """
    from metaser.files import Places, write_text
    from metaser.protocol.schema import read_protocol

    with plain_errors():
        plan = read_protocol(protocol)
        rows = list(_measure(plan, methods.split(","), out, Places.at(data, tasks, cache)))
        text = table(rows, methods.split(","))
        write_text(out / "probe.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
        write_text(out / "probe.md", text)
    typer.echo(text)


def _measure(
    protocol: "Protocol", methods: Sequence[str], out: Path, places: "Places"
) -> Iterator[dict[str, Any]]:
    """Yield one row per setup, method, seed, clips, label, reader and corpus."""
    import sys

    import torch
    from rich.console import Console

    from metaser.benchmark import gather, make_plan, train_method
    from metaser.contracts import model_of
    from metaser.version import version

    progress = Console(stderr=True).is_terminal
    torch.set_num_threads(1)
    plan = make_plan(protocol, places)
    jobs = plan.jobs(methods=methods)
    for name, settled in plan.settled.items():
        setup_jobs = [
            job for job in jobs if job.setup == name and set(job.targets) & set(protocol.targets)
        ]
        materials = (
            gather(settled, setup_jobs, plan.tasks, places, progress=progress) if setup_jobs else {}
        )
        for job in setup_jobs:
            first = job.methods[0]
            folder = out / "checkpoints"
            method = train_method(
                first, protocol, settled.setup, job, materials, checkpoints=folder
            )
            model = model_of(method)
            if model is None:
                raise ValueError(
                    f"methods must have a network, but {first} has no embeddings: name others by "
                    "--methods"
                )
            versions = {task.name: task.version for task in plan.tasks.values()}
            for clips, tasks in (("sources", job.sources), ("targets", job.targets)):
                for row in _probe(
                    [materials[task] for task in tasks], protocol, cast("Model", model)
                ):
                    row |= {"task_version": versions[row["corpus"]], "metaser": version()}
                    for label in job.methods:
                        cell = {"setup": name, "method": label, "seed": job.seed}
                        yield cell | {"clips": clips} | row
            print(f"{name} {', '.join(job.methods)} seed {job.seed}: read", file=sys.stderr)


def _probe(
    materials: Sequence["Material"], protocol: "Protocol", model: "Model"
) -> Iterator[dict[str, Any]]:
    """Yield UAR and chance per reader, label and corpus, over all clips of some tasks."""
    import numpy as np
    import pandas as pd
    import torch

    from metaser.analysis.probe import READ, READERS, probe

    embeddings = []
    for material in materials:
        rows = np.arange(len(material.task.table))
        present = np.ones(len(protocol.classes), bool)
        batch = material.plain.batch(rows, np.zeros_like(rows), present)
        with torch.no_grad():
            embeddings.append(model.embed(batch.modalities))
    clips = pd.concat([one.task.table.assign(corpus=one.task.name) for one in materials])
    labels = {name: clips[name].to_numpy(str) for name in READ}
    labels["speaker"] = np.char.add(np.char.add(labels["corpus"], " "), labels["speaker"])
    for reader in READERS:
        uars = probe(torch.cat(embeddings).numpy(), **labels, reader=reader)
        for read, scores in uars.items():
            chance = round(1 / len(np.unique(labels[read])), 5)
            for corpus, score in scores.items():
                row = {"read": read, "reader": reader, "corpus": corpus}
                yield row | {"uar": round(score, 5), "chance": chance}


def table(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> str:
    """Return a Markdown table of what was read from the embeddings.

    Parameters
    ----------
    rows : sequence of dict
        One per setup, method, seed, ``clips``, label ``read``, ``reader`` and corpus, with ``uar``
        and ``chance`` in [0, 1].
    methods : sequence of str
        In the order of the table.

    Returns
    -------
    str
        Means over seeds and corpora with 95 % intervals, and differences from the first method.
    """
    from metaser.stats import interval, paired_test

    def scores(*cell: str) -> list[list[float]]:
        matching = [row for row in rows if tuple(row[name] for name in CELL) == cell]
        return [[row["uar"] for row in matching if row["seed"] == seed] for seed in seeds]

    seeds = sorted({row["seed"] for row in rows})
    cells = dict.fromkeys(tuple(row[name] for name in CELL) for row in rows)
    kinds = {tuple(row[name] for name in CELL[:-1]): row["chance"] for row in rows}
    lines = [
        "Mean recall (UAR, %) of a classifier on embeddings (linear: logistic regression, kernel: "
        "support vector machine with a Gaussian kernel), over corpora and "
        f"{len(seeds)} seeds [95 % interval; scores]. Corpus and emotion are read from speakers "
        f"that the reader does not know. Differences are from {methods[0]}, corpus by corpus and "
        "seed by seed.",
        "",
        "| setup | clips | read | reader | chance | method | UAR | difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, chance in kinds.items():
        first = scores(*kind, methods[0])
        for method in methods:
            if (*kind, method) not in cells:
                continue
            uars = scores(*kind, method)
            mean, gap = interval(uars), ""
            if method != methods[0] and (*kind, methods[0]) in cells:
                test = paired_test(uars, first)
                gap = f"{_percent(test.difference, test, '+')}], p = {test.p:.3f}"
            value = f"{_percent(mean.mean, mean)}; {mean.episodes}]"
            guess = f"{100 * chance:.1f}"
            lines.append(f"| {' | '.join([*kind, guess, method, value, gap])} |")
    return "\n".join(lines) + "\n"


def _percent(mean: float, bounds: "Interval | Comparison", sign: str = "") -> str:
    """Return a mean and its interval in percent; the bracket is left open."""
    return f"{100 * mean:{sign}.1f} [{100 * bounds.low:{sign}.1f}, {100 * bounds.high:{sign}.1f}"
