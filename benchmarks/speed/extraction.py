"""Feature extraction against a plain librosa loop, on one core: ratios first.

Run with ``OMP_NUM_THREADS=1 python benchmarks/speed/extraction.py``. All sides read the same
files, resample them where the front end asks for it, and compute the same features; MetaSER's
side also hashes each clip and writes the store. The last line is the time to open a store of
10,000 clips whose files have not changed.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import soundfile

from metaser import safe_librosa as librosa
from metaser.features import extract
from metaser.frontends import FRONTENDS
from metaser.tasks import Task

CLIPS, SECONDS, RATE, ROUNDS = 300, 3, 16000, 5


def plain_mfcc(path: Path) -> np.ndarray:
    waveform, rate = librosa.load(path, sr=22050)
    return librosa.feature.mfcc(y=waveform, sr=rate, n_mfcc=20)


def plain_log_mel(path: Path) -> np.ndarray:
    waveform, rate = librosa.load(path, sr=RATE)
    mel = librosa.feature.melspectrogram(y=waveform, sr=rate, n_fft=512, hop_length=160, n_mels=64)
    return librosa.power_to_db(mel)


def make_task(folder: Path, clips: int, samples: int) -> Task:
    """Write clips of noise and make a task of them."""
    rng = np.random.default_rng(0)
    files = [f"{number}.wav" for number in range(clips)]
    for file in files:
        soundfile.write(folder / file, 0.1 * rng.standard_normal(samples), RATE)
    facts = dict.fromkeys(Task.__dataclass_fields__, "")
    facts |= {"name": "made_up", "audio": folder, "table": pd.DataFrame({"file": files})}
    return Task(**facts)


def race(task: Task, name: str, plain: Callable) -> dict[str, list[float]]:
    """Seconds of librosa's loop and of each engine, in turn."""
    spent = {"loop": [], "librosa": [], "torch": []}
    plain(task.audio / task.table["file"][0])
    for turn in range(ROUNDS):
        start = time.perf_counter()
        for file in task.table["file"]:
            plain(task.audio / file)
        spent["loop"].append(time.perf_counter() - start)
        for engine in ("librosa", "torch"):
            start = time.perf_counter()
            extract(task, FRONTENDS[name](engine=engine), task.audio / f"cache{turn}")
            spent[engine].append(time.perf_counter() - start)
            shutil.rmtree(task.audio / f"cache{turn}")
    return spent


def main() -> None:
    """Print one row a front end and engine: ratio, and times faster than real time."""
    print("front end  engine   ratio   metaser x real time   librosa x real time")
    for name, plain in (("mfcc", plain_mfcc), ("log_mel", plain_log_mel)):
        with tempfile.TemporaryDirectory() as folder:
            spent = race(make_task(Path(folder), CLIPS, SECONDS * RATE), name, plain)
        for engine in ("librosa", "torch"):
            ratio = median(b / a for a, b in zip(spent[engine], spent["loop"]))
            ours, theirs = (CLIPS * SECONDS / median(spent[side]) for side in (engine, "loop"))
            print(f"{name:10} {engine:8} {ratio:5.2f} {ours:17.0f} {theirs:21.0f}")
    with tempfile.TemporaryDirectory() as folder:
        task = make_task(Path(folder), 10_000, RATE // 50)
        frontend = FRONTENDS["log_mel"](engine="torch")
        extract(task, frontend, task.audio / "cache")
        start = time.perf_counter()
        extract(task, frontend, task.audio / "cache")
        print(f"opening 10,000 clips: {1000 * (time.perf_counter() - start):.0f} ms")


if __name__ == "__main__":
    main()
