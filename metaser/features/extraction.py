"""A task's clips through a front end: extracted in parallel, stored on disk, normalised.

Clips are heard, read (their transcripts) or seen (their videos); vectors that a task folder holds
are taken as they are.

Every task has a folder below the cache's folder ``features``. There, ``files-*.json`` notes size,
time and audio content of each file, so that a file which has not changed is not decoded again, and
each front end and recording situation has a store (``metaser.store``), named by a digest of its
arguments and one of code and libraries, in which features are found by the content of the audio.
"""

import functools
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from rich.progress import track

from metaser.contracts import FrontEnd, compute_many, extracted, frontend_traits
from metaser.features import store
from metaser.features.cache import (
    add_notes,
    cache_lock,
    cache_root,
    code_digest,
    content_of,
    file_stamp,
    read_notes,
    store_name,
    unchanged,
)
from metaser.features.hear import Stretch, at_rate, compute_frames, read_clip
from metaser.features.table import Features
from metaser.frontends import Joined, Vectors
from metaser.recording import Situation, rerecord
from metaser.tasks.matching import of_clips
from metaser.tasks.modalities import read_vectors
from metaser.tasks.task import Task, require_audio

log = logging.getLogger(__name__)

CHUNK = 32
"""Clips that a process takes at a time."""

WRITE_SECONDS = 2.0
"""Features are written that often, at the end, and when the work is interrupted."""


def extract(
    task: Task,
    frontend: Any,
    cache: str | Path | None = None,
    *,
    situation: Situation | None = None,
    jobs: int = 1,
    progress: bool = False,
) -> Features:
    """Features of all clips of a task in one modality, from the store where it has them.

    The store is opened, not read. A file is decoded only if it is new, its size or time has
    changed, or the store lacks its features. An interruption keeps what was extracted.

    Parameters
    ----------
    task : Task
        A task whose audio is present.
    frontend : callable
        One of ``FAMILIES``: a dataclass that is called with a waveform of its ``rate``, or with
        what its ``modality`` is; or an ``nn.Module`` whose ``extracted`` is such a one.
    cache : str or Path, optional
        Cache folder; ``default_cache()`` if not given.
    situation : Situation, optional
        Hear every clip as if recorded in this situation; for front ends of audio.
    jobs : int
        Processes.
    progress : bool
        Show a progress bar.

    Raises
    ------
    AudioError
        If a clip cannot be read or gives features that are not finite; the message names it.
    VideoError
        The same of a video.
    ValueError
        If the task does not give what the front end reads, see ``lacks``.
    """
    frontend = extracted(frontend)
    if isinstance(frontend, Joined):
        options = {"situation": situation, "jobs": jobs, "progress": progress}
        parts = [extract(task, part, cache, **options) for part in frontend.parts]
        return replace(parts[0], values=frontend.join([part.values for part in parts]))
    traits = frontend_traits(frontend)
    modality = traits.modality
    if reason := lacks(task, frontend):
        raise ValueError(f"{task.name} gives no {modality} to {type(frontend).__name__}: {reason}")
    if isinstance(frontend, Vectors):
        return _vectors(task, frontend)
    names, root = _inputs(task, modality), cache_root(cache)
    present = list(filter(None, dict.fromkeys(names)))
    folder = root / task.name / store_name(frontend, situation)
    if modality == "text":
        known = {text: _text_content(text) for text in present}
    else:
        known = unchanged(task, root, present)
    held = store.contents(folder)
    missing = [name for name in present if known.get(name) not in held]
    if missing:
        read = {
            "audio": functools.partial(_extract_clips, task.audio, frontend, situation, folder),
            "text": functools.partial(_extract_texts, frontend),
            "video": functools.partial(_extract_videos, task.audio, frontend, folder),
        }[modality]
        work = _in_chunks(read, missing, jobs, progress, f"{task.name}: features")
        facts = {
            "task": task.name,
            "frontend": repr(frontend),
            "situation": repr(situation) if situation else "",
            "code": code_digest(type(frontend), traits.engine, situation is not None),
        }
        found, rates = _keep(work, task, root, folder, facts)
        known |= found
        others = sorted(rates - {traits.rate})
        if others and traits.trained:
            log.warning(
                "%s: audio of %s Hz was resampled to %d Hz, on which %s was trained",
                task.name,
                ", ".join(map(str, others)),
                frontend.rate,
                type(frontend).__name__,
            )
    hashes = np.array([known.get(name, "") for name in names])
    values = _with_gaps(store.read(folder, hashes[hashes != ""]), hashes != "")
    return Features(values, values.lengths, hashes, modality)


