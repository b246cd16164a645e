"""Where features lie on disk, what they are found by, and which are outdated."""

import functools
import hashlib
import inspect
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import platformdirs
from filelock import FileLock

from metaser import audio, files, recording, video
from metaser.contracts import frontend_traits
from metaser.frontends import FAMILIES
from metaser.naming import kind_of
from metaser.outside import source_of
from metaser.recording import Situation
from metaser.tasks.task import Task

LIBRARIES = {"audio": ("librosa", "soxr", "soundfile"), "text": ("scikit-learn",), "video": ()}
"""Packages whose versions decide the numbers of all front ends of a modality."""

READERS = {"audio": (audio,), "text": (), "video": (video,)}
"""Modules that read the files."""


def default_cache() -> Path:
    """Folder of the feature cache: ``METASER_CACHE`` or the user's cache folder."""
    return Path(os.environ.get("METASER_CACHE") or platformdirs.user_cache_dir("metaser"))


def cache_root(cache: str | Path | None) -> Path:
    """Return the folder of the stores inside a feature cache."""
    return Path(cache or default_cache()) / "features"


def cache_lock(root: Path) -> FileLock:
    """One lock for all stores of a cache: writing takes milliseconds."""
    root.mkdir(parents=True, exist_ok=True)
    return FileLock(root / "lock")


def _digest(facts: object) -> str:
    return hashlib.blake2b(repr(facts).encode(), digest_size=6).hexdigest()


def store_name(frontend: Callable, situation: Situation | None) -> str:
    """Folder name: the front end's name, and digests of all that decides its numbers."""
    kind = type(frontend)
    code = code_digest(kind, frontend_traits(frontend).engine, situation is not None)
    return f"{kind.__name__}-{_digest([frontend, situation])}-{code}"


@functools.cache
def code_digest(kind: type, engine: str, heard: bool) -> str:
    """Digest of the libraries and source files that decide the numbers of a kind of front end."""
    traits = frontend_traits(kind)
    libraries = [*LIBRARIES[traits.modality], *["torch"] * (engine == "torch")]
    libraries += traits.libraries
    readers = [inspect.getsource(module) for module in READERS[traits.modality]]
    sources = [*readers, source_of(kind), *[inspect.getsource(recording)] * heard]
    return _digest([kind.__name__, *map(version, libraries), *sources])


def _notes_path(task: Task, root: Path) -> Path:
    """Where the files below one audio folder are noted; a copy of the corpus has its own notes."""
    return root / task.name / f"files-{_digest(os.path.realpath(task.audio))}.json"


def read_notes(task: Task, root: Path) -> dict[str, str]:
    """Size, time of change and audio content of each file, as it was when it was last decoded."""
    return files.read_json(_notes_path(task, root))


def add_notes(task: Task, root: Path, notes: dict[str, str]) -> None:
    """Note what was read of some files, next to what is noted already."""
    path = _notes_path(task, root)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, read_notes(task, root) | notes)


def unchanged(task: Task, root: Path, names: Sequence[str]) -> dict[str, str]:
    """Audio content of those files whose size and time are as noted."""
    notes, folder = read_notes(task, root), os.fspath(task.audio)
    known = {}
    for name in names:
        stamp, _, content = notes.get(name, "").rpartition(" ")
        if stamp and stamp == file_stamp(f"{folder}/{name}"):
            known[name] = content
    return known


def file_stamp(path: str | Path) -> str:
    """Size and time of change of a file in ns; empty where there is none."""
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        return ""
    return f"{facts.st_size} {facts.st_mtime_ns}"


def content_of(note: str) -> str:
    """Return the content that a note of a file names."""
    return note.rpartition(" ")[2]


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
    kinds = {kind_of(make) for make in makers}
    usable = {kind for kind in kinds if all(map(find_spec, frontend_traits(kind).libraries))}
    codes = {code_digest(*facts) for facts in product(usable, ("librosa", "torch"), (False, True))}
    unknown = {kind.__name__ for kind in kinds - usable}
    folders = sorted(path for path in cache_root(cache).glob("*/*") if path.is_dir())
    return [
        _describe(folder, codes, unknown)
        for folder in folders
        if not tasks or folder.parent.name in tasks
    ]


def _describe(folder: Path, codes: set[str], unknown: set[str]) -> Stored:
    try:
        facts = files.read_json(folder / "index.json")
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
    with cache_lock(cache_root(cache)):
        removed = [found for found in list_stores(cache, tasks) if tasks or not found.current]
        for found in removed:
            shutil.rmtree(found.folder)
        for folder in cache_root(cache).iterdir():
            if folder.name in tasks:  # the notes on its files
                shutil.rmtree(folder)
    return removed
