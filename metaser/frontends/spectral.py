"""Spectral and prosodic front ends, computed by librosa or, faster, by PyTorch.

Each is a frozen dataclass whose fields are its arguments; calling it turns a waveform at ``rate``
into an array (frames, channels) of float32. Those with an ``engine`` have ``many``, which does the
same for many waveforms at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil

import numpy as np
import torch
from torch.nn.functional import linear

from metaser import safe_librosa as librosa

ACTIVE_RANGE_DB = 35.0
"""Frames more than this many dB below the loudest frame count as pauses."""

STEADY_SEMITONES = 1.0
"""Largest change of pitch from frame to frame (10 ms) that a voice is taken to make."""


ENGINES = ("librosa", "torch")
"""Who computes a spectrum: librosa, the reference, or PyTorch, equal to it within 1e-4.

Where float32 is coarser than that (beyond 500, as the first coefficient can be), within 3e-7 of it.
"""


@dataclass(frozen=True)
class MFCC:
    """Mel-frequency cepstral coefficients with the settings of the MetaSER paper.

    Parameters
    ----------
    rate : int
        Sampling rate in Hz that the waveform must have. The paper's 22,050 Hz is librosa's default.
    coefficients : int
        Coefficients per frame.
    frames : int
        Frames kept. Longer clips are cut, shorter ones are padded with zeros at the end, so
        every clip has exactly this many frames.
    deltas : int
        Derivatives in time that follow the coefficients, up to this order; 0 for none.
    engine : {"librosa", "torch"}
        Who computes the spectrum; "torch" is faster, more so with a GPU.

    References
    ----------
    Chopra et al., "Meta-Learning for Low-Resource Speech Emotion Recognition", ICASSP 2021.
    """

    rate: int = 22050
    coefficients: int = 20
    frames: int = 120
    deltas: int = 0
    engine: str = "librosa"

    def __post_init__(self) -> None:
        _check_engine(self.engine)

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Return (frames, channels) float32 of a mono waveform (samples,) at ``rate``.

        There are ``coefficients * (1 + deltas)`` channels.
        """
        if self.engine == "torch":
            return self.many([waveform])[0]
        power = np.abs(librosa.stft(waveform, n_fft=2048, hop_length=512)) ** 2
        return self._cepstrum(librosa.power_to_db(_mel_filters(self.rate, 2048, 128) @ power))

    def many(
        self, waveforms: Sequence[np.ndarray], device: torch.device | str | None = None
    ) -> list[np.ndarray]:
        """Return what calling gives for each.

        "torch" works on ``device``: if none is named, on a GPU if there is one.
        """
        if self.engine == "librosa":
            return [self(waveform) for waveform in waveforms]
        mels = _torch_mel(waveforms, self.rate, 2048, 512, 128, device)
        return [self._cepstrum(np.maximum(mel, mel.max() - 80).T) for mel in mels]

    def _cepstrum(self, mel: np.ndarray) -> np.ndarray:
        """Return the coefficients and their derivatives of a mel spectrum in dB (bands, frames)."""
        values = librosa.feature.mfcc(S=mel, n_mfcc=self.coefficients)
        # The nine frames that a derivative is fitted to do not fit into a shorter clip.
        mode = "interp" if values.shape[1] >= 9 else "nearest"
        orders = range(1, self.deltas + 1)
        steps = [librosa.feature.delta(values, order=order, mode=mode) for order in orders]
        values = np.concatenate([values, *steps]).T
        return librosa.util.fix_length(values, size=self.frames, axis=0).astype(np.float32)


