"""Classes from outside the package: ``my_module:MyClass``, ``./mine.py:MyClass``, an entry point.

A front end, backbone or method that does not come with MetaSER is named in a protocol by where its
class is. A file is read once per run and its text goes to every process, so all of them use the
same class, even if the file changes meanwhile or is not on another machine. The source is part of
the digests of rows and models: what was measured with another source is measured again.
"""

import hashlib
import importlib
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle

from metaser.naming import kind_of, nearest

GROUPS = ("metaser.methods", "metaser.backbones", "metaser.frontends", "metaser.tasks")
"""Groups of entry points by which an installed package adds to MetaSER."""


class File(NamedTuple):
    """A Python file as it was when a protocol was read."""

    path: str
    text: str


_pinned: dict[str, File] = {}
"""Files that stay as they were while a run lasts, by the place that their names give."""


def is_outside(name: object) -> bool:
    """Return whether a name says where a class is: ``module:Class`` or ``file.py:Class``."""
    return isinstance(name, str) and ":" in name


def is_file(name: str) -> bool:
    """Return whether an outside name gives a file, and not a module."""
    return name.rpartition(":")[0].endswith(".py")


def load(name: str, what: str = "class") -> Any:
    """Return the class or function of an outside name.

    Parameters
    ----------
    name : str
        ``my_package.my_module:MyClass``, found as Python finds modules or in the current folder,
        or ``./mine.py:MyClass``, relative to the current folder.
    what : str
        What it is to be, for messages.

    Raises
    ------
    ModuleNotFoundError
        If there is no such module; the message says where Python looked.
    FileNotFoundError
        If there is no such file.
    ValueError
        If the module has no such class (the nearest name is given), or running it fails.
    """
    place, _, member = name.rpartition(":")
    if not place or not member.isidentifier():
        raise ValueError(
            f"{what} must be named as my_package.my_module:MyClass or ./mine.py:MyClass, "
            f"not {name!r}"
        )
    module = _run_file(place, what) if is_file(name) else _import(place, name, what)
    if not hasattr(module, member):
        public = [key for key, value in vars(module).items() if inspect.isclass(value)]
        raise ValueError(
            f"{place} has no {what} {member!r}.{nearest(member, public)} "
            f"Its classes are {', '.join(sorted(public)) or 'none'}"
        )
    return getattr(module, member)


def source_of(kind: Any) -> str:
    """Return the source of the module in which a class or function stands, as it was run."""
    module = sys.modules[kind.__module__]
    if isinstance(module.__loader__, _Text):
        return module.__loader__.text
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):  # compiled, or typed in: its name and version must do
        return f"{kind.__module__}.{kind.__qualname__}"


def source_digest(maker: Callable) -> str:
    """Return a digest of the source of the module in which a class or function stands."""
    return digest_of(source_of(kind_of(maker)))


def digest_of(source: str) -> str:
    """Return the digest of a source text, but for empty lines at its end: 12 hex digits."""
    return hashlib.blake2b(source.rstrip().encode(), digest_size=6).hexdigest()


def digest_here(name: str) -> str:
    """Return the digest of the source behind a name on this machine; a file's code is not run.

    Raises
    ------
    ModuleNotFoundError, FileNotFoundError, ValueError
        As in ``load``.
    """
    if is_file(name):
        place = name.rpartition(":")[0]
        return digest_of((_pinned.get(place) or _read(place, Path("."))).text)
    entries = [entry for group in GROUPS for key, entry in added(group).items() if key == name]
    return source_digest(load(entries[0].value if entries else name))


def read_files(names: Iterable[str], folder: str | Path = ".") -> dict[str, File]:
    """Read the Python files that outside names give, relative to a folder.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    places = {name.rpartition(":")[0] for name in names if is_file(name)}
    return {place: _read(place, Path(folder)) for place in sorted(places)}


@contextmanager
def pinned(files: Mapping[str, File]) -> Iterator[None]:
    """Use these files, wherever they are named, for the length of a ``with`` block."""
    before = dict(_pinned)
    _pinned.update(files)
    try:
        yield
    finally:
        _pinned.clear()
        _pinned.update(before)


def added(group: str) -> dict[str, EntryPoint]:
    """Return what installed packages add to a group of ``GROUPS``, by name.

    Raises
    ------
    ValueError
        If two packages add the same name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        before = found.setdefault(entry.name, entry)
        if before.value != entry.value:
            raise ValueError(
                f"{group} must have each name once, but {entry.name!r} is both {before.value} and "
                f"{entry.value}: uninstall one of the two packages"
            )
    return found


