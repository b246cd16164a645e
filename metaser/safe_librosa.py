"""librosa, loaded by one process at a time: ``from metaser import safe_librosa as librosa``.

librosa keeps compiled functions in a cache on disk. Processes that fill that cache at the same time
can leave it broken, and then every later one crashes (numba issue 10128). With a lock the first
process fills the cache, and the others wait and read it.
"""

import importlib
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import librosa
from filelock import FileLock

COMPILED = ("librosa.util.utils", "librosa.core.audio", "librosa.core.pitch")
"""Modules that compile ufuncs when they are imported. The cache is safe for all others."""


def __getattr__(name: str) -> Any:
    """Return the attribute of librosa, once its compiled modules are loaded."""
    _import_compiled()
    return getattr(librosa, name)


@cache
def _import_compiled() -> None:
    """Import the modules that compile, one process at a time."""
    with FileLock(Path(tempfile.gettempdir()) / f"metaser-librosa-{os.getuid()}.lock"):
        for module in COMPILED:
            importlib.import_module(module)
