"""`metaser probe`: what can be read from the embeddings of a protocol's methods."""

import json
import os
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
    from metaser.protocol.schema import read_protocol

    with plain_errors():
        plan = read_protocol(protocol)
        rows = list(_measure(plan, methods.split(","), out, data, tasks or (), cache))
        text = table(rows, methods.split(","))
        out.mkdir(parents=True, exist_ok=True)
        _write(out / "probe.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
        _write(out / "probe.md", text)
    typer.echo(text)


def _measure(plan, methods: Sequence[str], out: Path, data, folders, cache) -> Iterator[dict]:
    """One row for each method, seed, label and corpus."""
    import sys

    import torch
    from rich.console import Console

    from metaser import benchmark as harness
    from metaser.protocol.build import settle
    from metaser.version import version

    console = Console(stderr=True)
    plan = settle(plan)
    torch.set_num_threads(1)
    present, _ = harness.present_tasks(plan, data, folders)
    present = {name: harness.restrict(task, plan.classes) for name, task in present.items()}
    jobs = harness.plan_jobs(plan, present, methods=methods)
    for name, setup in plan.setups.items():
        own = [job for job in jobs if job.setup == name and set(job.targets) & set(plan.targets)]
        materials = harness.gather(setup, own, present, cache, 1, console) if own else {}
        for job in own:
            first = job.methods[0]
            method = harness.train_method(first, plan, job, materials, out / "checkpoints")
            if not hasattr(method, "model"):
                raise ValueError(f"{job.methods[0]} has no embeddings: name methods with a network")
            versions = {task.name: task.version for task in present.values()}
            for clips, tasks in (("sources", job.sources), ("targets", job.targets)):
                for found in _probe([materials[t] for t in tasks], plan, method):
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


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
