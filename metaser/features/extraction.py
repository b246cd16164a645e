"""Extract the features of a task's clips in parallel, and store them on disk.

A front end reads a clip's sound, transcript or video. Vectors in a task folder are used as they
are.

Every task has a folder below the cache's folder ``features``. There, ``files-*.json`` notes size,
time of change and content of each file, so that an unchanged file is not decoded again. Each front
end and recording situation has a store (``metaser.features.store``), named by a digest of its
arguments and one of code and libraries. A store finds features by the content of the clip.
"""

import functools
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from joblib import Parallel, delayed
from rich.progress import track

from metaser.contracts import FrontEnd, compute_many, extracted, frontend_traits
from metaser.features import store
from metaser.features.cache import (
    add_notes,
    audio_folder,
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

Result = TypeVar("Result")

CHUNK = 32
"""Clips per job of a process."""

WRITE_SECONDS = 2.0
"""Seconds between writes; features are also written at the end and after an interruption."""

Extracted = tuple[dict[str, str], dict[str, np.ndarray], set[int]]
"""Notes by file name, frames (frames, channels) by content, and sampling rates of some clips."""


def extract(
    task: Task,
    frontend: Any,
    cache: str | Path | None = None,
    *,
    situation: Situation | None = None,
    jobs: int = 1,
    progress: bool = False,
) -> Features:
    """Return the features of all clips of a task in one modality, from the store where possible.

    The store is opened, not read. A file is decoded only if it is new, its size or time of change
    differs, or the store lacks its features. An interruption keeps what was extracted.

    Parameters
    ----------
    task : Task
        A task whose audio is present.
    frontend : callable
        A front end, e.g. one of ``FAMILIES``: called with a waveform at its ``rate``, or with the
        text or video path of a clip. For a learnable one its ``extracted`` is taken.
    cache : str or Path, optional
        Cache folder; ``default_cache()`` if not given.
    situation : Situation, optional
        Read every clip as if recorded in this situation; for front ends of audio.
    jobs : int
        Number of processes.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Features
        One row per clip, in the order of the task's table.

    Raises
    ------
    AudioError
        If a clip cannot be read or its features are not finite; the message names the clip.
    VideoError
        The same for a video.
    ValueError
        If the front end cannot read the task, see ``lacks``.
    """
    frontend = extracted(frontend)
    if isinstance(frontend, Joined):
        options: dict[str, Any] = {"situation": situation, "jobs": jobs, "progress": progress}
        parts = [extract(task, part, cache, **options) for part in frontend.parts]
        values = cast(list[np.ndarray], [part.values for part in parts])  # opened, not read
        return replace(parts[0], values=frontend.join(values))
    modality = frontend_traits(frontend).modality
    if reason := lacks(task, frontend):
        raise ValueError(
            f"{task.name} must have {modality} for {type(frontend).__name__}, but has none: "
            f"{reason}"
        )
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
        read = _reader(task, frontend, situation, folder)
        work = _in_chunks(read, missing, jobs, progress, f"{task.name}: features")
        contents, rates = _keep(work, task, root, folder, _index(task, frontend, situation))
        known |= contents
        _warn_of_resampling(task, frontend, rates)
    hashes = np.array([known.get(name, "") for name in names])
    stored = _with_gaps(store.read(folder, hashes[hashes != ""]), hashes != "")
    return Features(stored, stored.lengths, hashes, modality)


def _reader(
    task: Task, frontend: Any, situation: Situation | None, folder: Path
) -> Callable[[Sequence[str]], Extracted]:
    """Return the function that extracts the features of some clips, by the front end's modality."""
    modality = frontend_traits(frontend).modality
    if modality == "text":
        return functools.partial(_extract_texts, frontend)
    if modality == "video":
        return functools.partial(_extract_videos, audio_folder(task), frontend, folder)
    return functools.partial(_extract_clips, audio_folder(task), frontend, situation, folder)


def _index(task: Task, frontend: Any, situation: Situation | None) -> dict[str, str]:
    """Return the entries that describe a new store."""
    kind: type = type(frontend)
    return {
        "task": task.name,
        "frontend": repr(frontend),
        "situation": repr(situation) if situation else "",
        "code": code_digest(kind, frontend_traits(frontend).engine, situation is not None),
    }


def _warn_of_resampling(task: Task, frontend: Any, rates: set[int]) -> None:
    """Warn if a pretrained front end reads sound of other sampling rates than its own."""
    traits = frontend_traits(frontend)
    others = sorted(rate for rate in rates if rate != traits.rate)
    if others and traits.trained:
        log.warning(
            "%s: audio of %s Hz was resampled to %d Hz, on which %s was trained",
            task.name,
            ", ".join(map(str, others)),
            traits.rate,
            type(frontend).__name__,
        )


def lacks(task: Task, frontend: Any) -> str:
    """Return why a front end cannot read a task whose audio is present, or "" if it can."""
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
    """Return the path (below the audio folder) or the text that a front end reads, per clip."""
    files = _files(task)
    column = {"audio": "file", "text": "transcript", "video": "video"}[modality]
    return task.table[column].tolist() if column in task.table else [""] * len(files)


def _vectors(task: Task, frontend: Vectors) -> Features:
    """Return the vectors in the task folder as features."""
    path = task.vectors[frontend.modality]
    everything = [*_files(task), *task.dropped, *task.unmatched]
    clips = of_clips(read_vectors(path), everything, task.audio)[0][: len(task.table)]
    vectors = [frontend(clip) for clip in clips if clip is not None]
    if not vectors:
        raise ValueError(
            f"{path} must name clips of {task.name}, but names none: name them as the task's table "
            "does"
        )
    has = np.array([clip is not None for clip in clips])
    lengths = np.array([len(vector) for vector in vectors])
    hashes = np.full(len(clips), "", "U32")
    hashes[has] = [_hexdigest(vector.tobytes()) for vector in vectors]
    values = store.Ragged(np.concatenate(vectors), np.cumsum(lengths) - lengths, lengths)
    values = _with_gaps(values, has)
    return Features(values, values.lengths, hashes, frontend.modality)


def _with_gaps(values: store.Ragged, has: np.ndarray) -> store.Ragged:
    """Return one sequence per clip: the given ones where ``has`` is True, others without frames."""
    starts, lengths = np.zeros((2, len(has)), int)
    starts[has], lengths[has] = values.starts, values.lengths
    return store.Ragged(values.frames, starts, lengths)


def audio_contents(
    task: Task, cache: str | Path | None = None, jobs: int = 1, progress: bool = False
) -> np.ndarray:
    """Return the content of each clip's audio, as in ``Features.hashes``, without its features.

    Returns
    -------
    ndarray
        (clips,) str.

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
    """Hash the audio of every clip again, whatever its file's size and time of change say.

    Returns
    -------
    list of str
        Files whose audio has changed; ``extract`` will extract their features again.

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
    """Decode files; note and return their size, time of change and content."""
    after: dict[str, str] = {}
    hash_clips = functools.partial(_hash_clips, audio_folder(task))
    for notes in _in_chunks(hash_clips, names, jobs, progress, f"{task.name}: {what}"):
        after |= notes
    with cache_lock(root):
        add_notes(task, root, after)
    return after


def _files(task: Task) -> list[str]:
    return require_audio(task).table["file"].tolist()


def _in_chunks(
    work: Callable[[Sequence[str]], Result],
    names: Sequence[str],
    jobs: int,
    progress: bool,
    description: str,
) -> Iterable[Result]:
    """Yield the results of the work on ``CHUNK`` files at a time, in parallel and in any order."""
    chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
    done = Parallel(n_jobs=jobs, return_as="generator_unordered")(map(delayed(work), chunks))
    if progress:
        done = track(done, description=description, total=len(chunks), transient=True)
    return done


def _keep(
    work: Iterable[Extracted], task: Task, root: Path, folder: Path, index: dict[str, str]
) -> tuple[dict[str, str], set[int]]:
    """Write features as they come, also those before an interruption.

    Return the content of each file, and the sampling rates.
    """
    notes: dict[str, str] = {}
    clips: dict[str, np.ndarray] = {}
    contents: dict[str, str] = {}
    rates: set[int] = set()
    written = time.monotonic()

    def write() -> None:
        with cache_lock(root):
            store.append(folder, clips, index)
            if notes:
                add_notes(task, root, notes)
        clips.clear()
        notes.clear()

    try:
        for new_notes, new_clips, new_rates in work:
            notes |= new_notes
            clips |= new_clips
            rates |= new_rates
            contents |= {name: content_of(note) for name, note in new_notes.items()}
            if time.monotonic() - written > WRITE_SECONDS:
                write()
                written = time.monotonic()
    finally:
        if notes or clips:
            write()
    return contents, rates


def _decode(path: Path) -> tuple[Stretch, str]:
    """Return a decoded file and its note, with size and time of change as before decoding."""
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
) -> Extracted:
    """Extract the features of some audio files, unless the store has them."""
    stored = store.contents(folder)
    notes: dict[str, str] = {}
    rates: set[int] = set()

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


def _extract_texts(frontend: Callable[[str], np.ndarray], texts: Sequence[str]) -> Extracted:
    """Extract the features of some texts; there are no notes, because texts have no files."""
    frames = compute_many(frontend)(list(texts))
    return {}, dict(zip(map(_text_content, texts), frames)), set()


def _extract_videos(
    place: Path, frontend: Callable[[Path], np.ndarray], folder: Path, names: Sequence[str]
) -> Extracted:
    """Extract the features of some video files, unless the store has them."""
    held = store.contents(folder)
    notes: dict[str, str] = {}
    clips: dict[str, np.ndarray] = {}
    for name in names:
        stamp = file_stamp(place / name)
        with (place / name).open("rb") as file:
            content = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
        notes[name] = f"{stamp} {content}"
        if content not in held and content not in clips:
            clips[content] = frontend(place / name)
    return notes, clips, set()
