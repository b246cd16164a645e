"""librosa's compiled functions are loaded under a lock, whoever asks first."""

import os
import subprocess
import sys

LOADED = r"""
import inspect, re, sys
import filelock, numpy as np

COMPILED = re.compile(r"^@(numba\.)?(gu)?vectorize\($", re.MULTILINE)

def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("librosa.")]
    return {m.__name__ for m in modules if COMPILED.search(inspect.getsource(m))}

class Lock(filelock.FileLock):
    def __enter__(self):
        before.update(compiled())
        return super().__enter__()
    def __exit__(self, *error):
        inside.update(compiled())
        return super().__exit__(*error)

before, inside = set(), set()
import metaser.safe_librosa
metaser.safe_librosa.FileLock = Lock
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