@dataclass(frozen=True)
class LogMel:
    """Log-mel spectrogram in dB, referred to full scale.

    Parameters
    ----------
    rate : int
        Sampling rate in Hz that the waveform must have.
    bands : int
        Mel bands.
    window, hop : int
        Analysis window and step in samples.
    frames : int
        Longest clip in frames; what exceeds it is cut. Shorter clips stay short.
    engine : {"librosa", "torch"}
        Who computes the spectrum; "torch" is faster, more so with a GPU.
    """

    rate: int = 16000
    bands: int = 64
    window: int = 512
    hop: int = 160
    frames: int = 300
    engine: str = "librosa"

    def __post_init__(self) -> None:
        _check_engine(self.engine)

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Return (at most ``frames``, bands) float32 of a mono waveform (samples,) at ``rate``."""
        if self.engine == "torch":
            return self.many([waveform])[0]
        spectrum = librosa.stft(self._cut(waveform), n_fft=self.window, hop_length=self.hop)
        power = spectrum.real**2 + spectrum.imag**2
        mel = _mel_filters(self.rate, self.window, self.bands) @ power
        return librosa.power_to_db(mel, top_db=None).T[: self.frames].astype(np.float32)

    def many(
        self, waveforms: Sequence[np.ndarray], device: torch.device | str | None = None
    ) -> list[np.ndarray]:
        """Return what calling gives for each.

        "torch" works on ``device``: if none is named, on a GPU if there is one.
        """
        if self.engine == "librosa":
            return [self(waveform) for waveform in waveforms]
        cut = [self._cut(waveform) for waveform in waveforms]
        mels = _torch_mel(cut, self.rate, self.window, self.hop, self.bands, device)
        return [mel[: self.frames] for mel in mels]

    def _cut(self, waveform: np.ndarray) -> np.ndarray:
        """Return the samples that the frames kept are made of."""
        return waveform[: self.frames * self.hop + self.window]


@dataclass(frozen=True)
class Statistics:
    """One vector per clip: statistics of timbre, energy, pitch and timing.

    Timbre is pooled twice: over the active frames only (within 35 dB of the loudest), so that the
    silence around the speech, which differs from corpus to corpus, does not count; and, for the
    cepstrum, over the whole clip, which keeps the dynamics of speech and pauses.

    Parameters
    ----------
    rate : int
        Sampling rate in Hz that the waveform must have.
    coefficients : int
        Mel-frequency cepstral coefficients per frame.
    lowest_pitch, highest_pitch : float
        Search range of the fundamental frequency in Hz.
    seconds : float
        Longest clip; what exceeds it is cut.
    """

    rate: int = 16000
    coefficients: int = 20
    lowest_pitch: float = 65.0
    highest_pitch: float = 600.0
    seconds: float = 60.0

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Return (1, channels) float32 of a mono waveform (samples,) at ``rate``."""
        hop = self.rate // 100
        waveform = waveform[: round(self.seconds * self.rate)]
        waveform = librosa.util.fix_length(waveform, size=max(len(waveform), 16 * hop))
        spectrum = np.abs(librosa.stft(waveform, n_fft=4 * hop, hop_length=hop))
        rms = librosa.feature.rms(S=spectrum, frame_length=4 * hop)[0]
        level = librosa.amplitude_to_db(rms, ref=1.0, amin=1e-5, top_db=None)
        active = level > level.max() - ACTIVE_RANGE_DB
        mel = librosa.power_to_db(_mel_filters(self.rate, 4 * hop, 64) @ spectrum**2, top_db=80)
        cepstrum = librosa.feature.mfcc(S=mel, n_mfcc=self.coefficients)
        timbre = np.vstack([cepstrum[1:], self._timbre(spectrum, mel, cepstrum)])[:, active]
        whole = [cepstrum.mean(axis=1), cepstrum.std(axis=1), np.diff(cepstrum).std(axis=1)]
        pooled = [timbre.mean(axis=1), timbre.std(axis=1), *np.percentile(timbre, [20, 80], axis=1)]
        energy = _energy(level, active)
        pitch = self._pitch(waveform, active, hop)
        return np.concatenate([*whole, *pooled, energy, pitch]).astype(np.float32)[None]

    def _timbre(self, spectrum: np.ndarray, mel: np.ndarray, cepstrum: np.ndarray) -> np.ndarray:
        """Return the frame descriptors of timbre besides the cepstrum, (channels, frames)."""
        window = 2 * (len(spectrum) - 1)
        frequency = librosa.fft_frequencies(sr=self.rate, n_fft=window)
        edges = [0, 500, 1000, 2000, 4000, self.rate / 2 + 1]
        bands = [
            (spectrum[(frequency >= low) & (frequency < high)] ** 2).sum(axis=0)
            for low, high in zip(edges, edges[1:])
        ]
        balance = np.diff(librosa.power_to_db(np.stack(bands), top_db=None), axis=0)
        shape = {"S": spectrum + 1e-9, "freq": frequency}
        rise = np.maximum(np.diff(mel, axis=1, prepend=mel[:, :1]), 0)
        return np.vstack(
            [
                librosa.feature.delta(cepstrum[1:13]),
                balance,
                librosa.feature.spectral_centroid(**shape) / 1000,
                librosa.feature.spectral_bandwidth(**shape) / 1000,
                librosa.feature.spectral_rolloff(**shape) / 1000,
                np.log(librosa.feature.spectral_flatness(S=spectrum)),
                np.sqrt((rise**2).mean(axis=0, keepdims=True)),
            ]
        )

    def _pitch(self, waveform: np.ndarray, active: np.ndarray, hop: int) -> np.ndarray:
        """Return statistics of pitch, of voicing and of timing, (channels,).

        The pitch is in semitones above 100 Hz.
        """
        pitch = librosa.yin(
            waveform,
            fmin=self.lowest_pitch,
            fmax=self.highest_pitch,
            sr=self.rate,
            frame_length=6 * hop,
            hop_length=hop,
        )
        semitones = 12 * np.log2(pitch / 100)
        # Where there is no voice the estimate jumps about; where there is one it glides.
        jump = np.abs(np.diff(semitones)) > STEADY_SEMITONES
        voiced = active & ~np.append(jump, True) & ~np.insert(jump, 0, True)
        seconds = active.sum() / 100
        onsets = np.count_nonzero(np.diff(voiced.astype(int)) == 1) + int(voiced[0])
        share, run = voiced.sum() / 100 / seconds, voiced.sum() / max(onsets, 1) / 100
        timing = [share, onsets / seconds, run, active.mean(), np.log(seconds)]
        steps = np.diff(semitones)[voiced[1:] & voiced[:-1]]
        if len(steps) == 0:
            return np.concatenate([np.zeros(10), timing])
        heard = semitones[voiced]
        slope = np.polyfit(np.linspace(-1, 1, len(heard)), heard, 1)[0]
        spread = [heard.mean(), heard.std(), *np.percentile(heard, [5, 25, 50, 75, 95]), slope]
        return np.concatenate([spread, [np.abs(steps).mean(), steps.std()], timing])


