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
import inspect
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import platformdirs
import torch
from filelock import FileLock
from joblib import Parallel, delayed
from rich.progress import track
from torch import nn

from metaser import audio, recording, store, video
from metaser.batch import Batch, Padded
from metaser.devices import cpu_threads
from metaser.frontends import FAMILIES, FRONTENDS, Joined, Vectors
from metaser.modalities import read_vectors
from metaser.protocol import typed
from metaser.recording import Situation, rerecord
from metaser.tasks import Task, of_clips

log = logging.getLogger(__name__)

NORMALISATIONS = ("none", "corpus", "speaker")
OUTLIER = 5.0
"""Normalised features are clipped to this many standard deviations."""

CHUNK = 32
"""Clips that a process takes at a time."""

CHUNK_SECONDS = 120.0
"""Audio that a process extracts at once, and a longer clip alone."""

LIBRARIES = {"audio": ("librosa", "soxr", "soundfile"), "text": ("scikit-learn",), "video": ()}
"""Packages whose versions decide the numbers of all front ends of a modality."""

READERS = {"audio": (audio,), "text": (), "video": (video,)}
"""Modules that read the files."""

WRITE_SECONDS = 2.0
"""Features are written that often, at the end, and when the work is interrupted."""


@dataclass(frozen=True)
class Features:
    """The features of a task's clips, in the order of its table.

    Attributes
    ----------
    values : ndarray or Ragged
        (clips, frames, channels) float32, zero after a clip's last frame. Those of a store are
        read when they are indexed; ``numpy.asarray`` reads all.
    lengths : ndarray
        (clips,) int; real frames of each clip.
    hashes : ndarray
        (clips,) str; the content of what was heard, read or seen, empty where there is nothing.
    modality : {"audio", "text", "video"}
        What the front end read.
    beside : tuple of Features
        Of other modalities of the same clips.
    domains : dict of str to ndarray
        (clips,) int64 each; see ``Batch.domains``.
    """

    values: np.ndarray | store.Ragged
    lengths: np.ndarray
    hashes: np.ndarray
    modality: str = "audio"
    beside: tuple["Features", ...] = ()
    domains: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def modalities(self) -> dict[str, "Features"]:
        """The features of each modality, this one first."""
        return {part.modality: part for part in (self, *self.beside)}

    @property
    def are_vectors(self) -> bool:
        """Whether no clip has more than one frame, in any modality."""
        return all(part.values.shape[1] <= 1 for part in (self, *self.beside))

    def batch(self, rows: np.ndarray, targets: np.ndarray, classes: np.ndarray) -> Batch:
        """Gather clips into a labelled batch of all modalities, padded to the longest of them.

        A clip that lacks a modality has no real frame there, but at least one that is masked.

        Parameters
        ----------
        rows : ndarray of int
            Rows of the task's table.
        targets : ndarray of int
            Class index of each.
        classes : ndarray of bool
            (classes,) which classes the task has.

        Raises
        ------
        ValueError
            If a clip has no frames of audio.
        """
        padded = {name: part._padded(rows) for name, part in self.modalities.items()}
        domains = {name: torch.from_numpy(ids[rows]) for name, ids in self.domains.items()}
        return Batch(padded, torch.from_numpy(targets), torch.from_numpy(classes), domains)

    def _padded(self, rows: np.ndarray) -> Padded:
        lengths = self.lengths[rows]
        if self.modality == "audio" and (lengths == 0).any():
            raise ValueError(
                f"every clip must have at least 1 frame, but those in rows "
                f"{sorted(set(rows[lengths == 0].tolist()))} of the task's table have 0: give the "
                "front end longer clips, or leave them out of the task"
            )
        mask = np.arange(max(lengths.max(initial=0), 1)) < lengths[:, None]
        values = self.values[rows][:, : mask.shape[1]]
        return Padded(torch.from_numpy(values), torch.from_numpy(mask))


