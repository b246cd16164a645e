"""What a report tells besides the rows: data card, versions, command."""

import json
import os
import platform
from importlib.metadata import version as package_version
from pathlib import Path

import numpy as np

from metaser.protocol.schema import Protocol
from metaser.rows import now
from metaser.tasks.task import Task
from metaser.version import version

PACKAGES = ("torch", "numpy", "librosa", "scikit-learn", "pandas", "soundfile")


def write_run(out: Path, protocol: Protocol, tasks: dict[str, Task], absent, command: str) -> None:
    """Write what the report tells besides the rows: data card, versions, command."""
    facts = {
        "protocol": protocol.model_dump(),
        "command": command,
        "metaser": version(),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "machine": f"{os.cpu_count()} × {platform.machine()} {platform.system()}",
        "started": now(),
        "absent": absent,
        "tasks": {name: _card(task, protocol) for name, task in tasks.items()},
    }
    part = out / "run.json.part"
    part.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, out / "run.json")


def _card(task: Task, protocol: Protocol) -> dict:
    """Facts of a task for the data card."""
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
        "left_out": {k: v for k, v in counts.items() if k not in protocol.classes}
        | dict(task.left_out),
        "leakage": leakage(task, protocol),
        "role": "both" if source and target else "source" if source else "target",
        "duplicates": task.duplicates,
    }


def leakage(task: Task, protocol: Protocol) -> str:
    """One sentence on what support and query clips of a task may have in common."""
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