def lacks(task: Task, frontend: Callable) -> str:
    """Why a task whose audio is present does not give what a front end reads; empty if it does."""
    frontend = extracted(frontend)
    modality = frontend_traits(frontend).modality
    if isinstance(frontend, Vectors):
        if modality in task.vectors:
            return ""
        return f"its folder has no [vectors.{modality}], or the file that it names is not there"
    if modality == "audio" or any(_inputs(task, modality)):
        return ""
    return {
        "text": "its folder has no 'transcript' and no [[transcripts]], or the table is not there",
        "video": "its folder has no [video], or there is no such file",
    }[modality]


def _inputs(task: Task, modality: str) -> list[str]:
    """What a front end reads of each clip: paths below the audio folder, or texts."""
    files = _files(task)
    column = {"audio": "file", "text": "transcript", "video": "video"}[modality]
    return task.table[column].tolist() if column in task.table else [""] * len(files)


def _vectors(task: Task, frontend: Vectors) -> Features:
    """The vectors that the task folder holds."""
    path = task.vectors[frontend.modality]
    clips, _ = of_clips(read_vectors(path), _files(task))
    given = [frontend(clip) for clip in clips if clip is not None]
    if not given:
        raise ValueError(f"{path} names no clip of {task.name}")
    has = np.array([clip is not None for clip in clips])
    lengths = np.array([len(clip) for clip in given])
    hashes = np.full(len(clips), "", "U32")
    hashes[has] = [_hexdigest(clip.tobytes()) for clip in given]
    values = store.Ragged(np.concatenate(given), np.cumsum(lengths) - lengths, lengths)
    values = _with_gaps(values, has)
    return Features(values, values.lengths, hashes, frontend.modality)


def _with_gaps(values: store.Ragged, has: np.ndarray) -> store.Ragged:
    """Put sequences where ``has`` is True, and sequences without frames between them."""
    starts, lengths = np.zeros((2, len(has)), int)
    starts[has], lengths[has] = values.starts, values.lengths
    return store.Ragged(values.frames, starts, lengths)


def audio_contents(
    task: Task, cache: str | Path | None = None, jobs: int = 1, progress: bool = False
) -> np.ndarray:
    """The content of each clip's audio, as ``Features.hashes`` has it, without features.

    Raises
    ------
    AudioError
        If a clip cannot be read; the message names it.
    """
    names, root = _files(task), cache_root(cache)
    known = unchanged(task, root, names)
    missing = [name for name in names if name not in known]
    after = _hash_files(task, root, missing, jobs, progress, "reading")
    known |= {name: content_of(note) for name, note in after.items()}
    return np.array([known[name] for name in names])


def verify(
    task: Task, cache: str | Path | None = None, jobs: int = 1, progress: bool = False
) -> list[str]:
    """Hash the audio of every clip anew, whatever its file's size and time say.

    Returns
    -------
    list of str
        Files whose audio is not what it was; ``extract`` will extract them anew.

    Raises
    ------
    AudioError
        If a clip cannot be read; the message names it.
    """
    names, root = _files(task), cache_root(cache)
    noted = read_notes(task, root)
    before = {name: noted[name] for name in names if name in noted}
    after = _hash_files(task, root, names, jobs, progress, "verifying")
    return [name for name in before if content_of(before[name]) != content_of(after[name])]