def is_learnable(arguments: dict | None) -> bool:
    """Whether the audio's front end of these arguments is an ``nn.Module``; it is not built."""
    kind = FRONTENDS.get((arguments or {}).get("name"))
    return kind is not None and issubclass(getattr(kind, "func", kind), nn.Module)


def make_frontend(arguments: dict, modality: str = "audio") -> Callable:
    """Build a front end from its name and arguments, e.g. ``{"name": "mfcc", "frames": 120}``.

    A learnable one is an ``nn.Module``; ``extracted`` is the front end that it reads.
    """
    arguments = dict(arguments)
    name = arguments.pop("name", None)
    if modality not in FAMILIES:
        raise ValueError(f"modality must be one of {sorted(FAMILIES)}, not {modality!r}")
    family = FAMILIES[modality]
    if name not in family:
        own = {other: sorted(names) for other, names in FAMILIES.items() if name in names}
        hint = f"; {name!r} is a front end of {' and '.join(own)}" if own else ""
        what = "front end" if modality == "audio" else f"front end of {modality}"
        raise ValueError(f"{what} must be one of {sorted(family)}, not {name!r}{hint}")
    if isinstance(arguments.get("parts"), list):
        parts = [part if isinstance(part, dict) else {"name": part} for part in arguments["parts"]]
        arguments["parts"] = tuple(map(make_frontend, parts))
    try:
        return family[name](**typed(family[name], arguments))
    except TypeError as error:
        raise ValueError(f"front end {name!r}: {error}") from error


def enough_threads(features: Features) -> AbstractContextManager:
    """Have PyTorch use one thread where clips are vectors: several would wait for each other."""
    return cpu_threads(1 if features.are_vectors else torch.get_num_threads())


def default_cache() -> Path:
    """Folder of the feature cache: ``METASER_CACHE`` or the user's cache folder."""
    return Path(os.environ.get("METASER_CACHE") or platformdirs.user_cache_dir("metaser"))


def extract(
    task: Task,
    frontend: Callable[[np.ndarray], np.ndarray],
    cache: str | Path | None = None,
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
    frontend = getattr(frontend, "extracted", frontend)
    if isinstance(frontend, Joined):
        found = [extract(task, part, cache, situation, jobs, progress) for part in frontend.parts]
        return replace(found[0], values=frontend.join([part.values for part in found]))
    modality = _modality(frontend)
    if reason := lacks(task, frontend):
        raise ValueError(f"{task.name} gives no {modality} to {type(frontend).__name__}: {reason}")
    if isinstance(frontend, Vectors):
        return _vectors(task, frontend)
    names, root = _inputs(task, modality), _root(cache)
    present = list(filter(None, dict.fromkeys(names)))
    folder = root / task.name / _key(frontend, situation)
    if modality == "text":
        known = {text: _text_content(text) for text in present}
    else:
        known = _unchanged(task, root, present)
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
            "code": _code(type(frontend), getattr(frontend, "engine", ""), situation is not None),
        }
        found, rates = _keep(work, task, root, folder, facts)
        known |= found
        others = sorted(rates - {getattr(frontend, "rate", None)})
        if others and getattr(frontend, "TRAINED", False):
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
    frontend = getattr(frontend, "extracted", frontend)
    modality = _modality(frontend)
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


def _modality(frontend: Callable) -> str:
    return getattr(frontend, "modality", "audio")


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
    names, root = _files(task), _root(cache)
    known = _unchanged(task, root, names)
    missing = [name for name in names if name not in known]
    after = _hash_files(task, root, missing, jobs, progress, "reading")
    known |= {name: _content(note) for name, note in after.items()}
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
    names, root = _files(task), _root(cache)
    noted = _notes(task, root)
    before = {name: noted[name] for name in names if name in noted}
    after = _hash_files(task, root, names, jobs, progress, "verifying")
    return [name for name in before if _content(before[name]) != _content(after[name])]


