"""Examine a task thoroughly: its folder, its names and labels, every sample of its audio."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from metaser import audio
from metaser.naming import some
from metaser.tasks import clip_checks
from metaser.tasks.identity import plain_text
from metaser.tasks.matching import by_table, compile_pattern, of_clips, without_extension
from metaser.tasks.modalities import (
    read_transcripts,
    read_vectors,
)
from metaser.tasks.schema import TaskFile, read_facts
from metaser.tasks.speakers import speaker_alone
from metaser.tasks.table import by_name, find_videos, table_place, table_rows
from metaser.tasks.task import Task

SILENT = 1e-3
"""Peak of a clip below which it counts as silent: -60 dB, relative to full scale."""

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

SHORT = 0.3
"""Seconds below which a clip counts as short."""


@dataclass(frozen=True)
class Check:
    """Findings of `check_task`, one sentence each.

    Attributes
    ----------
    name : str
        Name of the task.
    facts : tuple of str
        Numbers of clips, speakers and classes.
    problems : tuple of str
        What makes the check fail.
    notes : tuple of str
        What is suspicious, or should be known.
    good : tuple of str
        What was looked at and is sound.
    """

    name: str
    facts: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    good: tuple[str, ...] = ()

    def text(self) -> str:
        """Return all findings as text, one per line; the last line is the verdict."""
        lines = [self.name, *(f"  {line}" for line in self.facts)]
        lines += [f"  good: {line}" for line in self.good]
        lines += [f"  note: {line}" for line in self.notes]
        lines += [f"  PROBLEM: {line}" for line in self.problems]
        return "\n".join([*lines, f"  {self._verdict()}"])

    def _verdict(self) -> str:
        count, notes = len(self.problems), len(self.notes)
        if count:
            return f"{count} problem{'s' if count > 1 else ''}"
        if not notes:
            return "nothing wrong"
        number = NUMBERS[notes] if notes < len(NUMBERS) else str(notes)
        usable = "usable" if self.facts else "the folder is right"
        return f"{usable}; {number} thing{'s' if notes > 1 else ''} to know"


def check_task(
    task: Task, data: Path | None = None, subset: bool = False, jobs: int | None = None
) -> Check:
    """Examine a task thoroughly: its folder, its names and labels, every sample of its audio.

    Parameters
    ----------
    task
        The task, read with ``strict=False``, so that all problems are listed and not only the
        first.
    data
        Data root below which the audio must lie. Without it, absent audio is a note and no problem.
    subset
        Whether fewer clips or speakers than declared are intended.
    jobs
        Threads that decode; by default one per core.

    Returns
    -------
    Check
        The findings; the task has passed if there are no problems.
    """
    facts = read_facts(task.folder)
    problems = [
        *task.problems,
        *_check_examples(facts, table_place(facts, task.folder, task.audio)),
    ]
    if not (task.folder / "README.md").is_file():
        problems.append("the folder must hold a README.md that says how to obtain the corpus")
    if task.table is None or task.audio is None:
        notes = [f"only the folder was checked, not the audio; obtain it from {task.homepage}"]
        if data is not None:
            problems.append(f"no audio of {task.corpus}: expected the folder {data / facts.audio}")
        return Check(task.name, (), tuple(problems), tuple(notes))
    notes = _check_classes(task, task.table)
    (notes if subset else problems).extend(_check_counts(task, subset))
    if task.unmatched:
        problems.append(f"unmatched files ({len(task.unmatched)}): {some(task.unmatched)}")
    if task.stray:
        named = f"rows of the table name no audio file ({len(task.stray)}): {some(task.stray)}"
        (notes if subset else problems).append(named)
    if task.people:
        notes.append(f"speakers spelt in several ways count as one: {some(task.people)}")
    wrong, stray, absent = _check_modalities(task, facts, task.audio)
    problems += wrong
    (notes if subset else problems).extend(stray)
    faults, suspicious, good = _check_audio(task.audio, task.table, jobs)
    alone = speaker_alone(task.table)
    (suspicious if alone.suspicious else good).append(alone.sentence())
    notes += [*absent, *suspicious, *clip_checks.other_files(task.audio)]
    summary = _summary(task, task.table)
    return Check(task.name, tuple(summary), (*problems, *faults), tuple(notes), tuple(good))


def _summary(task: Task, table: pd.DataFrame) -> list[str]:
    """Return the numbers of clips, speakers and classes, one sentence each."""
    lines = [
        f"audio: {task.audio}",
        f"clips: {task.clips_found} of {task.utterances} declared",
        f"speakers: {task.speakers_found} of {task.speakers} declared",
        f"groups of declared duplicates present: {task.duplicates}",
        f"files ignored: {task.ignored}",
    ]
    for name in task.classes:
        clips = table[table["emotion"] == name]
        lines.append(f"class {name}: {len(clips)} clips of {clips['speaker'].nunique()} speakers")
    lines += [
        f"rating {name}: {table[name].notna().sum()} of {len(table)} clips" for name in task.ratings
    ]
    lines += [f"left out {code}: {count} clips" for code, count in task.left_out.items()]
    for column, what in (("transcript", "text"), ("video", "video")):
        if column in table:
            lines.append(f"{what}: {(table[column] != '').sum()} of {len(table)} clips")
    return lines


def _check_counts(task: Task, subset: bool) -> list[str]:
    """Report fewer clips or speakers than task.toml declares."""
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


def _check_modalities(
    task: Task, facts: TaskFile, place: Path
) -> tuple[list[str], list[str], list[str]]:
    """Check transcripts, vectors and videos.

    Returns what is wrong with them, which of them belong to no clip, and which are declared but
    absent.
    """
    files = [path.relative_to(place).as_posix() for path in audio.find(place)]
    named: dict[str, Mapping[str, Any]] = {}  # what each source has, by the names of clips
    wrong, absent = [], []
    if facts.transcripts:
        texts = read_transcripts(facts.transcripts, place)
        tables = " or ".join(table.file for table in facts.transcripts)
        if texts is None:
            absent.append(f"no transcripts: found no table {tables} below {place}")
        named[f"the table of transcripts ({tables})"] = texts or {}
    for modality, section in facts.vectors.items():
        if modality not in task.vectors:
            absent.append(f"no {modality} vectors: found no file {section.file} below {place}")
            continue
        try:
            named[section.file] = read_vectors(task.vectors[modality])
        except ValueError as error:
            wrong.append(str(error))
    if facts.video:
        videos = named["the video folder"] = find_videos(facts.video, place)
        if not videos:
            folder = (place / facts.video.folder).resolve()
            absent.append(f"no videos: found no *{facts.video.extension} below {folder}")
    stray = []
    for source, values in named.items():
        try:
            names = of_clips(values, files, place)[1]
        except ValueError as error:
            wrong.append(f"{source}: {error}")
            continue
        if names:
            stray.append(f"{source} names files that do not exist ({len(names)}): {some(names)}")
    return wrong, stray, absent


def _check_classes(task: Task, table: pd.DataFrame) -> list[str]:
    """Report classes of which all clips come from one unit of speakers."""
    units = table.groupby("emotion")["unit"].nunique()
    return [
        f"class {name} comes from one speaker only: no speaker-disjoint episode can hold it"
        for name in task.classes
        if units.get(name) == 1
    ]


def _check_examples(facts: TaskFile, place: Path | None) -> list[str]:
    """Compare the [examples] of task.toml with its pattern, or with its table if present."""
    wrong = []
    for example, expected in facts.examples.items():
        values = _describe_example(facts, place, example)
        if values is None:
            wrong.append(f"example {example!r} is not matched")
            continue
        for key, value in expected.items():
            if key not in values:
                wrong.append(f"example {example!r} gives no {key!r}; it gives {', '.join(values)}")
            elif values[key] != value and not (
                key == "speaker" and plain_text(values[key]) == plain_text(value)
            ):
                wrong.append(f"example {example!r} gives {key} {values[key]!r}, expected {value!r}")
    return wrong


def _describe_example(
    facts: TaskFile, place: Path | None, example: str
) -> Mapping[str, str] | None:
    """Return what task.toml makes of an example; what it expects where the table is absent."""
    values: dict[str, str] | None
    if facts.files:
        values = by_name(facts.files)(without_extension(example))
    elif facts.table and facts.table.pattern is not None:
        match = compile_pattern(facts.table.pattern).match(example)
        values = None if match is None else match.groupdict(default="")
    elif facts.table and place is not None:
        values = by_table(table_rows(facts.table, place), [example])[0][0]
    else:
        return facts.examples[example]
    if values is None:
        return None
    if facts.source.speaker is not None:
        values["speaker"] = facts.source.speaker.format_map(values)
    code = values["emotion"]
    dropped = code in facts.emotion.drop
    return {**values, "emotion": "drop" if dropped else facts.emotion.mapping.get(code, code)}


def _check_audio(
    place: Path, table: pd.DataFrame, jobs: int | None
) -> tuple[list[str], list[str], list[str]]:
    """Decode each usable clip; return what is wrong, what is suspicious, and what is good."""
    from joblib import Parallel, delayed
    from rich.console import Console
    from rich.progress import track

    files = list(table["file"])
    work = Parallel(n_jobs=jobs or os.cpu_count(), prefer="threads", return_as="generator")(
        delayed(clip_checks.listen)(place / file) for file in files
    )
    measured: list[clip_checks.Heard] = list(
        track(work, "hearing", len(files), console=Console(stderr=True), transient=True)
        if sys.stderr.isatty()
        else work
    )
    clique = dict(zip(files, table["clique"], strict=True))
    unusable, silent, short, noted = [], [], [], []
    copies: dict[str, list[str]] = {}
    for file, clip in zip(files, measured, strict=True):
        if clip.error:
            unusable.append(f"{file}: {clip.error}")
            continue
        copies.setdefault(clip.digest, []).append(file)
        if clip.peak < SILENT:
            silent.append(file)
        noted += [f"{file}: {note}" for note in clip.notes]
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
    notes = {f"clips shorter than {SHORT} s": short, "of clips that were read": noted}
    good, suspicious = clip_checks.judge(table, measured)
    return _counted(problems), _counted(notes) + suspicious, good


def _counted(findings: Mapping[str, Sequence[str]]) -> list[str]:
    """Return one sentence per kind of finding, with its number and the first items."""
    return [f"{what} ({len(items)}): {some(items)}" for what, items in findings.items() if items]
