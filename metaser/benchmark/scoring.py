"""One cell of a benchmark: its episodes, and a method's scores on them."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metaser import metrics
from metaser.audio import content_hash
from metaser.batch import EpisodeBatch
from metaser.benchmark.materials import Material
from metaser.benchmark.plan import Cell
from metaser.benchmark.voices import scores_by_voice
from metaser.contracts import Method, method_traits
from metaser.episodes import (
    Episode,
    SplitSampler,
    TaskSampler,
    digest,
    tensors,
    write_manifest,
)
from metaser.features.table import Features
from metaser.files import Places
from metaser.machine import device_of
from metaser.protocol.schema import Protocol, Setup
from metaser.rows import now
from metaser.tasks.task import Task, join_same_audio, read_task, require_audio, restrict
from metaser.version import version


def cell_sampler(
    protocol: Protocol, task: Task, size: float, seed: int
) -> tuple[TaskSampler | SplitSampler, int]:
    """Return the sampler of a cell, and how many episodes it draws."""
    if protocol.episodes is not None:
        plan = protocol.episodes
        sampler = TaskSampler(
            task,
            protocol.classes,
            int(size),
            plan.queries,
            seed,
            speakers=protocol.speakers,
            unequal=plan.unequal,
        )
        return sampler, plan.count
    test = protocol.split.test if protocol.split is not None else 0.0
    return SplitSampler(task, protocol.classes, test, size, seed), 1


def write_episodes(
    protocol: Protocol,
    target: str,
    shots: int,
    seed: int,
    path: Path,
    places: Places,
) -> str:
    """Write the manifest of a cell's episodes and return its digest.

    Raises
    ------
    ValueError
        If the protocol has no such episodes.
    FileNotFoundError
        If the target's audio is not present.
    """
    if protocol.episodes is None or shots not in protocol.episodes.shots:
        sizes = protocol.episodes.shots if protocol.episodes else "splits, not episodes"
        raise ValueError(f"{protocol.name} has no {shots}-shot episodes; it has {sizes}")
    if seed not in protocol.seeds:
        raise ValueError(f"{protocol.name} has no seed {seed}; it has {protocol.seeds}")
    task = require_audio(read_task(target, places.data, places.folders))
    task = restrict(task, protocol.classes)
    task = join_same_audio(
        task, np.array([content_hash(task.audio / f) for f in task.table["file"]])
    )
    sampler, count = cell_sampler(protocol, task, shots, seed)
    return write_manifest(path, task, [sampler.episode(index) for index in range(count)])


def _voice_facts(setup: Setup, trusts: Sequence[float]) -> dict[str, Any]:
    """Return what a setup knows of the voices, and how far their statistics were trusted."""
    if setup.normalise != "voice":
        return {}
    known = "all unlabelled clips"
    if setup.voice.clips is not None:
        kind = "neutral" if setup.voice.neutral else "unlabelled"
        known = f"{setup.voice.clips} {kind} clips"
    return {"voice": known, "trust": round(float(np.mean(trusts)), 4)}


def _views(episode: Episode, material: Material, method: Method) -> list[EpisodeBatch]:
    """Return an episode's clips, in each way in which the method may look at them."""
    views: Sequence[Features] = [material.plain]
    if material.voices is not None:
        views = material.voices.features(material.task, episode)
    if method_traits(method).knows_speakers:
        who = np.unique(material.task.table["speaker"].to_numpy(str), return_inverse=True)[1]
        views = [replace(features, domains={"speaker": who}) for features in views]
    return [tensors(episode, features) for features in views]


def score_cell(
    protocol: Protocol, setup: Setup, method: Any, cell: Cell, material: Material
) -> dict[str, Any]:
    """Adapt to and score every episode of a cell; return what its row says of that."""
    sampler, count = cell_sampler(protocol, material.task, cell.size, cell.seed)
    episodes = [sampler.episode(index) for index in range(count)]
    uar, macro_f1, seconds, trusts = [], [], [], []
    confusion = np.zeros((len(protocol.classes),) * 2, int)
    for episode in episodes:
        batches = [batch.to(device_of(method)) for batch in _views(episode, material, method)]
        started = time.perf_counter()
        if len(batches) == 1:
            scores = method.adapt(batches[0].support)(batches[0].query.modalities).cpu()
        else:
            scores, trust = scores_by_voice(
                method,
                [batch.support for batch in batches],
                [batch.query for batch in batches],
                material.task.table["speaker"].to_numpy()[episode.support],
            )
            trusts.append(trust)
        seconds.append(time.perf_counter() - started)
        if torch.isnan(scores).any():
            raise FloatingPointError(
                f"{cell.method} gives scores that are not numbers in episode {episode.index} of "
                f"{cell.target} at {cell.size}: lower its rate"
            )
        predicted = scores.argmax(dim=1).numpy()
        uar.append(metrics.uar(episode.query_targets, predicted))
        macro_f1.append(metrics.macro_f1(episode.query_targets, predicted))
        confusion += metrics.confusion(
            episode.query_targets, predicted, range(len(protocol.classes))
        )
    return {
        "setup": cell.setup,
        "method": cell.method,
        "target": cell.target,
        "task_version": material.task.version,
        "language": material.task.language,
        "synthetic": material.task.synthetic,
        "shots": cell.size if protocol.episodes else None,
        "queries": protocol.episodes.queries if protocol.episodes else None,
        "fraction": None if protocol.episodes else cell.size,
        "seed": cell.seed,
        "episodes": count,
        "digest": digest(material.task, episodes),
        "speakers": protocol.speakers,
        "normalise": setup.normalise,
        **_voice_facts(setup, trusts),
        "modalities": list(setup.frontends),
        "frontend": ", ".join(facts["name"] for facts in setup.frontends.values()),
        "backbone": setup.backbone["name"],
        "batch_norm": setup.batch_norm,
        "uar": [round(value, 5) for value in uar],
        "macro_f1": [round(value, 5) for value in macro_f1],
        "confusion": confusion.tolist(),
        "classes": list(protocol.classes),
        "role": "target" if cell.target in protocol.targets else "held_out_source",
        "adapt_seconds": round(float(np.mean(seconds)), 5),
        "device": device_of(method).type,
        "metaser": version(),
        "torch": torch.__version__,
        "created": now(),
    }