def _hash_files(
    task: Task, root: Path, names: Sequence[str], jobs: int, progress: bool, what: str
) -> dict[str, str]:
    """Decode files, and note and return their size, time and content."""
    after = {}
    hash_clips = functools.partial(_hash_clips, task.audio)
    for notes in _in_chunks(hash_clips, names, jobs, progress, f"{task.name}: {what}"):
        after |= notes
    with _lock(root):
        _note(task, root, after)
    return after


def _files(task: Task) -> list[str]:
    if task.table is None:
        raise FileNotFoundError(
            f"the audio of {task.name} is not present: obtain it from {task.homepage} and name the "
            "folder above it by --data or METASER_DATA"
        )
    return task.table["file"].tolist()


def _root(cache: str | Path | None) -> Path:
    return Path(cache or default_cache()) / "features"


def _lock(root: Path) -> FileLock:
    """One lock for all stores of a cache: writing takes milliseconds."""
    root.mkdir(parents=True, exist_ok=True)
    return FileLock(root / "lock")


def _digest(facts: object) -> str:
    return hashlib.blake2b(repr(facts).encode(), digest_size=6).hexdigest()


def _key(frontend: Callable, situation: Situation | None) -> str:
    """Folder name: the front end's name, and digests of all that decides its numbers."""
    kind = type(frontend)
    code = _code(kind, getattr(frontend, "engine", ""), situation is not None)
    return f"{kind.__name__}-{_digest([frontend, situation])}-{code}"


@functools.cache
def _code(kind: type, engine: str, heard: bool) -> str:
    """Digest of the libraries and source files that decide the numbers of a kind of front end."""
    modality = _modality(kind)
    libraries = [*LIBRARIES[modality], *["torch"] * (engine == "torch")]
    libraries += getattr(kind, "LIBRARIES", ())
    modules = [*READERS[modality], sys.modules[kind.__module__], *[recording] * heard]
    return _digest([kind.__name__, *map(version, libraries), *map(inspect.getsource, modules)])


def _notes_path(task: Task, root: Path) -> Path:
    """Where the files below one audio folder are noted; a copy of the corpus has its own notes."""
    return root / task.name / f"files-{_digest(os.path.realpath(task.audio))}.json"


def _notes(task: Task, root: Path) -> dict[str, str]:
    """Size, time of change and audio content of each file, as it was when it was last decoded."""
    return store.read_json(_notes_path(task, root))


def _note(task: Task, root: Path, notes: dict[str, str]) -> None:
    path = _notes_path(task, root)
    path.parent.mkdir(parents=True, exist_ok=True)
    store.write_json(path, _notes(task, root) | notes)


def _unchanged(task: Task, root: Path, names: Sequence[str]) -> dict[str, str]:
    """Audio content of those files whose size and time are as noted."""
    notes, folder = _notes(task, root), os.fspath(task.audio)
    known = {}
    for name in names:
        stamp, _, content = notes.get(name, "").rpartition(" ")
        if stamp and stamp == _stamp(f"{folder}/{name}"):
            known[name] = content
    return known


def _stamp(path: str | Path) -> str:
    """Size and time of change of a file in ns; empty where there is none."""
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        return ""
    return f"{facts.st_size} {facts.st_mtime_ns}"


def _content(note: str) -> str:
    return note.rpartition(" ")[2]


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
        with _lock(root):
            store.append(folder, clips, facts)
            if notes:
                _note(task, root, notes)
        clips.clear()
        notes.clear()

    try:
        for new_notes, new_clips, new_rates in work:
            notes |= new_notes
            clips |= new_clips
            rates |= new_rates
            found |= {name: _content(note) for name, note in new_notes.items()}
            if time.monotonic() - written > WRITE_SECONDS:
                write()
                written = time.monotonic()
    finally:
        if notes or clips:
            write()
    return found, rates


