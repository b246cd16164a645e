"""Where features are stored on disk, under which names, and which stores are outdated."""

import ast
import functools
import hashlib
import inspect
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import platformdirs

from metaser import audio, containers, files, mono, recording, video
from metaser.contracts import frontend_traits
from metaser.frontends import FAMILIES
from metaser.naming import kind_of
from metaser.outside import source_of
from metaser.recording import Situation
from metaser.tasks.task import Task, require_audio

LIBRARIES = {"audio": ("librosa", "soxr", "soundfile"), "text": ("scikit-learn",), "video": ()}
"""Packages whose versions affect the numbers of all front ends of a modality."""

READERS = {"audio": (mono,), "text": (), "video": (video,)}
"""Modules through which what is read passes; their code affects the numbers, too."""

DECODERS = (audio, *containers.MODULES)
"""Modules that decode sound; where their code changes, files are decoded again, not extracted."""


def default_cache() -> Path:
    """Return the cache folder: ``METASER_CACHE`` or the user's cache folder of the system."""
    return Path(os.environ.get("METASER_CACHE") or platformdirs.user_cache_dir("metaser"))


def cache_root(cache: str | Path | None) -> Path:
    """Return the folder of the feature stores in a cache folder (``default_cache()`` if None)."""
    return Path(cache or default_cache()) / "features"


def cache_lock(root: Path) -> AbstractContextManager[None]:
    """Return the lock that all stores of a cache share; writing takes milliseconds.

    The folder is made if there is none.
    """
    return files.lock(root / "lock")


def _digest(value: object) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=6).hexdigest()


def store_name(frontend: Callable[..., Any], situation: Situation | None) -> str:
    """Return the folder name of a store.

    It holds the front end's name, a digest of its arguments and the recording situation, and a
    digest of the code and libraries (``code_digest``).
    """
    kind: type = type(frontend)
    code = code_digest(kind, frontend_traits(frontend).engine, situation is not None)
    return f"{kind.__name__}-{_digest([frontend, situation])}-{code}"


@functools.cache
def code_digest(kind: type, engine: str, heard: bool) -> str:
    """Return a digest of the library versions and the code behind a front end's numbers.

    Words do not count, see ``code_without_words``.

    Parameters
    ----------
    kind : type
        The class of the front end.
    engine : str
        What computes, see ``FrontEndTraits.engine``.
    heard : bool
        Whether clips pass through a recording situation first.
    """
    traits = frontend_traits(kind)
    libraries = [*LIBRARIES[traits.modality], *["torch"] * (engine == "torch")]
    libraries += traits.libraries
    readers = [inspect.getsource(module) for module in READERS[traits.modality]]
    sources = [*readers, source_of(kind), *[inspect.getsource(recording)] * heard]
    codes = map(code_without_words, sources)
    return _digest([kind.__name__, *map(version, libraries), *codes])


def code_without_words(source: str) -> str:
    """Return the code of a module without comments, docstrings and the types in functions.

    Types in functions are those of arguments, of what is returned and of local variables. So a
    store stays current when these change. All else counts: names, defaults, decorators, fields
    of classes with their types, messages, and imports (also those that only a type needs).

    Another version of Python may write the same code in another form. A store that was made there
    may then be extracted again.

    Parameters
    ----------
    source : str
        Text of a module. What is not Python is returned as it is: ``source_of`` gives a mere name
        where there is no source.
    """
    try:
        tree = _LocalTypes().visit(ast.parse(source))
    except SyntaxError:
        return source
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        statements = getattr(node, "body", None)
        if isinstance(statements, list):
            statements[:] = [s for s in statements if not _is_docstring(s)] or [ast.Pass()]
    return ast.unparse(tree)


class _LocalTypes(ast.NodeTransformer):
    """Makes ``x = 1`` of ``x: int = 1`` in functions; the fields of a class keep their types."""

    def __init__(self) -> None:
        self._in_function = False

    def _visit_inside(self, node: ast.AST, in_function: bool) -> ast.AST:
        before, self._in_function = self._in_function, in_function
        self.generic_visit(node)
        self._in_function = before
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._visit_inside(node, False)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._visit_inside(node, True)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._visit_inside(node, True)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if not self._in_function:
            return node
        if node.value is None:
            return None
        return ast.copy_location(ast.Assign([node.target], node.value), node)