def _hash_files(
    task: Task, root: Path, names: Sequence[str], jobs: int, progress: bool, what: str
) -> dict[str, str]:
    """Decode files, and note and return their size, time and content."""
    after = {}
    hash_clips = functools.partial(_hash_clips, task.audio)
    for notes in _in_chunks(hash_clips, names, jobs, progress, f"{task.name}: {what}"):
        after |= notes
    with cache_lock(root):
        add_notes(task, root, after)
    return after


def _files(task: Task) -> list[str]:
    return require_audio(task).table["file"].tolist()


def _in_chunks(
    work: Callable, names: Sequence[str], jobs: int, progress: bool, description: str
) -> Iterator:
    """Do the work on some files at a time, in parallel."""
    chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
    done = Parallel(n_jobs=jobs, return_as="generator_unordered")(map(delayed(work), chunks))
    if progress:
        done = track(done, description=description, total=len(chunks), transient=True)
    return done


def _keep(
    work: Iterable[tuple[dict, dict, set]], task: Task, root: Path, folder: Path, facts: dict
) -> tuple[dict[str, str], set[int]]:
    """Write features as they come, also those before an interruption.

    Return the contents of the files, and the sampling rates met.
    """
    notes, clips, found, rates, written = {}, {}, {}, set(), time.monotonic()

    def write() -> None:
        with cache_lock(root):
            store.append(folder, clips, facts)
            if notes:
                add_notes(task, root, notes)
        clips.clear()
        notes.clear()

    try:
        for new_notes, new_clips, new_rates in work:
            notes |= new_notes
            clips |= new_clips
            rates |= new_rates
            found |= {name: content_of(note) for name, note in new_notes.items()}
            if time.monotonic() - written > WRITE_SECONDS:
                write()
                written = time.monotonic()
    finally:
        if notes or clips:
            write()
    return found, rates


def _decode(path: Path) -> tuple[Stretch, str]:
    """Decode a file; return it with its note: size and time before it was read, and content."""
    stamp = file_stamp(path)
    clip = read_clip(path)
    return clip, f"{stamp} {clip.content}"


def _hash_clips(folder: Path, names: Sequence[str]) -> dict[str, str]:
    return {name: _decode(folder / name)[1] for name in names}


def _extract_clips(
    audio_folder: Path,
    frontend: FrontEnd,
    situation: Situation | None,
    folder: Path,
    names: Sequence[str],
) -> tuple[dict[str, str], dict[str, np.ndarray], set[int]]:
    """Return notes of some files, features by content that the store lacks, and sampling rates."""
    stored, notes, rates = store.contents(folder), {}, set()

    def missing() -> Iterator[Stretch]:
        for name in names:
            clip, notes[name] = _decode(audio_folder / name)
            if clip.content in stored:
                continue
            stored.add(clip.content)
            rates.add(clip.rate)
            clip = at_rate(clip, frontend.rate)
            if situation is not None:
                rng = np.random.default_rng(int(clip.content, 16))
                clip = replace(
                    clip, waveform=rerecord(clip.waveform, frontend.rate, situation, rng)
                )
            yield clip

    clips = {clip.content: clip.frames for clip in compute_frames(missing(), frontend)}
    return notes, clips, rates


def _hexdigest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _text_content(text: str) -> str:
    return _hexdigest(text.encode())


def _extract_texts(frontend: Callable, texts: Sequence[str]) -> tuple[dict, dict, set]:
    """No notes, for texts have no files; features by content."""
    many = compute_many(frontend)
    return {}, dict(zip(map(_text_content, texts), many(texts))), set()


def _extract_videos(
    place: Path, frontend: Callable, folder: Path, names: Sequence[str]
) -> tuple[dict[str, str], dict[str, np.ndarray], set]:
    """Notes of some video files, and features by content of the file that the store lacks."""
    held, notes, clips = store.contents(folder), {}, {}
    for name in names:
        stamp = file_stamp(place / name)
        with (place / name).open("rb") as file:
            content = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
        notes[name] = f"{stamp} {content}"
        if content not in held and content not in clips:
            clips[content] = frontend(place / name)
    return notes, clips, set()
