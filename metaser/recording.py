"""Imitate another recording situation: microphone, room, noise, level.

A corpus is recorded in one situation, so a model can mistake the situation for the language. Heard
again through made-up situations, every source corpus becomes several.
"""

import io
import math
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr
from scipy.signal import fftconvolve

from metaser import safe_librosa as librosa

CODECS = {
    "gsm": ("WAV", "GSM610", 8000),
    "mulaw": ("WAV", "ULAW", 8000),
    "mp3": ("MP3", "MPEG_LAYER_III", 16000),
    "opus": ("OGG", "OPUS", 16000),
    "vorbis": ("OGG", "VORBIS", 16000),
}
"""Format and encoding of soundfile, and the rate in Hz at which speech is encoded."""


@dataclass(frozen=True)
class Situation:
    """One recording situation, the same for all clips of a corpus; as it stands, a perfect one.

    Attributes
    ----------
    speed : float
        How many times faster it is played, 0.1 to 10; pitch and formants rise with it.
    codec : str
        One of ``CODECS``, by which the recording is kept or sent, such as "gsm"; none if empty.
    trim : bool
        Cut silence around the speech (quieter than the peak by 35 dB).
    tilt : float
        Slope of the microphone's response in dB per octave around 1 kHz.
    colours : tuple of (float, float)
        Bumps of the response, half an octave wide: centre in Hz and height in dB.
    lowest, highest : float
        Edges of the pass band in Hz.
    noise : float
        Signal-to-noise ratio in dB against the clip's louder half; it varies from clip to clip by
        up to 3 dB.
    noise_slope : float
        0 for white, 1 for pink noise.
    reverberation : float
        Time in seconds in which the room's sound falls by 60 dB; 0 for none.
    wet : float
        Energy ratio of room sound to direct sound, as an amplitude.
    ceiling : float
        Level, relative to the peak, at which the recording clips; 1 for none.
    """

    trim: bool = False
    tilt: float = 0.0
    colours: tuple[tuple[float, float], ...] = ()
    lowest: float = 0.0
    highest: float = math.inf
    noise: float = math.inf
    noise_slope: float = 0.0
    reverberation: float = 0.0
    wet: float = 0.3
    ceiling: float = 1.0
    speed: float = 1.0
    codec: str = ""

    def __post_init__(self) -> None:
        for name in ("highest", "wet", "ceiling"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}: raise it")
        if not 0.1 <= self.speed <= 10:
            raise ValueError(f"speed must be between 0.1 and 10, not {self.speed}: change it")
        if self.codec and self.codec not in CODECS:
            raise ValueError(
                f"codec must be one of {sorted(CODECS)}, not {self.codec!r}: choose one, or none"
            )
        if self.reverberation < 0:
            raise ValueError(
                f"reverberation must be at least 0 s, not {self.reverberation}: 0 is for none"
            )


def draw_situation(rng: np.random.Generator) -> Situation:
    """Draw a plausible situation, from a quiet studio to a clipped talk show."""
    return Situation(
        trim=bool(rng.random() < 0.5),
        tilt=rng.uniform(-4, 4),
        colours=tuple((rng.uniform(200, 6000), rng.uniform(-6, 6)) for _ in range(3)),
        lowest=rng.uniform(40, 250),
        highest=float(rng.choice([3400, 5000, 7000, 7900])),
        noise=rng.uniform(12, 45),
        noise_slope=rng.uniform(0, 1.5),
        reverberation=float(rng.choice([0, rng.uniform(0.1, 0.5)])),
        wet=rng.uniform(0.1, 0.5),
        ceiling=float(rng.choice([1, 1, rng.uniform(0.3, 0.8)])),
    )


def rerecord(
    waveform: np.ndarray, rate: int, situation: Situation, rng: np.random.Generator
) -> np.ndarray:
    """Return the clip as it might sound in another situation, its peak at full scale.

    Parameters
    ----------
    waveform : ndarray
        (samples,) float32.
    rate : int
        Sampling rate in Hz.
    situation : Situation
        Where the clip is heard.
    rng : numpy.random.Generator
        Draws the noise, the room's reflections and small differences from clip to clip.

    Returns
    -------
    ndarray
        (samples,) float32; of another length if silence was cut or the speed changed.
    """
    if situation.speed != 1:
        waveform = soxr.resample(waveform, rate * situation.speed, rate)
    if situation.trim:
        waveform, _ = librosa.effects.trim(waveform, top_db=35)
    samples = len(waveform)
    frequency = np.maximum(np.fft.rfftfreq(samples, 1 / rate), 20)
    heard = np.fft.irfft(np.fft.rfft(waveform) * _response(frequency, situation), samples)
    if situation.reverberation > 0:
        length = max(int(situation.reverberation * rate), 1)
        room = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
        room *= situation.wet / np.sqrt((room**2).sum())
        heard = heard + fftconvolve(heard, room)[:samples]
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    noise = np.fft.irfft(
        spectrum / np.maximum(frequency, 50) ** (situation.noise_slope / 2), samples
    )
    loud = np.sqrt(np.mean(np.sort(heard**2)[samples // 2 :]))
    decibel = situation.noise + rng.uniform(-3, 3)
    heard = heard + noise * loud / (noise.std() + 1e-12) * 10 ** (-decibel / 20)
    heard = heard / (np.abs(heard).max() + 1e-12)
    heard = (np.clip(heard, -situation.ceiling, situation.ceiling) / situation.ceiling).astype(
        np.float32
    )
    return _coded(heard, rate, situation.codec) if situation.codec else heard


def _coded(waveform: np.ndarray, rate: int, codec: str) -> np.ndarray:
    """Return the clip after a codec, of the same length, its peak at full scale."""
    form, encoding, own_rate = CODECS[codec]
    if not soundfile.check_format(form, encoding):
        raise ValueError(
            f"codec must be one that libsndfile has, not {codec!r}: version "
            f"{soundfile.__libsndfile_version__} lacks {encoding}; pip install --upgrade "
            "soundfile, or choose another codec"
        )
    file = io.BytesIO()
    sent = 0.9 * soxr.resample(waveform, rate, own_rate)  # encoders overshoot
    soundfile.write(file, sent, own_rate, subtype=encoding, format=form)
    file.seek(0)
    heard = soxr.resample(soundfile.read(file, dtype="float32")[0], own_rate, rate)
    heard = np.pad(heard, (0, max(len(waveform) - len(heard), 0)))[: len(waveform)]
    return heard / (np.abs(heard).max() + 1e-12)


def _response(frequency: np.ndarray, situation: Situation) -> np.ndarray:
    """Return the amplitude response of microphone and channel at the given frequencies."""
    decibel = situation.tilt * np.log2(np.maximum(frequency, 60) / 1000)
    for centre, height in situation.colours:
        decibel += height * np.exp(-0.5 * (np.log2(frequency / centre) / 0.5) ** 2)
    decibel -= 20 * np.log10(1 + (frequency / situation.highest) ** 8)
    decibel -= 20 * np.log10(1 + (situation.lowest / frequency) ** 4)
    return 10 ** (decibel / 20)
