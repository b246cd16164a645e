"""librosa, loaded by one process at a time: ``from metaser import safe_librosa as librosa``.

librosa keeps compiled functions in a cache on disk. Processes that fill that cache at the same time
can leave it broken, and then every later one crashes (numba issue 10128). With a lock the first
process fills the cache, and the others wait and read it.

The cache lies beside librosa's own files. Where these cannot be written, it lies in the user's
cache folder, or else in one of the user's own among the temporary files.
"""

import importlib
import importlib.util
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs

from metaser.files import lock, writable


def _numba_cache() -> None:
    """Name a folder in which numba can keep what it compiles, unless somebody has named one."""
    found = importlib.util.find_spec("librosa")
    beside = Path(found.origin).parent / "util/__pycache__" if found and found.origin else Path()
    if os.environ.get("NUMBA_CACHE_DIR") or writable(beside):
        return
    own = Path(tempfile.gettempdir()) / f"metaser-numba-{os.getuid()}"
    if own.exists() and own.stat().st_uid != os.getuid():
        own = Path(tempfile.mkdtemp(prefix="metaser-numba-"))  # another's could be harmful code
    place = writable(platformdirs.user_cache_path("metaser") / "numba", own, mode=0o700)
    if place is not None:
        os.environ["NUMBA_CACHE_DIR"] = str(place)


_numba_cache()
import librosa  # noqa: E402 (it loads numba, which asks for the folder at once)

COMPILED = ("librosa.util.utils", "librosa.core.audio", "librosa.core.pitch")
"""Modules that compile ufuncs when they are imported. The cache is safe for all others."""

COMPILING = 600.0
"""Seconds that another process may take to compile."""


def __getattr__(name: str) -> Any:
    """Return the attribute of librosa, once its compiled modules are loaded."""
    _import_compiled()
    return getattr(librosa, name)


@cache
def _import_compiled() -> None:
    """Import the modules that compile, one process at a time."""
    with lock(Path(tempfile.gettempdir()) / f"metaser-librosa-{os.getuid()}.lock", COMPILING):
        for module in COMPILED:
            importlib.import_module(module)