def _is_docstring(statement: ast.stmt) -> bool:
    """Return whether a statement is a mere text; below a constant or a field, it is about that."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def audio_folder(task: Task) -> Path:
    """Return the folder that the files of a task are named below.

    Raises
    ------
    FileNotFoundError
        If the audio is not present; the message says where to obtain it.
    """
    folder = require_audio(task).audio
    assert folder is not None  # a task whose audio is present has one
    return folder


def _notes_path(task: Task, root: Path) -> Path:
    """Return the path of the notes on one audio folder; a copy of the corpus has its own.

    What a file holds is as the decoders found it, so their code is part of the name.
    """
    place = os.path.realpath(audio_folder(task)), _decoders()
    return root / task.name / f"files-{_digest(place)}.json"


@functools.cache
def _decoders() -> str:
    """Return a digest of the code that decodes sound."""
    return _digest([code_without_words(inspect.getsource(module)) for module in DECODERS])


def read_notes(task: Task, root: Path) -> dict[str, str]:
    """Return the note on each file, by its path below the audio folder.

    A note is the size, the time of change and the content, as when the file was last decoded.
    """
    return files.read_json(_notes_path(task, root))


def add_notes(task: Task, root: Path, notes: dict[str, str]) -> None:
    """Add notes to those that the cache holds; the caller holds its lock."""
    path = _notes_path(task, root)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, read_notes(task, root) | notes)


def unchanged(task: Task, root: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the content of those files whose size and time of change are as noted."""
    notes, folder = read_notes(task, root), os.fspath(audio_folder(task))
    known = {}
    for name in names:
        stamp, _, content = notes.get(name, "").rpartition(" ")
        if stamp and stamp == file_stamp(f"{folder}/{name}"):
            known[name] = content
    return known


def file_stamp(path: str | Path) -> str:
    """Return the size in bytes and the time of change in ns of a file, or "" if there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def content_of(note: str) -> str:
    """Return the content, the last part of a note."""
    return note.rpartition(" ")[2]


@dataclass(frozen=True)
class Stored:
    """One store of the cache, as listed.

    Attributes
    ----------
    task, frontend, situation : str
        What it holds; situation is "" for clips as recorded.
    clips : int
        Number of clips; those with the same content count once.
    size : int
        Bytes on disk.
    changed : float
        Time of the last addition, in seconds since 1970.
    current : bool
        Whether a front end of ``FAMILIES`` still uses it. False after a change of code or
        libraries. True if this cannot be checked because an optional package is not installed.
    folder : Path
        Path of the store.
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
    """Return the stores of the cache; only those of ``tasks``, if any are named."""
    makers: list[Callable[..., Any]] = [
        make for family in FAMILIES.values() for make in family.values()
    ]
    kinds: set[type] = {kind_of(make) for make in makers}
    usable = {kind for kind in kinds if all(map(find_spec, frontend_traits(kind).libraries))}
    settings = product(usable, ("librosa", "torch"), (False, True))
    codes = {code_digest(*setting) for setting in settings}
    unknown = {kind.__name__ for kind in kinds - usable}
    folders = sorted(path for path in cache_root(cache).glob("*/*") if path.is_dir())
    return [
        _describe(folder, codes, unknown)
        for folder in folders
        if not tasks or folder.parent.name in tasks
    ]


def _describe(folder: Path, codes: set[str], unknown: set[str]) -> Stored:
    try:
        index = files.read_json(folder / "index.json")
    except ValueError:
        index = {}
    frontend = index.get("frontend", folder.name)
    return Stored(
        task=folder.parent.name,
        frontend=frontend,
        situation=index.get("situation", ""),
        clips=len(index.get("contents", ())),
        size=sum(path.stat().st_size for path in folder.iterdir()),
        changed=folder.stat().st_mtime,
        current=index.get("code") in codes or frontend.partition("(")[0] in unknown,
        folder=folder,
    )


def prune(cache: str | Path | None = None, tasks: Sequence[str] = ()) -> list[Stored]:
    """Remove the stores of some tasks or, if none is named, all outdated stores.

    Outdated are stores of other library versions or other code, and those of front ends
    that are not in ``FAMILIES``.

    Returns
    -------
    list of Stored
        The removed stores.
    """
    with cache_lock(cache_root(cache)):
        removed = [store for store in list_stores(cache, tasks) if tasks or not store.current]
        for store in removed:
            shutil.rmtree(store.folder)
        for folder in cache_root(cache).iterdir():
            if folder.name in tasks:  # the notes on its files
                shutil.rmtree(folder)
    return removed
