"""Spectral and prosodic front ends, computed by librosa.

Each is a frozen dataclass whose fields are its arguments; calling it turns a waveform at ``rate``
into an array (frames, channels) of float32.
"""

from dataclasses import dataclass
from functools import cache

import librosa
import numpy as np

ACTIVE_RANGE_DB = 35.0
"""Frames more than this many dB below the loudest frame count as pauses."""

STEADY_SEMITONES = 1.0
"""Largest change of pitch from frame to frame (10 ms) that a voice is taken to make."""


@dataclass(frozen=True)
class MFCC:
    """Mel-frequency cepstral coefficients with the settings of the MetaSER paper.

    Parameters
    ----------
    rate : int
        Sampling rate in Hz that the waveform must have. The paper's 22,050 Hz is librosa's default.
    coefficients : int
        Coefficients a frame.
    frames : int
        Frames kept. Longer clips are cut, shorter ones are padded with zeros at the end, so
        every clip has exactly this many frames.

    References
    ----------
    Chopra et al., "Meta-Learning for Low-Resource Speech Emotion Recognition", ICASSP 2021.
    """

    rate: int = 22050
    coefficients: int = 20
    frames: int = 120

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Return (frames, coefficients) float32 of a mono waveform (samples,) at ``rate``."""
        power = np.abs(librosa.stft(waveform, n_fft=2048, hop_length=512)) ** 2
        mel = librosa.power_to_db(_mel_filters(self.rate, 2048, 128) @ power)
        values = librosa.feature.mfcc(S=mel, n_mfcc=self.coefficients).T
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
    """

    rate: int = 16000
    bands: int = 64
    window: int = 512
    hop: int = 160
    frames: int = 300

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Return (at most ``frames``, bands) float32 of a mono waveform (samples,) at ``rate``."""
        spectrum = librosa.stft(waveform, n_fft=self.window, hop_length=self.hop)
        power = spectrum.real**2 + spectrum.imag**2
        mel = _mel_filters(self.rate, self.window, self.bands) @ power
        return librosa.power_to_db(mel, top_db=None).T[: self.frames].astype(np.float32)


@dataclass(frozen=True)
class Statistics:
    """One vector a clip: statistics of timbre, energy, pitch and timing.

    Timbre is pooled twice: over the active frames only (within 35 dB of the loudest), so that the
    silence around the speech, which differs from corpus to corpus, does not count; and, for the
    cepstrum, over the whole clip, which keeps the dynamics of speech and pauses.

    Parameters
    ----------
    rate : int
        Sampling rate in Hz that the waveform must have.
    coefficients : int
        Mel-frequency cepstral coefficients a frame.
    lowest_pitch, highest_pitch : float
        Search range of the fundamental frequency in Hz.
    """

    rate: int = 16000
    coefficients: int = 20
    lowest_pitch: float = 65.0
    highest_pitch: float = 600.0

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Return (1, channels) float32 of a mono waveform (samples,) at ``rate``."""
        hop = self.rate // 100
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
        """Frame descriptors of timbre besides the cepstrum, (channels, frames)."""
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
        """Statistics of pitch in semitones above 100 Hz, of voicing and of timing, (channels,)."""
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


@cache
def _mel_filters(rate: int, window: int, bands: int) -> np.ndarray:
    """Librosa's mel filters (bands, bins); made once, for they cost as much as a short clip."""
    return librosa.filters.mel(sr=rate, n_fft=window, n_mels=bands)


def _energy(level: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Statistics of the level in dB; all but the first are free of the recording's gain, (8,)."""
    loud = level[active]
    low, quarter, median, three, high = np.percentile(loud, [5, 25, 50, 75, 95])
    steps = np.abs(np.diff(level, prepend=level[:1]))[active]
    spread = [loud.std(), high - low, three - quarter, high - median, median - low]
    return np.array([loud.mean(), *spread, steps.mean(), steps.std()])
