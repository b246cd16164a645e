"""Examine a task thoroughly: its folder, its names and labels, every sample of its audio."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaser import audio
from metaser.tasks import clip_checks
from metaser.tasks.matching import by_table, compile_pattern, of_clips, without_extension
from metaser.tasks.modalities import (
    read_transcripts,
    read_vectors,
)
from metaser.tasks.schema import TaskFile, read_facts
from metaser.tasks.table import by_name, find_videos, table_place, table_rows
from metaser.tasks.task import Task

SILENT = 1e-3  # peak of -60 dB below full scale
SHORT = 0.3  # seconds


@dataclass(frozen=True)
class Check:
    """What `check_task` found: `problems` make it fail, `notes` are suspicious, `good` is good."""

    name: str
    facts: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    good: tuple[str, ...] = ()

    def text(self) -> str:
        """Return all findings as lines of text."""
        lines = [self.name, *(f"  {line}" for line in self.facts)]
        lines += [f"  good: {line}" for line in self.good]
        lines += [f"  note: {line}" for line in self.notes]
        lines += [f"  PROBLEM: {line}" for line in self.problems]
        count = len(self.problems)
        verdict = f"{count} problem{'s' if count > 1 else ''}" if count else "nothing wrong"
        return "\n".join([*lines, f"  {verdict}"])


def check_task(
    task: Task, data: Path | None = None, subset: bool = False, jobs: int | None = None
) -> Check:
    """Examine a task thoroughly: its folder, its names and labels, every sample of its audio.

    Parameters
    ----------
    task
        Read with ``strict=False``, so that all problems are listed and not the first alone.
    data
        Data root in which the audio is expected: a problem if it is not there. Without it, absent
        audio is a note.
    subset
        Whether fewer clips or speakers than declared are intended.
    jobs
        Threads that decode; by default one a core.

    Returns
    -------
    Check
    """
    facts = read_facts(task.folder)
    problems = [
        *task.problems,
        *_check_examples(facts, table_place(facts, task.folder, task.audio)),
    ]
    if not (task.folder / "README.md").is_file():
        problems.append("the folder holds no README.md, which says how to obtain the corpus")
    if task.table is None:
        notes = [f"only the folder was checked, no audio; obtain it from {task.homepage}"]
        if data is not None:
            problems.append(f"no audio of {task.corpus}: expected the folder {data / facts.audio}")
        return Check(task.name, (), tuple(problems), tuple(notes))
    notes = _check_classes(task)
    (notes if subset else problems).extend(_check_counts(task, subset))
    if task.unmatched:
        problems.append(
            f"unmatched files ({len(task.unmatched)}): {clip_checks.some(task.unmatched)}"
        )
    wrong, stray, absent = _check_beside(task, facts)
    problems += wrong
    (notes if subset else problems).extend(stray)
    heard, suspicious, good = _check_audio(task, jobs)
    notes += [*absent, *suspicious, *clip_checks.other_files(task.audio)]
    return Check(task.name, tuple(_summary(task)), (*problems, *heard), tuple(notes), tuple(good))


def _summary(task: Task) -> list[str]:
    table = task.table
    lines = [
        f"audio: {task.audio}",
        f"clips: {task.clips_found} of {task.utterances} declared",
        f"speakers: {task.speakers_found} of {task.speakers} declared",
        f"groups of declared duplicates present: {task.duplicates}",
        f"files ignored: {task.ignored}",
    ]
    for name in task.classes:
        own = table[table["emotion"] == name]
        lines.append(f"class {name}: {len(own)} clips of {own['speaker'].nunique()} speakers")
    lines += [
        f"rating {name}: {table[name].notna().sum()} of {len(table)} clips" for name in task.ratings
    ]
    lines += [f"left out {code}: {count} clips" for code, count in task.left_out.items()]
    for column, what in (("transcript", "text"), ("video", "video")):
        if column in table:
            lines.append(f"{what}: {(table[column] != '').sum()} of {len(table)} clips")
    return lines


def _check_counts(task: Task, subset: bool) -> list[str]:
    pairs = [
        (task.clips_found, task.utterances, "clips"),
        (task.speakers_found, task.speakers, "speakers"),
    ]
    advice = "as intended" if subset else "pass --subset if this is intended"
    return [
        f"{found} of {declared} {what}: a subset; {advice}"
        for found, declared, what in pairs
        if found < declared
    ]


def _check_beside(task: Task, facts: TaskFile) -> tuple[list[str], list[str], list[str]]:
    """What is wrong beside the audio, what belongs to no clip, and what is declared but absent."""
    files = [path.relative_to(task.audio).as_posix() for path in audio.find(task.audio)]
    found: dict[str, Mapping[str, Any]] = {}
    wrong, absent = [], []
    if facts.transcripts:
        texts = read_transcripts(facts.transcripts, task.audio)
        names = " or ".join(table.file for table in facts.transcripts)
        if texts is None:
            absent.append(f"no transcripts: found no table {names} below {task.audio}")
        found[f"the table of transcripts ({names})"] = texts or {}
    for modality, own in facts.vectors.items():
        if modality not in task.vectors:
            absent.append(f"no {modality} vectors: found no file {own.file} below {task.audio}")
            continue
        try:
            found[own.file] = read_vectors(task.vectors[modality])
        except ValueError as error:
            wrong.append(str(error))
    if facts.video:
        found["the video folder"] = find_videos(facts.video, task.audio)
        if not found["the video folder"]:
            where = (task.audio / facts.video.folder).resolve()
            absent.append(f"no videos: found no *{facts.video.extension} below {where}")
    stray = []
    for where, own in found.items():
        names = of_clips(own, files)[1]
        if names:
            stray.append(
                f"{where} names files that are not there ({len(names)}): {clip_checks.some(names)}"
            )
    return wrong, stray, absent


def _check_classes(task: Task) -> list[str]:
    units = task.table.groupby("emotion")["unit"].nunique()
    return [
        f"class {name} comes from one speaker only: no speaker-disjoint episode can hold it"
        for name in task.classes
        if units.get(name) == 1
    ]


def _check_examples(facts: TaskFile, place: Path | None) -> list[str]:
    """Hold the [examples] of task.toml against its pattern, or its table where that is present."""
    wrong = []
    for example, expected in facts.examples.items():
        found = _describe_example(facts, place, example)
        if found is None:
            wrong.append(f"example {example!r} is not matched")
            continue
        for key, value in expected.items():
            if key not in found:
                wrong.append(f"example {example!r} gives no {key!r}; it gives {', '.join(found)}")
            elif found[key] != value:
                wrong.append(f"example {example!r} gives {key} {found[key]!r}, expected {value!r}")
    return wrong


def _describe_example(facts: TaskFile, place: Path | None, example: str) -> dict[str, str] | None:
    if facts.files:
        found = by_name(facts.files)(without_extension(example))
    elif facts.table.pattern is not None:
        match = compile_pattern(facts.table.pattern).match(example)
        found = match and match.groupdict(default="")
    elif place is not None:
        found = by_table(table_rows(facts.table, place))(without_extension(example))
    else:
        return facts.examples[example]
    if found is None:
        return None
    if facts.source.speaker is not None:
        found["speaker"] = facts.source.speaker.format_map(found)
    code = found["emotion"]
    dropped = code in facts.emotion.drop
    return {**found, "emotion": "drop" if dropped else facts.emotion.mapping.get(code, code)}


def _check_audio(task: Task, jobs: int | None) -> tuple[list[str], list[str], list[str]]:
    """Decode every usable clip; return what is wrong with them, suspicious, and good."""
    from joblib import Parallel, delayed

    files = list(task.table["file"])
    heard = Parallel(n_jobs=jobs or os.cpu_count(), prefer="threads")(
        delayed(clip_checks.listen)(task.audio / file) for file in files
    )
    clique = dict(zip(files, task.table["clique"], strict=True))
    unusable, silent, short = [], [], []
    copies: dict[str, list[str]] = {}
    for file, clip in zip(files, heard, strict=True):
        if clip.error:
            unusable.append(f"{file}: {clip.error}")
            continue
        copies.setdefault(clip.digest, []).append(file)
        if clip.peak < SILENT:
            silent.append(file)
        if clip.seconds < SHORT:
            short.append(f"{file} ({clip.seconds:.2f} s)")
    double = [
        " = ".join(group) for group in copies.values() if len({clique[file] for file in group}) > 1
    ]
    problems = {
        "unusable files": unusable,
        "silent files, peak below -60 dBFS": silent,
        "the same audio under several names, not declared under [duplicates]": double,
    }
    notes = {f"clips shorter than {SHORT} s": short}
    good, suspicious = clip_checks.judge(task.table, heard)
    return _counted(problems), _counted(notes) + suspicious, good


def _counted(findings: dict[str, list[str]]) -> list[str]:
    return [
        f"{what} ({len(items)}): {clip_checks.some(items)}"
        for what, items in findings.items()
        if items
    ]
