"""librosa, loaded by one process at a time: ``from metaser import safe_librosa as librosa``.

librosa keeps what it compiles in a cache on disk. Processes that fill that cache at the same time
can leave it broken, and then every later one crashes (numba issue 10128). Held back by a lock, the
first process fills it and the others read it.
"""

import importlib
import os
import tempfile
from functools import cache
from pathlib import Path

import librosa
from filelock import FileLock

COMPILED = ("librosa.util.utils", "librosa.core.audio", "librosa.core.pitch")
"""Modules that compile ufuncs when they are imported; what others compile is safe in the cache."""


def __getattr__(name: str):
    _import_compiled()
    return getattr(librosa, name)


@cache
def _import_compiled() -> None:
    with FileLock(Path(tempfile.gettempdir()) / f"metaser-librosa-{os.getuid()}.lock"):
        for module in COMPILED:
            importlib.import_module(module)