def _decode(path: Path) -> tuple[np.ndarray, int, str]:
    """Samples, rate, and the note of a file: its size and time before it was read, its content."""
    stamp = _stamp(path)
    samples, rate = audio.decode(path)
    return samples, rate, f"{stamp} {audio.digest(samples, rate)}"


def _hash_clips(folder: Path, names: Sequence[str]) -> dict[str, str]:
    return {name: _decode(folder / name)[2] for name in names}


def _extract_clips(
    audio_folder: Path,
    frontend: Callable,
    situation: Situation | None,
    folder: Path,
    names: Sequence[str],
) -> tuple[dict[str, str], dict[str, np.ndarray], set[int]]:
    """Notes of some files, features by content of the audio that the store lacks, and its rates."""
    held, notes, rates, waveforms, paths, clips = store.contents(folder), {}, set(), {}, {}, {}
    many = getattr(frontend, "many", None) or (lambda waveforms: list(map(frontend, waveforms)))

    def compute() -> None:
        clips.update(zip(waveforms, many(list(waveforms.values()))))
        waveforms.clear()

    for name in names:
        samples, rate, notes[name] = _decode(audio_folder / name)
        content = _content(notes[name])
        if content in held or content in paths:
            continue
        paths[content] = audio_folder / name
        rates.add(rate)
        waveform = audio.convert(paths[content], samples, rate, frontend.rate)
        if situation is not None:
            rng = np.random.default_rng(int(content, 16))
            waveform = rerecord(waveform, frontend.rate, situation, rng)
        held_samples = sum(map(len, waveforms.values()))
        if waveforms and held_samples + len(waveform) > CHUNK_SECONDS * frontend.rate:
            compute()
        waveforms[content] = waveform
    if waveforms:
        compute()
    for content, values in clips.items():
        if not np.isfinite(values).all():
            raise audio.AudioError(
                f"{paths[content]}: {type(frontend).__name__} gives features that are not finite; "
                "`metaser tasks check` tells what is wrong with the file"
            )
    return notes, clips, rates


def _hexdigest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _text_content(text: str) -> str:
    return _hexdigest(text.encode())


def _extract_texts(frontend: Callable, texts: Sequence[str]) -> tuple[dict, dict, set]:
    """No notes, for texts have no files; features by content."""
    many = getattr(frontend, "many", None) or (lambda texts: list(map(frontend, texts)))
    return {}, dict(zip(map(_text_content, texts), many(texts))), set()


def _extract_videos(
    place: Path, frontend: Callable, folder: Path, names: Sequence[str]
) -> tuple[dict[str, str], dict[str, np.ndarray], set]:
    """Notes of some video files, and features by content of the file that the store lacks."""
    held, notes, clips = store.contents(folder), {}, {}
    for name in names:
        stamp = _stamp(place / name)
        with (place / name).open("rb") as file:
            content = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
        notes[name] = f"{stamp} {content}"
        if content not in held and content not in clips:
            clips[content] = frontend(place / name)
    return notes, clips, set()


@dataclass(frozen=True)
class Stored:
    """What is known of one store of the cache.

    Attributes
    ----------
    task, frontend, situation : str
        What it holds; no situation is as recorded.
    clips : int
        Clips of different audio.
    size : int
        Bytes on disk.
    changed : float
        When it was last added to, in seconds since 1970.
    current : bool
        Whether a front end of ``FAMILIES`` uses it; if not, code or libraries have changed. Also
        true where that cannot be told because an extra is not installed.
    folder : Path
        Where it is.
    """

    task: str
    frontend: str
    situation: str
    clips: int
    size: int
    changed: float
    current: bool
    folder: Path


