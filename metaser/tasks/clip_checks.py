"""Find what is suspicious about the clips of a corpus.

`listen` decodes one clip and measures level, clipping and silence. The other functions compare the
clips of a corpus: which are the same recording, and what other than emotion gives a label away.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from metaser import audio
from metaser.files import users_files
from metaser.mono import OFFSET, at_rate, to_mono
from metaser.naming import some

FRAME = 0.02
"""Seconds from one frame of a fingerprint to the next."""

BANDS = 20
"""Frequency bands of a fingerprint."""

LOWEST, HIGHEST = 100.0, 3800.0
"""Edges of the bands in Hz: roughly what a telephone transmits."""

RATE = 8000
"""Samples per second at which waveforms are compared."""

UNREAD = (".mkv", ".avi", ".mov", ".m4v", ".wmv", ".flv", ".mpg")
"""Extensions of video files, which are not taken for clips."""

FULL_SCALE = 0.999
"""Magnitude from which a sample counts as clipped; the largest possible is 1."""

QUIET = -60.0
"""Level in dB, relative to full scale, below which a frame or a clip counts as silent."""

NEIGHBOURS = 5
"""Number of nearest clips with which each clip is compared."""

CANDIDATES = 0.88
"""Two clips whose fingerprints correlate by at least this much have their waveforms compared."""

SOUNDS = 1e-4
"""Power, relative to the mean of a clip, above which the clip counts as sounding."""

ROUNDING = 1e-10
"""Energy, relative to that of whole clips, below which a product is mere rounding."""

ALIKE = 0.95
"""Two clips whose waveforms correlate by at least this much count as one recording."""

CLIPPED = 1e-3
"""Share of samples at full scale above which a clip is reported as clipped."""

MOSTLY = 0.8
"""Share from which something counts as holding for most of a clip, or for most clips."""

UNEQUAL = 5.0
"""Ratio of the largest class to the smallest from which the classes are reported as unequal."""

TELLS = 0.25
"""Share of the way from chance to a UAR of 1 that a giveaway may reach without a warning."""

TEXTS = ("text", "text_id", "sentence", "statement", "transcript")
"""Columns that say which text is spoken; the first one present is used."""


@dataclass(frozen=True)
class Heard:
    """Measurements of one clip.

    Attributes
    ----------
    error : str
        Why the clip cannot be used, or "". If there is an error, the other attributes keep their
        defaults.
    peak : float
        Largest magnitude of a sample of the clip as mono; full scale is 1.
    seconds : float
        Length of the clip.
    digest : str
        Hash of the decoded audio, see `audio.digest`.
    rate : int
        Samples per second of the file.
    level : float
        Root mean square in dB, relative to full scale: 0 or less, -inf for silence.
    clipped : float
        Share of samples at full scale, in [0, 1].
    quiet : float
        Share of frames of 20 ms with a level below -60 dB, in [0, 1].
    fingerprint : numpy.ndarray
        float32, (frames, bands): logarithm of the energy every 20 ms; the mean of each band is 0.
    waveform : numpy.ndarray
        float32, (samples,): the clip as mono at 8000 samples per second.
    notes : tuple of str
        What is noteworthy about the file, see `audio.Sound`, and about its channels.
    offset : float
        Constant part that is taken away when the clip is read; full scale is 1.
    """

    error: str = ""
    peak: float = 0.0
    seconds: float = 0.0
    digest: str = ""
    rate: int = 0
    level: float = -np.inf
    clipped: float = 0.0
    quiet: float = 0.0
    fingerprint: np.ndarray = field(default_factory=lambda: np.zeros((0, BANDS), np.float32))
    waveform: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    notes: tuple[str, ...] = ()
    offset: float = 0.0


def listen(path: Path) -> Heard:
    """Decode a clip and measure it.

    A file that cannot be decoded raises no error: the reason is in `Heard.error`.
    """
    try:
        with audio.opened(path) as sound:
            samples, rate, notes = sound.read(), sound.rate, sound.notes
    except audio.AudioError as error:
        return Heard(error=str(error).removeprefix(f"{path}: "))
    mono, note = to_mono(samples)
    power = _band_power(mono, rate)
    size = max(round(FRAME * rate), 1)
    frames = mono[: len(mono) // size * size].reshape(-1, size)
    with np.errstate(divide="ignore"):
        loud = 10 * np.log10((frames**2).mean(axis=1))
        level = 10 * np.log10((mono**2).mean())
    logarithm = np.log(power + 1e-8)
    return Heard(
        peak=float(np.abs(mono).max()),
        seconds=len(samples) / rate,
        digest=audio.digest(samples, rate),
        rate=rate,
        level=float(level),
        clipped=float((np.abs(samples) >= FULL_SCALE).mean()),
        quiet=float((loud < QUIET).mean()) if len(loud) else 0.0,
        fingerprint=(logarithm - logarithm.mean(axis=0)).astype(np.float32),
        waveform=at_rate(mono, rate, RATE),
        notes=notes + (note,) * bool(note),
        offset=float(abs(samples.mean() - mono.mean())) if not note else 0.0,
    )


def _band_power(mono: np.ndarray, rate: int) -> np.ndarray:
    """Return the power in bands of equal frequency ratio, (frames, BANDS)."""
    from scipy.signal.windows import hann

    hop = max(round(FRAME * rate), 1)
    window = hann(2 * hop, sym=False)
    mono = np.pad(mono, (0, max(0, len(window) - len(mono))))
    frames = np.lib.stride_tricks.sliding_window_view(mono, len(window))[::hop] * window
    power = np.abs(np.fft.rfft(frames)) ** 2 / len(window)
    frequency = np.fft.rfftfreq(len(window), 1 / rate)
    edges = np.searchsorted(frequency, np.geomspace(LOWEST, HIGHEST, BANDS + 1))
    return np.add.reduceat(power, np.minimum(edges[:-1], power.shape[1] - 1), axis=1)


def near_duplicates(heard: Sequence[Heard], alike: float = ALIKE) -> list[tuple[int, int, float]]:
    """Find pairs of clips that hold the same recording.

    One of the two may have another level, be cut elsewhere, or be encoded in another way. Each
    clip's fingerprint is compared with those of its nearest neighbours. Where the fingerprints are
    alike, the waveforms decide: an actor can repeat the melody of a sentence, but not its samples.

    Parameters
    ----------
    heard
        Measurements of the clips, without error.
    alike
        Pairs whose waveforms correlate by at least this much are returned, in [0, 1].

    Returns
    -------
    list of (int, int, float)
        Positions of the two clips, the lower one first, and the correlation of their waveforms;
        the most similar pair comes first.
    """
    from sklearn.neighbors import NearestNeighbors

    if len(heard) < 2:
        return []
    shapes = np.stack([_dynamics(clip.fingerprint) for clip in heard])
    shapes = (shapes - shapes.mean(axis=0)) / (shapes.std(axis=0) + 1e-9)
    count = min(NEIGHBOURS, len(shapes) - 1)
    near = NearestNeighbors(n_neighbors=count).fit(shapes).kneighbors(return_distance=False)
    pairs = sorted({(min(i, j), max(i, j)) for i, row in enumerate(near.tolist()) for j in row})
    compared = []
    for i, j in pairs:
        if lag_correlation(heard[i].fingerprint, heard[j].fingerprint, 1 / FRAME) >= CANDIDATES:
            first, second = heard[i].waveform[:, None], heard[j].waveform[:, None]
            compared.append((i, j, lag_correlation(first, second, RATE)))
    return sorted((pair for pair in compared if pair[2] >= alike), key=lambda pair: -pair[2])


def _dynamics(fingerprint: np.ndarray) -> np.ndarray:
    """Return the spread of each band and of its changes: nearly the same wherever a clip is cut."""
    changes = np.diff(fingerprint, axis=0, prepend=fingerprint[:1])
    return np.concatenate([fingerprint.std(axis=0), changes.std(axis=0)])


def lag_correlation(a: np.ndarray, b: np.ndarray, rate: float) -> float:
    """Return the largest correlation of two signals over all lags at which they overlap enough.

    Enough is one second and half of the longer signal, or the whole of the shorter signal if that
    is less. Besides, both must sound for one second of it, or for half of what sounds in one of the
    two: a silent overlap says nothing.

    Parameters
    ----------
    a, b
        Signals, (samples, channels).
    rate
        Samples per second.

    Returns
    -------
    float
        In [-1, 1]; 1 for equal signals, 0 if they never sound together for long enough.
    """
    from scipy.signal import fftconvolve

    first, second = _sounding(a, rate), _sounding(b, rate)
    counts = first.sum(), second.sum()
    if not min(counts):
        return 0.0
    overlap = _running_sum(np.ones(len(a)), len(b))
    enough = overlap > min(len(a), len(b), max(len(a) / 2, len(b) / 2, rate)) - 0.5
    enough &= fftconvolve(first, second[::-1]) > min(min(counts) / 2, rate) - 0.5
    if not enough.any():
        return 0.0
    product = fftconvolve(a, b[::-1], axes=0).sum(axis=1)[enough]
    powers = (a.astype(float) ** 2).sum(axis=1), (b[::-1].astype(float) ** 2).sum(axis=1)
    energy = _running_sum(powers[0], len(b)) * _running_sum(powers[1], len(a))
    least = ROUNDING * powers[0].sum() * powers[1].sum()
    return float(np.clip(product / np.sqrt(np.maximum(energy[enough], least)), -1, 1).max())


def _sounding(signal: np.ndarray, rate: float) -> np.ndarray:
    """Return 1 where a signal sounds, and 0 where it is below its mean power by 40 dB or more."""
    from scipy.ndimage import uniform_filter1d

    power = (signal.astype(float) ** 2).sum(axis=1)
    level = uniform_filter1d(power, max(round(FRAME * rate), 1), mode="constant")
    return (level > SOUNDS * power.mean()).astype(float)


def _running_sum(values: np.ndarray, width: int) -> np.ndarray:
    """Sum over every window of this width, also those that stick out: a full convolution."""
    total = np.concatenate([[0], np.cumsum(values, dtype=float)])
    ends = np.arange(1, len(values) + width)
    return total[np.minimum(ends, len(values))] - total[np.maximum(ends - width, 0)]


def giveaway(
    values: np.ndarray, emotions: np.ndarray, speakers: np.ndarray, folds: int = 5
) -> float:
    """Return how well one number per clip, such as its loudness, predicts the emotion.

    The classifier is Gaussian naive Bayes with equal priors, in cross-validation. Where each class
    has two speakers or more, no speaker is both learnt from and tested on.

    Parameters
    ----------
    values : ndarray of float, shape (clips,)
        The number of each clip.
    emotions, speakers : ndarray, shape (clips,)
        Class and speaker of each clip.
    folds : int
        Folds of the cross-validation; fewer where clips or speakers do not suffice.

    Returns
    -------
    float
        Cross-validated UAR in [0, 1]; chance is 1 / number of classes. NaN if a class has fewer
        than two clips, or there is only one class.
    """
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
    from sklearn.naive_bayes import GaussianNB

    names, counts = np.unique(emotions, return_counts=True)
    if len(names) < 2 or counts.min() < 2:
        return float("nan")
    holders = [len(set(speakers[emotions == name])) for name in names]
    apart = min(holders) >= 2
    kind = StratifiedGroupKFold if apart else StratifiedKFold
    splits = kind(min(folds, min(holders) if apart else counts.min()), shuffle=True, random_state=0)
    model = GaussianNB(priors=np.full(len(names), 1 / len(names)))
    groups = speakers if apart else None
    guesses = cross_val_predict(model, values[:, None], emotions, groups=groups, cv=splits)
    return float(balanced_accuracy_score(emotions, guesses))


def judge(table: pd.DataFrame, heard: Sequence[Heard]) -> tuple[list[str], list[str]]:
    """Say in sentences what is good about the clips of a corpus, and what is suspicious.

    Parameters
    ----------
    table
        Table of a `Task`, with the columns file, speaker, emotion, unit, clique, and perhaps one of
        `TEXTS`.
    heard
        Measurements from `listen`, one per row of the table.

    Returns
    -------
    good, suspicious : list of str
        One sentence per finding; both are empty if no clip can be used.
    """
    usable = [not clip.error for clip in heard]
    table = table[usable].reset_index(drop=True)
    heard = [clip for clip in heard if not clip.error]
    if not heard:
        return [], []
    findings = [_speakers(table), _texts(table), _classes(table), _rates(heard)]
    findings += [_loudness(table, heard), _copies(table, heard)]
    for what, share, most in (
        ("clips are clipped: over 0.1 % of their samples are at full scale", "clipped", CLIPPED),
        ("clips are mostly silence: 80 % of the time is below -60 dB", "quiet", MOSTLY),
        ("clips have a constant offset, which is taken away when they are read", "offset", OFFSET),
    ):
        files = [file for file, clip in zip(table["file"], heard) if getattr(clip, share) > most]
        findings.append(("", f"{len(files)} {what}: {some(files)}" if files else ""))
    return [good for good, _ in findings if good], [bad for _, bad in findings if bad]


def other_files(folder: Path) -> list[str]:
    """Name the video files below a folder, which are not taken for clips.

    Returns
    -------
    list of str
        One sentence, or none if there are no such files.
    """
    paths = (path for path in users_files(folder) if path.suffix.lower() in UNREAD)
    names = [path.relative_to(folder).as_posix() for path in paths]
    if not names:
        return []
    return [
        f"{len(names)} files are video, which is not taken for clips: {some(names)}; if they are "
        "clips, convert them, for example by `ffmpeg -i clip.mkv clip.wav`"
    ]


# Each of the following judges one aspect of a corpus. It returns a sentence on what is good and one
# on what is suspicious; at most one of the two is not empty.


def _speakers(table: pd.DataFrame) -> tuple[str, str]:
    kinds = table.groupby("speaker")["emotion"].nunique()
    if len(kinds) == 1:
        return "", (
            "one speaker: scores say how well this voice is recognised, and nothing about other "
            "people; episodes need speakers = 'any'"
        )
    single = list(kinds.index[kinds == 1])
    if single and table["emotion"].nunique() > 1:
        clips = int(table["speaker"].isin(single).sum())
        return "", (
            f"{len(single)} of {len(kinds)} speakers show one emotion only ({clips} of {len(table)}"
            " clips): the voice gives the label away; keep speakers apart"
        )
    return f"{len(kinds)} speakers, each with several emotions", ""


def _texts(table: pd.DataFrame) -> tuple[str, str]:
    name = next((name for name in TEXTS if name in table), None)
    if name is None or table[name].nunique() < 2:
        return "", ""
    kinds = table.groupby(name)["emotion"].nunique()
    often = table[name].map(table[name].value_counts()) > 1
    single = table[name].map(kinds).eq(1) & often
    if single.sum() > MOSTLY * len(table):
        return "", (
            f"the text gives the label away: {int(single.sum())} of {len(table)} clips have a text "
            "that is spoken in one emotion only"
        )
    share = (table[name].map(kinds) > 1).mean()
    good = f"{share:.0%} of the clips have a text that is spoken in other emotions too"
    return good if share else "", ""


def _classes(table: pd.DataFrame) -> tuple[str, str]:
    counts = table["emotion"].value_counts()
    rare = list(counts.index[counts == 1])
    if rare:
        return "", (
            f"class {some(rare)} has one clip, which can be learnt from or tested on, not both; "
            "record more, or drop the class"
        )
    ratio = counts.max() / counts.min()
    if ratio >= UNEQUAL:
        return "", (
            f"very unequal classes: {counts.idxmax()} has {ratio:.0f} times the clips of "
            f"{counts.idxmin()} ({counts.max()} and {counts.min()}); read UAR, not accuracy"
        )
    return f"at least {counts.min()} clips of every class", ""


def _rates(heard: Sequence[Heard]) -> tuple[str, str]:
    rates = pd.Series([clip.rate for clip in heard]).value_counts()
    if len(rates) == 1:
        return f"one sampling rate, {rates.index[0]} Hz", ""
    listed = ", ".join(f"{rate} Hz ({count} clips)" for rate, count in rates.items())
    return "", f"mixed sampling rates: {listed}; a model may learn the recording device"


def _loudness(table: pd.DataFrame, heard: Sequence[Heard]) -> tuple[str, str]:
    levels = np.array([max(clip.level, -120.0) for clip in heard])
    uar = giveaway(levels, table["emotion"].to_numpy(), table["unit"].to_numpy())
    if np.isnan(uar):
        return "", ""
    chance = 1 / table["emotion"].nunique()
    scores = f"UAR {uar:.0%}, chance {chance:.0%}"
    if uar < chance + TELLS * (1 - chance):
        return f"loudness alone does not give the label away ({scores})", ""
    return "", (
        f"loudness alone gives the label away ({scores}): were the classes recorded differently? "
        "A model may learn the recording and not the emotion"
    )


def _copies(table: pd.DataFrame, heard: Sequence[Heard]) -> tuple[str, str]:
    clique, digest = table["clique"], [clip.digest for clip in heard]
    pairs = [
        f"{table['file'][i]} = {table['file'][j]} ({alike:.2f})"
        for i, j, alike in near_duplicates(heard)
        if clique[i] != clique[j] and digest[i] != digest[j]
    ]
    if not pairs:
        return "no clip was found to be a part or a copy of another", ""
    return "", (
        f"{len(pairs)} pairs of clips hold the same recording (correlation of the samples): "
        f"{some(pairs)}; declare them under [duplicates], or remove one"
    )
