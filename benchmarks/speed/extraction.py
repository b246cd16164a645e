"""Feature extraction against plain loops over the reference libraries: ratios first.

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

CLIPS, SLOW_CLIPS, SECONDS, RATE, ROUNDS = 300, 64, 3, 16000, 5


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


def plain_prosody(path: Path) -> np.ndarray:
    waveform, rate = librosa.load(path, sr=RATE)
    return librosa.pyin(
        waveform, fmin=65, fmax=600, sr=rate, frame_length=960, hop_length=160, resolution=0.2
    )[0]


def plain_opensmile(features: str) -> Callable:
    import opensmile

    smile = opensmile.Smile(opensmile.FeatureSet[features], opensmile.FeatureLevel.Functionals)
    return smile.process_file


def plain_speaker() -> Callable:
    import resemblyzer

    encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)
    return lambda path: encoder.embed_utterance(librosa.load(path, sr=RATE)[0])


REFERENCES = {
    "mfcc": lambda: plain_mfcc,
    "log_mel": lambda: plain_log_mel,
    "prosody": lambda: plain_prosody,
    "egemaps": lambda: plain_opensmile("eGeMAPSv02"),
    "compare": lambda: plain_opensmile("ComParE_2016"),
    "speaker": plain_speaker,
    "statistics": lambda: None,
}
"""How a front end's numbers are had without MetaSER; nobody else has the last."""


def race(task: Task, sides: dict[str, tuple[Callable, int]], plain: Callable | None) -> dict:
    """Seconds of the plain loop and of each side, a front end and processes, in turn."""
    spent = {name: [] for name in ("loop", *sides)}
    files = [task.audio / file for file in task.table["file"]]
    extract(task, next(iter(sides.values()))[0], task.audio / "warm")
    for turn in range(ROUNDS):
        if plain is not None:
            start = time.perf_counter()
            for file in files:
                plain(file)
            spent["loop"].append(time.perf_counter() - start)
        for name, (frontend, jobs) in sides.items():
            start = time.perf_counter()
            extract(task, frontend, task.audio / f"cache{turn}", jobs=jobs)
            spent[name].append(time.perf_counter() - start)
            shutil.rmtree(task.audio / f"cache{turn}")
    return spent


def main() -> None:
    """Print one row a front end and variant: ratio, and times faster than real time."""
    print("front end   variant        ratio   metaser x real time   reference x real time")
    for name, make in REFERENCES.items():
        plain, clips = make(), CLIPS if name in ("mfcc", "log_mel") else SLOW_CLIPS
        sides = {"one process": (FRONTENDS[name](), 1)}
        if name in ("mfcc", "log_mel"):
            sides["torch"] = FRONTENDS[name](engine="torch"), 1
        else:
            sides["two processes"] = FRONTENDS[name](), 2
        with tempfile.TemporaryDirectory() as folder:
            spent = race(make_task(Path(folder), clips, SECONDS * RATE), sides, plain)
        theirs = clips * SECONDS / median(spent["loop"]) if plain else float("nan")
        for side in sides:
            ratio = median(b / a for a, b in zip(spent[side], spent["loop"])) if plain else theirs
            ours = clips * SECONDS / median(spent[side])
            print(f"{name:11} {side:13} {ratio:6.2f} {ours:21.0f} {theirs:23.0f}", flush=True)
    waveforms = list(np.random.default_rng(0).standard_normal((CLIPS, SECONDS * RATE), np.float32))
    for name in ("mfcc", "log_mel"):
        frontend = FRONTENDS[name](engine="torch")
        spent = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            frontend.many(waveforms)
            spent.append(time.perf_counter() - start)
        speed = CLIPS * SECONDS / median(spent)
        print(f"{name}, torch, from samples in memory: {speed:.0f} x real time")
    with tempfile.TemporaryDirectory() as folder:
        task = make_task(Path(folder), 10_000, RATE // 50)
        frontend = FRONTENDS["log_mel"](engine="torch")
        extract(task, frontend, task.audio / "cache")
        start = time.perf_counter()
        extract(task, frontend, task.audio / "cache")
        print(f"opening 10,000 clips: {1000 * (time.perf_counter() - start):.0f} ms")


if __name__ == "__main__":
    main()
