"""Feature extraction against a plain librosa loop, on one core: ratios first.

Run with ``OMP_NUM_THREADS=1 python benchmarks/speed/extraction.py``. Both sides read the same
files, resample them where the front end asks for it, and compute the same features; MetaSER's
side also hashes each clip and writes the cache.
"""

import tempfile
import time
from pathlib import Path
from statistics import median

import librosa
import numpy as np
import pandas as pd
import soundfile

from metaser.features import extract
from metaser.frontends import FRONTENDS
from metaser.tasks import Task

CLIPS, SECONDS, RATE, ROUNDS = 100, 3, 16000, 5


def plain_mfcc(path: Path) -> np.ndarray:
    waveform, rate = librosa.load(path, sr=22050)
    return librosa.feature.mfcc(y=waveform, sr=rate, n_mfcc=20)


def plain_log_mel(path: Path) -> np.ndarray:
    waveform, rate = librosa.load(path, sr=RATE)
    mel = librosa.feature.melspectrogram(y=waveform, sr=rate, n_fft=512, hop_length=160, n_mels=64)
    return librosa.power_to_db(mel)


def main() -> None:
    """Print one row a front end: ratio, and how many times faster than real time each side is."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [f"{number}.wav" for number in range(CLIPS)]
        for file in files:
            noise = 0.1 * rng.standard_normal(SECONDS * RATE)
            soundfile.write(folder / file, noise, RATE)
        facts = dict.fromkeys(Task.__dataclass_fields__, "")
        task = Task(**{**facts, "audio": folder, "table": pd.DataFrame({"file": files})})
        print("front end   ratio   metaser x real time   librosa x real time")
        for frontend, plain in (("mfcc", plain_mfcc), ("log_mel", plain_log_mel)):
            ours, theirs = [], []
            plain(folder / files[0])
            for turn in range(ROUNDS):
                start = time.perf_counter()
                extract(task, FRONTENDS[frontend](), folder / f"{frontend}{turn}")
                middle = time.perf_counter()
                for file in files:
                    plain(folder / file)
                ours.append(middle - start)
                theirs.append(time.perf_counter() - middle)
            ratio = median(b / a for a, b in zip(ours, theirs))
            speeds = [CLIPS * SECONDS / median(side) for side in (ours, theirs)]
            print(f"{frontend:10} {ratio:6.2f} {speeds[0]:17.0f} {speeds[1]:21.0f}")


if __name__ == "__main__":
    main()
