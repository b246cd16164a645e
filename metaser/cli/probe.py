"""`metaser probe`: what can be read from the embeddings of a protocol's methods."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from metaser.cli.options import Cache, Data, Folders, plain_errors

CELL = ("setup", "clips", "read", "reader", "method")


def probe(
    protocol: Annotated[str, typer.Argument(help="Name of a protocol, or path of its TOML file.")],
    methods: Annotated[
        str, typer.Option(help="Methods, separated by commas; the others against the first.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of the protocol's results; its trainings are used.")
    ],
    data: Data = None,
    tasks: Folders = None,
    cache: Cache = None,
) -> None:
    """Tell how well speaker, corpus and emotion are read from embeddings; writes probe.md there."""
    from metaser.files import Places, write_text
    from metaser.protocol.schema import read_protocol

    with plain_errors():
        plan = read_protocol(protocol)
        rows = list(_measure(plan, methods.split(","), out, Places.at(data, tasks, cache)))
        text = table(rows, methods.split(","))
        write_text(out / "probe.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
        write_text(out / "probe.md", text)
    typer.echo(text)


def _measure(protocol, methods: Sequence[str], out: Path, places) -> Iterator[dict]:
    """One row for each method, seed, label and corpus."""
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
        own = [
            job for job in jobs if job.setup == name and set(job.targets) & set(protocol.targets)
        ]
        materials = gather(settled, own, plan.tasks, places, progress=progress) if own else {}
        for job in own:
            first = job.methods[0]
            folder = out / "checkpoints"
            method = train_method(
                first, protocol, settled.setup, job, materials, checkpoints=folder
            )
            if model_of(method) is None:
                raise ValueError(f"{job.methods[0]} has no embeddings: name methods with a network")
            versions = {task.name: task.version for task in plan.tasks.values()}
            for clips, tasks in (("sources", job.sources), ("targets", job.targets)):
                for found in _probe([materials[t] for t in tasks], protocol, method):
                    found |= {"task_version": versions[found["corpus"]], "metaser": version()}
                    for label in job.methods:
                        facts = {"setup": name, "method": label, "seed": job.seed}
                        yield facts | {"clips": clips} | found
            print(f"{name} {', '.join(job.methods)} seed {job.seed}: read", file=sys.stderr)


def _probe(materials, plan, method) -> Iterator[dict]:
    """What is read from all clips of some tasks, and what guessing evenly would give."""
    import numpy as np
    import pandas as pd
    import torch

    from metaser.analysis.probe import READ, READERS, probe

    embeddings = []
    for material in materials:
        rows = np.arange(len(material.task.table))
        batch = material.plain.batch(rows, np.zeros_like(rows), np.ones(len(plan.classes), bool))
        with torch.no_grad():
            embeddings.append(method.model.embed(batch.modalities))
    clips = pd.concat([m.task.table.assign(corpus=m.task.name) for m in materials])
    labels = {name: clips[name].to_numpy(str) for name in READ}
    labels["speaker"] = np.char.add(np.char.add(labels["corpus"], " "), labels["speaker"])
    for reader in READERS:
        found = probe(torch.cat(embeddings).numpy(), **labels, reader=reader)
        for read, scores in found.items():
            chance = round(1 / len(np.unique(labels[read])), 5)
            for corpus, score in scores.items():
                facts = {"read": read, "reader": reader, "corpus": corpus}
                yield facts | {"uar": round(score, 5), "chance": chance}


def table(rows: Sequence[dict], methods: Sequence[str]) -> str:
    """Markdown: mean over seeds and corpora with its interval, and the difference to the first."""
    from metaser.stats import interval, paired_test

    def scores(*cell: str) -> list[list[float]]:
        own = [row for row in rows if tuple(row[name] for name in CELL) == cell]
        return [[row["uar"] for row in own if row["seed"] == seed] for seed in seeds]

    seeds = sorted({row["seed"] for row in rows})
    cells = dict.fromkeys(tuple(row[name] for name in CELL) for row in rows)
    kinds = {tuple(row[name] for name in CELL[:-1]): row["chance"] for row in rows}
    lines = [
        "Mean recall (UAR, %) of a classifier on embeddings (linear: logistic regression, kernel: "
        "support vector machine with a Gaussian kernel), over corpora and "
        f"{len(seeds)} seeds [95 % interval; scores]. Corpus and emotion are read from speakers "
        f"that the reader has not heard. Differences are to {methods[0]}, corpus by corpus and "
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
            own = scores(*kind, method)
            mean, gap = interval(own), ""
            if method != methods[0] and (*kind, methods[0]) in cells:
                found = paired_test(own, first)
                gap = f"{_percent(found.difference, found, '+')}], p = {found.p:.3f}"
            value = f"{_percent(mean.mean, mean)}; {mean.episodes}]"
            guess = f"{100 * chance:.1f}"
            lines.append(f"| {' | '.join([*kind, guess, method, value, gap])} |")
    return "\n".join(lines) + "\n"


def _percent(mean: float, bounds, sign: str = "") -> str:
    return f"{100 * mean:{sign}.1f} [{100 * bounds.low:{sign}.1f}, {100 * bounds.high:{sign}.1f}"