def list_stores(cache: str | Path | None = None, tasks: Sequence[str] = ()) -> list[Stored]:
    """Describe the stores of the cache, or those of some tasks."""
    makers = [make for family in FAMILIES.values() for make in family.values()]
    kinds = {getattr(make, "func", make) for make in makers}
    usable = {kind for kind in kinds if all(map(find_spec, getattr(kind, "LIBRARIES", ())))}
    codes = {_code(*facts) for facts in product(usable, ("librosa", "torch"), (False, True))}
    unknown = {kind.__name__ for kind in kinds - usable}
    folders = sorted(path for path in _root(cache).glob("*/*") if path.is_dir())
    return [
        _describe(folder, codes, unknown)
        for folder in folders
        if not tasks or folder.parent.name in tasks
    ]


def _describe(folder: Path, codes: set[str], unknown: set[str]) -> Stored:
    try:
        facts = store.read_json(folder / "index.json")
    except ValueError:
        facts = {}
    frontend = facts.get("frontend", folder.name)
    return Stored(
        task=folder.parent.name,
        frontend=frontend,
        situation=facts.get("situation", ""),
        clips=len(facts.get("contents", ())),
        size=sum(path.stat().st_size for path in folder.iterdir()),
        changed=folder.stat().st_mtime,
        current=facts.get("code") in codes or frontend.partition("(")[0] in unknown,
        folder=folder,
    )


def prune(cache: str | Path | None = None, tasks: Sequence[str] = ()) -> list[Stored]:
    """Remove the stores of some tasks or, if none is named, those that nothing uses any more.

    These are the stores of other library versions and other source code, and those of front ends
    that are not in ``FAMILIES``.

    Returns
    -------
    list of Stored
        What was removed.
    """
    with _lock(_root(cache)):
        removed = [found for found in list_stores(cache, tasks) if tasks or not found.current]
        for found in removed:
            shutil.rmtree(found.folder)
        for folder in _root(cache).iterdir():
            if folder.name in tasks:  # the notes on its files
                shutil.rmtree(folder)
    return removed


def normalise(features: Features, task: Task, how: str) -> Features:
    """Give every channel of every modality mean 0 and deviation 1 over a corpus or a speaker.

    Neither needs labels, but both look at all audio of the corpus, a target's query clips
    included: results that use them say so.

    Parameters
    ----------
    features : Features
        Of ``task``.
    task : Task
        Tells who speaks.
    how : {"none", "corpus", "speaker"}
        What to pool over; "none" returns the features as they are.

    Raises
    ------
    ValueError
        If ``how`` is none of these.
    """
    if how not in NORMALISATIONS:
        raise ValueError(f"normalise must be one of {NORMALISATIONS}, not {how!r}")
    if how == "none":
        return features
    starts = np.cumsum(features.lengths) - features.lengths
    clips = [slice(start, start + length) for start, length in zip(starts, features.lengths)]
    frames = np.empty((features.lengths.sum(), features.values.shape[2]), np.float32)
    for row, clip in enumerate(clips):
        frames[clip] = features.values[[row]][0, : features.lengths[row]]
    pools = task.table["speaker"] if how == "speaker" else np.zeros(len(clips))
    for own in pd.Series(clips).groupby(np.asarray(pools)):
        _standardise(frames, list(own[1]))
    return replace(
        features,
        values=store.Ragged(frames, starts, features.lengths),
        beside=tuple(normalise(other, task, how) for other in features.beside),
    )


def _standardise(frames: np.ndarray, clips: Sequence[slice]) -> None:
    """Give the frames of some clips mean 0 and deviation 1 together, in place."""
    count = sum(clip.stop - clip.start for clip in clips)
    if not count:  # nobody has seen this speaker
        return
    centre = sum(frames[clip].sum(axis=0, dtype=np.float64) for clip in clips) / count
    spread = np.sqrt(sum(((frames[clip] - centre) ** 2).sum(axis=0) for clip in clips) / count)
    for clip in clips:
        scaled = (frames[clip] - centre) / np.maximum(spread, 1e-6)
        frames[clip] = np.clip(scaled, -OUTLIER, OUTLIER)
