"""A task's clips through a front end: extracted in parallel, cached on disk, normalised.

The cache holds one small file a clip, named by the audio's content, below a folder named by the
front end and a digest of its arguments and code. Files are written whole or not at all, so an
interrupted run goes on where it stopped, and a changed recording is extracted anew.
"""

import hashlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import platformdirs
import torch
from joblib import Parallel, delayed
from rich.progress import track

from metaser import audio, recording
from metaser.batch import Batch, Padded
from metaser.frontends import FRONTENDS
from metaser.recording import Situation, rerecord
from metaser.tasks import Task

NORMALISATIONS = ("none", "corpus", "speaker")
OUTLIER = 5.0
"""Normalised features are clipped to this many standard deviations."""


@dataclass(frozen=True)
class Features:
    """The features of a task's clips, in the order of its table.

    Attributes
    ----------
    values : ndarray
        (clips, frames, channels) float32, zero after a clip's last frame.
    lengths : ndarray
        (clips,) int; real frames of each clip.
    hashes : ndarray
        (clips,) str; the content of each clip's audio.
    """

    values: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray

    def batch(self, rows: np.ndarray, targets: np.ndarray, classes: np.ndarray) -> Batch:
        """Gather clips into a labelled batch.

        Parameters
        ----------
        rows : ndarray of int
            Rows of the task's table.
        targets : ndarray of int
            Class index of each.
        classes : ndarray of bool
            (classes,) which classes the task has.
        """
        mask = np.arange(self.values.shape[1]) < self.lengths[rows, None]
        padded = Padded(torch.from_numpy(self.values[rows]), torch.from_numpy(mask))
        return Batch({"audio": padded}, torch.from_numpy(targets), torch.from_numpy(classes))


def make_frontend(arguments: dict) -> Callable:
    """Build a front end from its name and arguments, e.g. ``{"name": "mfcc", "frames": 120}``."""
    arguments = dict(arguments)
    name = arguments.pop("name", None)
    if name not in FRONTENDS:
        raise ValueError(f"front end must be one of {sorted(FRONTENDS)}, not {name!r}")
    try:
        return FRONTENDS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"front end {name!r}: {error}") from error


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
    """Features of all clips of a task, from the cache where it has them.

    Parameters
    ----------
    task : Task
        A task whose audio is present.
    frontend : callable
        One of ``FRONTENDS``: a dataclass with ``rate``, called with a waveform.
    cache : str or Path, optional
        Cache folder; ``default_cache()`` if not given.
    situation : Situation, optional
        Hear every clip as if recorded in this situation.
    jobs : int
        Processes.
    progress : bool
        Show a progress bar.

    Raises
    ------
    AudioError
        If a clip cannot be read or gives features that are not finite; the message names it.
    """
    if task.table is None:
        raise FileNotFoundError(
            f"the audio of {task.name} is not present: obtain it from {task.homepage} and name the "
            "folder above it by --data or METASER_DATA"
        )
    folder = Path(cache or default_cache()) / _key(frontend, situation)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [task.audio / name for name in task.table["file"]]
    work = Parallel(n_jobs=jobs, return_as="generator")(
        delayed(_extract_clip)(path, frontend, situation, folder) for path in paths
    )
    if progress:
        work = track(work, description=f"{task.name}: features", total=len(paths), transient=True)
    hashes, arrays = zip(*work)
    lengths = np.array([len(array) for array in arrays])
    values = np.zeros((len(arrays), lengths.max(), arrays[0].shape[1]), np.float32)
    for row, array in zip(values, arrays):
        row[: len(array)] = array
    return Features(values, lengths, np.array(hashes))


def _key(frontend: Callable, situation: Situation | None) -> str:
    """Folder name: the front end's name, and a digest of all that decides its numbers."""
    kind = type(frontend)
    modules = [audio, sys.modules[kind.__module__]] + ([recording] if situation else [])
    versions = [version(name) for name in ("librosa", "soxr", "soundfile")]
    facts = [frontend, situation, versions, *map(inspect.getsource, modules)]
    return f"{kind.__name__}-{hashlib.blake2b(repr(facts).encode(), digest_size=6).hexdigest()}"


def _extract_clip(
    path: Path, frontend: Callable, situation: Situation | None, folder: Path
) -> tuple[str, np.ndarray]:
    samples, rate = audio.decode(path)
    content = audio.digest(samples, rate)
    cached = folder / f"{content}.npy"
    if cached.exists():
        return content, np.load(cached)
    waveform = audio.convert(path, samples, rate, frontend.rate)
    if situation is not None:
        rng = np.random.default_rng(int(content, 16))
        waveform = rerecord(waveform, frontend.rate, situation, rng)
    values = frontend(waveform)
    if not np.isfinite(values).all():
        raise audio.AudioError(
            f"{path}: {type(frontend).__name__} gives features that are not finite; "
            "`metaser tasks check` tells what is wrong with the file"
        )
    part = cached.with_suffix(f".{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.save(file, values)
        os.replace(part, cached)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return content, values


def normalise(features: Features, task: Task, how: str) -> Features:
    """Give every channel mean 0 and deviation 1 over a corpus or a speaker.

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
    """
    if how not in NORMALISATIONS:
        raise ValueError(f"normalise must be one of {NORMALISATIONS}, not {how!r}")
    if how == "none":
        return features
    values = features.values.copy()
    real = np.arange(values.shape[1]) < features.lengths[:, None]
    speakers = task.table["speaker"].to_numpy()
    groups = (
        [speakers == name for name in np.unique(speakers)] if how == "speaker" else [slice(None)]
    )
    for group in groups:
        frames = values[group][real[group]]
        centre, spread = (moment(axis=0, dtype=np.float64) for moment in (frames.mean, frames.std))
        scaled = (values[group] - centre) / np.maximum(spread, 1e-6)
        values[group] = np.clip(scaled, -OUTLIER, OUTLIER) * real[group][..., None]
    return Features(values, features.lengths, features.hashes)
