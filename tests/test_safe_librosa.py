"""librosa's compiled functions are loaded under a lock, whoever asks first."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from metaser import safe_librosa

LOADED = r"""
import contextlib, inspect, re, sys
import numpy as np

COMPILED = re.compile(r"^@(numba\.)?(gu)?vectorize\($", re.MULTILINE)

def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("librosa.")]
    return {m.__name__ for m in modules if COMPILED.search(inspect.getsource(m))}

@contextlib.contextmanager
def lock(*arguments):
    before.update(compiled())
    yield
    inside.update(compiled())

before, inside = set(), set()
import metaser.safe_librosa
metaser.safe_librosa.lock = lock
from metaser.frontends import MFCC, Leaf, LogMel, Prosody, Statistics
from metaser.recording import draw_situation, rerecord
noise = np.random.default_rng(0).normal(size=16000).astype(np.float32)
rerecord(noise, 16000, draw_situation(np.random.default_rng(0)), np.random.default_rng(0))
Leaf()
for frontend in (MFCC(rate=16000), MFCC(deltas=2), LogMel(), Statistics(), Prosody()):
    frontend(noise)
print(before, inside, compiled() - inside, sep="|")
"""


def test_front_ends_compile_nothing_outside_the_lock():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, env=environment, check=True
    )
    before, inside, outside = done.stdout.strip().split("|")
    assert before == outside == "set()"
    assert "librosa.core.pitch" in inside


@pytest.mark.parametrize("home", ["home", "none/at/all"])
def test_numba_keeps_what_it_compiles_where_it_can(tmp_path, monkeypatch, home):
    """A package that cannot be written stands in for a read-only install."""
    (tmp_path / "home").mkdir()
    (tmp_path / "none").write_text("")  # a file, so that nothing can be made below it
    place = tmp_path / home
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    monkeypatch.setattr(safe_librosa.tempfile, "gettempdir", lambda: str(tmp_path))
    spec = SimpleNamespace(origin=str(tmp_path / "none" / "librosa" / "__init__.py"))
    monkeypatch.setattr(safe_librosa.importlib.util, "find_spec", lambda name: spec)
    safe_librosa._numba_cache()
    chosen = Path(os.environ["NUMBA_CACHE_DIR"])
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    own = tmp_path / f"metaser-numba-{os.getuid()}"
    assert chosen == (place / "metaser" / "numba" if home == "home" else own)
    assert chosen.is_dir() and chosen.stat().st_mode & 0o77 == 0