def lookup(name: object, family: Mapping[str, Callable], group: str, what: str) -> Callable:
    """Return what a name stands for: an entry of MetaSER's own, an entry point, or a class outside.

    Parameters
    ----------
    name : str
        As in a protocol.
    family : mapping
        What comes with MetaSER, such as ``METHODS``.
    group : str
        One of ``GROUPS``.
    what : str
        What it is, for messages, such as ``"method"``.

    Raises
    ------
    ValueError
        If there is no such name, or a package adds one that comes with MetaSER.
    ModuleNotFoundError, FileNotFoundError
        As in ``load``.
    """
    if is_outside(name):
        return load(str(name), what)
    if isinstance(name, str) and name in family:
        return family[name]
    others = added(group)
    if isinstance(name, str) and name in others:
        return load(others[name].value, what)
    known = [*family, *others]
    raise ValueError(
        f"{what} must be one of {', '.join(sorted(known))}, not {name!r}."
        f"{nearest(str(name), known)} One of your own is named by where its class is, such as "
        "'my_package.my_module:MyClass' or './mine.py:MyClass'"
    )


def comes_from_outside(name: object, family: Mapping[str, Callable]) -> bool:
    """Return whether a name does not come with MetaSER."""
    return is_outside(name) or (isinstance(name, str) and name not in family)


def title_and_line(kind: Any) -> tuple[str, str]:
    """Return a title and a line of explanation from a class's docstring.

    The first line is the title, without its full stop, and the next paragraph's first sentence the
    explanation. A docstring of one line may be ``Title: explanation``; else the line explains, and
    the class's name is the title.
    """
    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    first = " ".join(paragraphs[0].split()).rstrip(".")
    rest = " ".join(paragraphs[1].split()) if len(paragraphs) > 1 else ""
    if rest and not rest.startswith("Parameters -"):
        return first, rest.partition(". ")[0].rstrip(".")
    title, colon, line = first.partition(": ")
    return (title, line) if colon else (kind.__name__, first)


def _find_modules_in(folder: Path) -> str:
    """Have Python find modules in a folder, too, in this process and in those that it starts."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return str(folder)


def _import(place: str, name: str, what: str) -> types.ModuleType:
    folder = _find_modules_in(Path.cwd())
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it imports is not
        raise ModuleNotFoundError(
            f"the {what} {name!r} must be in a module that Python finds, not in {error.name!r}, "
            f"which is neither installed nor in the folder {folder}: install it, add its folder to "
            f"PYTHONPATH, or name the file, such as './{place.rpartition('.')[2]}.py:"
            f"{name.rpartition(':')[2]}'",
            name=error.name,
        ) from error


def _read(place: str, folder: Path) -> File:
    path = (folder / Path(place).expanduser()).resolve()
    try:
        return File(str(path), path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"expected a Python file at {path}, found none: correct the name, which is relative to "
            "the protocol's folder (or, on the command line, to the current one)"
        ) from error


def _run_file(place: str, what: str) -> types.ModuleType:
    file = _pinned.get(place) or _read(place, Path("."))
    return _module(file.path, file.text, what)


class _Text:
    """A loader that gives ``inspect`` and tracebacks the source that was run."""

    def __init__(self, text: str) -> None:
        self.text = text

    def get_source(self, _name: str) -> str:
        return self.text


@cache
def _module(path: str, text: str, what: str) -> types.ModuleType:
    """Run a source text as a module; once per process, so that a class stays one class."""
    name = f"metaser_outside_{digest_of(path + text)}"
    if name in sys.modules:
        return sys.modules[name]
    module = types.ModuleType(name)
    module.__file__ = path
    module.__loader__ = _Text(text)  # type: ignore[assignment]
    module.__spec__ = ModuleSpec(name, module.__loader__, origin=path)  # type: ignore[arg-type]
    sys.modules[name] = module
    _find_modules_in(Path(path).parent)  # what it imports may lie next to it
    try:
        exec(compile(text, path, "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path}, named for a {what}, cannot be run: {error!r}") from error
    cloudpickle.register_pickle_by_value(module)  # other processes cannot import it
    return module