def _check_engine(engine: str) -> None:
    """Refuse an engine that is not known."""
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {ENGINES}, not {engine!r}: choose one of them")


@cache
def _mel_filters(rate: int, window: int, bands: int) -> np.ndarray:
    """Return librosa's mel filters (bands, bins); kept, for they cost as much as a short clip."""
    return librosa.filters.mel(sr=rate, n_fft=window, n_mels=bands)


def _torch_mel(
    waveforms: Sequence[np.ndarray],
    rate: int,
    window: int,
    hop: int,
    bands: int,
    device: torch.device | str | None = None,
) -> list[np.ndarray]:
    """Return the mel spectra in dB of clips, as librosa computes them, each (frames, bands).

    Fourier transforms are in float64, as librosa's: in float32 the quiet bands of speech would be
    off by some thousandths of a dB.
    """
    if not waveforms:
        return []
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    hann, filters = _torch_constants(rate, window, bands, device)
    row, starts, counts = _line_up(waveforms, window, hop)
    frames = torch.from_numpy(row).to(device).unfold(0, window, hop)
    levels = torch.empty(len(frames), bands, device=device)
    block = max(1, (2**17 if device.type == "cpu" else 2**25) // window)  # fits a core's cache
    for some, out in zip(frames.split(block), levels.split(block)):
        spectrum = torch.fft.rfft(some * hann).to(torch.complex64)
        squares = torch.view_as_real(spectrum).square_()
        power = squares[..., 0] + squares[..., 1]
        torch.cat([linear(power[:, bins], part) for bins, part in filters], dim=1, out=out)
        out.clamp_(min=1e-10).log10_().mul_(10)
    together = levels.cpu().numpy()
    return [together[start : start + count] for start, count in zip(starts, counts)]


def _line_up(
    waveforms: Sequence[np.ndarray], window: int, hop: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay clips into one row, each on the grid of frames and amid zeros, as librosa pads it.

    Returns
    -------
    row : ndarray
        (samples,) float64.
    starts, counts : ndarray
        (clips,) int; the first frame and the number of frames of each clip.
    """
    margin = window // 2
    counts = np.array([1 + (len(w) + 2 * margin - window) // hop for w in waveforms])
    ends = np.cumsum([1 + len(w) // hop + ceil(margin / hop) for w in waveforms])
    starts = np.append(0, ends[:-1])
    row = np.zeros(ends[-1] * hop + window)
    for start, waveform in zip(starts * hop + margin, waveforms):
        row[start : start + len(waveform)] = waveform
    return row, starts, counts


@cache
def _torch_constants(
    rate: int, window: int, bands: int, device: torch.device
) -> tuple[torch.Tensor, list[tuple[slice, torch.Tensor]]]:
    """Return the window (samples,), and the mel filters by groups of neighbours.

    Each group is (bands, bins). It comes with the bins that it reaches: most of the filters' whole
    matrix is zero.
    """
    hann = torch.hann_window(window, dtype=torch.float64, device=device)
    groups = []
    for part in np.array_split(_mel_filters(rate, window, bands), 4):
        bins = np.flatnonzero(part.any(axis=0))
        reach = slice(int(bins.min(initial=0)), int(bins.max(initial=0)) + 1)
        groups.append((reach, torch.from_numpy(part[:, reach].copy()).to(device)))
    return hann, groups


def _energy(level: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Return statistics of the level in dB, (8,); all but the first do not depend on the gain."""
    loud = level[active]
    low, quarter, median, three, high = np.percentile(loud, [5, 25, 50, 75, 95])
    steps = np.abs(np.diff(level, prepend=level[:1]))[active]
    spread = [loud.std(), high - low, three - quarter, high - median, median - low]
    return np.array([loud.mean(), *spread, steps.mean(), steps.std()])
