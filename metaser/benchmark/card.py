"""What a report tells besides the rows: data card, versions, command."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np

from metaser.benchmark.plan import Plan
from metaser.files import write_json
from metaser.methods import METHODS
from metaser.outside import comes_from_outside, title_and_line
from metaser.protocol.build import method_type
from metaser.protocol.schema import Protocol, Setup
from metaser.rows import now
from metaser.tasks.task import Task
from metaser.version import version

PACKAGES = ("torch", "numpy", "librosa", "scikit-learn", "pandas", "soundfile")


def write_run(out: Path, plan: Plan, command: str) -> None:
    """Write what the report prints in addition to the rows: data card, versions, command."""
    protocol = plan.protocol.model_dump()
    for name, setup in plan.setups.items():
        protocol["setups"][name] = setup.model_dump() | {"sources_for": plan.chosen.get(name, {})}
    titles = outside_titles(plan.setups.values())
    facts = {
        "protocol": protocol,
        "command": command,
        "metaser": version(),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "machine": f"{os.cpu_count()} × {platform.machine()} {platform.system()}",
        "started": now(),
        "absent": plan.absent,
        "tasks": {name: _card(task, plan.protocol) for name, task in plan.tasks.items()},
    }
    write_json(out / "run.json", facts | ({"titles": titles} if titles else {}), indent=1)


def outside_titles(setups: Iterable[Setup]) -> dict[str, tuple[str, str]]:
    """Return a title and a line of explanation for each method that comes from outside."""
    titles = {}
    for setup in setups:
        for label, arguments in setup.methods.items():
            if comes_from_outside(arguments.get("method", label), METHODS):
                titles[label] = title_and_line(method_type(label, setup)[0])
    return titles


def _card(task: Task, protocol: Protocol) -> dict[str, Any]:
    """Return what the data card says of a task."""
    counts = task.table["emotion"].value_counts().to_dict()
    source, target = task.name in protocol.sources, task.name in protocol.targets
    return {
        "language": task.language,
        "corpus": task.corpus,
        "version": task.version,
        "licence": task.licence,
        "reference": task.reference,
        "homepage": task.homepage,
        "synthetic": task.synthetic,
        "clips": task.clips_found,
        "speakers": task.speakers_found,
        "declared_clips": task.utterances,
        "declared_speakers": task.speakers,
        "classes": {name: counts.get(name, 0) for name in protocol.classes},
        "left_out": dict(task.left_out),
        "leakage": leakage(task, protocol),
        "role": "both" if source and target else "source" if source else "target",
        "duplicates": task.duplicates,
    }


def leakage(task: Task, protocol: Protocol) -> str:
    """Return one sentence on what support and query clips of a task may have in common."""
    table = task.table[task.table["emotion"].isin(protocol.classes)]
    cells = table.groupby("speaker")["emotion"].nunique()
    parts = []
    if protocol.speakers == "disjoint":
        parts.append("support and query share no speaker and no audio")
    else:
        parts.append("speakers appear on both sides (leaky by design); shared audio does not")
    if task.duplicates:
        parts.append(f"{task.duplicates} declared groups of duplicates are kept on one side")
    if (cells == 1).mean() > 0.5:
        parts.append(
            f"{int((cells == 1).sum())} of {len(cells)} speakers show one emotion only, so a voice "
            "can give the emotion away wherever speakers are shared"
        )
    if "text" in table and table["text"].replace("", np.nan).notna().any():
        parts.append("the same scripted texts are spoken on both sides")
    sentence = "; ".join(parts)
    return sentence[0].upper() + sentence[1:] + "."
