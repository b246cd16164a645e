"""How the made-up languages sound: speakers, emotions and recording situations."""

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import soxr

RATE = 16000

CUES = ("pitch", "range", "rate", "level", "brightness", "breath", "tremor", "slope")
# What one unit of a cue is, in the order of CUES: semitones, octaves of the range setting, octaves
# of speaking rate, dB, dB per octave, dB of breath noise, semitones of depth, semitones end to end.
UNITS = np.array([3.0, 0.7, 0.22, 4.0, 1.5, 5.0, 0.25, 1.5])
SPEAKER_SPREAD = 0.35  # log-sd of a speaker's weight of a cue

VARIANTS = {
    "F": ("f1", "f2", "f3", "f4", "f5", "linda", "steph", "belinda", "Annie", "shelby"),
    "M": ("m1", "m2", "m3", "m4", "m6", "m7", "max", "robert", "Michael", "paul"),
}
SEMITONES_PER_STEP = 0.245  # of eSpeak NG's pitch setting, 50 being the voice's own pitch


@dataclass(frozen=True)
class Situation:
    """How one corpus was "recorded".

    Attributes
    ----------
    level : float
        Loudness of speech in dBFS.
    snr : float
        Distance from the speech down to the noise in dB.
    low_cut, high_cut : float
        The band that passes, in Hz.
    reverberation : float
        Seconds until reflections have lost 60 dB.
    wet : float
        Share of reflected sound.
    """

    level: float
    snr: float
    low_cut: float
    high_cut: float
    reverberation: float
    wet: float


@dataclass(frozen=True)
class Speaker:
    """One voice.

    Attributes
    ----------
    name : str
        Gender and number, such as "F01".
    gender : str
        "F" or "M".
    variant : str
        Voice variant of the engine.
    tract : float
        Factor of the playing rate; above 1 the vocal tract is shorter.
    habits : ndarray
        (cues,) what the speaker adds to each cue, in cue units.
    style : ndarray
        (cues,) weight of each cue.
    """

    name: str
    gender: str
    variant: str
    tract: float
    habits: np.ndarray
    style: np.ndarray


def draw_situation(rng: np.random.Generator) -> Situation:
    """Draw the recording situation of a corpus."""
    return Situation(
        level=rng.uniform(-33, -26),
        snr=rng.uniform(22, 38),
        low_cut=rng.uniform(50, 150),
        high_cut=rng.uniform(4000, 7600),
        reverberation=rng.uniform(0.1, 0.4),
        wet=rng.uniform(0.05, 0.3),
    )


def draw_speakers(rng: np.random.Generator, count: int) -> list[Speaker]:
    """Draw the speakers of a corpus, alternately female and male, with random engine voices."""
    voices = {gender: rng.permutation(names) for gender, names in VARIANTS.items()}
    cast = []
    for number in range(count):
        gender = "FM"[number % 2]
        pool = voices[gender]
        cast.append(
            Speaker(
                name=f"{gender}{number + 1:02d}",
                gender=gender,
                variant=str(pool[number // 2 % len(pool)]),
                tract=rng.uniform(0.97, 1.08),
                habits=rng.normal(0, [0.4, 0.3, 0.3, 0.4, 0.4, 0.4, 0.2, 0.2]),
                style=np.exp(rng.normal(0, SPEAKER_SPREAD, len(CUES))),
            )
        )
    return cast


class Engine:
    """eSpeak NG, loaded once per process; its output depends on what it has said before.

    Attributes
    ----------
    rate : int
        Samples per second of its speech.
    """

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = os.fsencode(espeakng_loader.get_data_path())
        synchronous, no_exit = 2, 0x8000
        self.rate = self._library.espeak_Initialize(synchronous, 0, data, no_exit)
        if self.rate <= 0:
            raise RuntimeError(
                f"the data of eSpeak NG must be in {os.fsdecode(data)}, but it finds none there: "
                "install espeakng-loader again"
            )
        if self._library.espeak_ng_SetRandSeed(ctypes.c_long(1)):  # by default it is the clock
            raise RuntimeError(
                "eSpeak NG must take a seed for its breath noise, but refuses it: install another "
                "version of espeakng-loader"
            )
        self._blocks: list[bytes] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        self._callback = kind(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: int | None, count: int, _events: int | None) -> int:
        """Keep a block of samples that the engine hands over; 0 tells it to go on."""
        if samples and count > 0:
            self._blocks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def speak(self, voice: str, text: str, words: int, pitch: int, spread: int) -> np.ndarray:
        """Speak a text.

        Parameters
        ----------
        voice : str
            Language and variant, such as "it+f1".
        text : str
            What to say.
        words : int
            Words per minute.
        pitch, spread : int
            Pitch and pitch range, from 0 to 99, of the engine's settings.

        Returns
        -------
        ndarray
            (samples,) float64 in [-1, 1] at ``self.rate``, without the quiet start and end.

        Raises
        ------
        RuntimeError
            If the engine does not know the voice or gives no sound.
        """
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise RuntimeError(
                f"eSpeak NG must have the voice {voice!r}, but does not: install another version "
                "of espeakng-loader"
            )
        rate_parameter, pitch_parameter, range_parameter = 1, 3, 4
        self._library.espeak_SetParameter(rate_parameter, words, 0)
        self._library.espeak_SetParameter(pitch_parameter, pitch, 0)
        self._library.espeak_SetParameter(range_parameter, spread, 0)
        self._blocks.clear()
        line, utf8 = text.encode(), 1
        if self._library.espeak_Synth(line, len(line) + 1, 0, 0, 0, utf8, None, None):
            raise RuntimeError(f"eSpeak NG must speak {text!r}, but reports an error")
        speech = np.frombuffer(b"".join(self._blocks), np.int16) / 32768
        loud = np.flatnonzero(np.abs(speech) > 0.01)
        if len(loud) == 0:
            raise RuntimeError(
                f"eSpeak NG must speak {text!r}, but is silent with the voice {voice!r}"
            )
        return speech[loud[0] : loud[-1] + 1]


def say(engine: Engine, language: str, text: str, speaker: Speaker, cues: np.ndarray) -> np.ndarray:
    """Speak a text with the pitch, range, rate, tremor and slope of the cues.

    Playing the speech at another rate makes the vocal tract longer or shorter; the pitch and the
    speaking rate of the engine are set to undo the side effects. A playing rate that varies gives
    tremor and slope.

    Parameters
    ----------
    engine : Engine
        The engine.
    language : str
        A key of ``LANGUAGES``.
    text : str
        What to say.
    speaker : Speaker
        Who says it.
    cues : ndarray
        (cues,) in the order and the units of ``CUES``.

    Returns
    -------
    ndarray
        (samples,) float64 at 2 * ``RATE``.
    """
    pitch, spread, rate, _, _, _, tremor, slope = (cues + speaker.habits) * UNITS
    semitones = pitch - 12 * np.log2(speaker.tract)
    speech = engine.speak(
        f"{language}+{speaker.variant}",
        text,
        words=round(np.clip(170 * 2**rate / speaker.tract, 130, 270)),
        pitch=round(np.clip(55 + semitones / SEMITONES_PER_STEP, 0, 99)),
        spread=round(np.clip(45 * 2**spread, 3, 99)),
    )
    speech = soxr.resample(speech, engine.rate * speaker.tract, 2 * RATE)
    seconds = np.arange(len(speech)) / (2 * RATE)
    shift = np.clip(slope, -3, 3) * (seconds / seconds[-1] - 0.5)
    shift += np.clip(0.15 + tremor, 0, 0.8) * np.sin(2 * np.pi * 5.5 * seconds)
    played = np.cumsum(2 ** (shift / 12))
    return np.interp(np.arange(int(played[-1])), played, speech)


def record(
    speech: np.ndarray,
    speaker: Speaker,
    cues: np.ndarray,
    situation: Situation,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the clip of the corpus: voice quality and loudness, then the recording situation.

    Parameters
    ----------
    speech : ndarray
        (samples,) at 2 * ``RATE``, from ``say``.
    speaker : Speaker
        Who says it.
    cues : ndarray
        (cues,) in the order and the units of ``CUES``.
    situation : Situation
        How the corpus is "recorded".
    rng : numpy.random.Generator
        Source of random numbers.

    Returns
    -------
    ndarray
        (samples,) float64 in [-1, 1] at ``RATE``.
    """
    _, _, _, level, brightness, breath, _, _ = (cues + speaker.habits) * UNITS
    voice = soxr.resample(speech, 2 * RATE, RATE)
    edges = rng.integers(RATE // 20, RATE // 6, 2)
    voice = np.pad(voice, edges)
    voice = _filter(voice, lambda hertz: _tilt(hertz, np.clip(brightness, -5, 5)))
    voice *= 10 ** ((situation.level + np.clip(level, -9, 9)) / 20) / _rms(voice)
    envelope = np.convolve(np.abs(voice), np.ones(160) / 160, "same")
    breathing = _filter(rng.normal(size=len(voice)) * envelope, lambda hertz: hertz > 1500)
    voice += breathing * 10 ** (np.clip(breath - 24, -40, -10) / 20)
    voice = _reverberate(voice, situation, rng)
    voice += rng.normal(0, 10 ** ((situation.level - situation.snr) / 20), len(voice))
    voice = _filter(voice, lambda hertz: _band(hertz, situation))
    return voice * min(1.0, 0.98 / np.abs(voice).max())


def _rms(signal: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(signal**2)))


def _fast_size(length: int) -> int:
    """A transform size at or above ``length`` without large prime factors."""
    return -(-length // 4096) * 4096


def _filter(signal: np.ndarray, gain: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Zero-phase filter; ``gain`` maps frequencies in Hz to amplitude factors."""
    size = _fast_size(len(signal) + RATE // 10)
    spectrum = np.fft.rfft(signal, size)
    return np.fft.irfft(spectrum * gain(np.fft.rfftfreq(size, 1 / RATE)), size)[: len(signal)]


def _tilt(hertz: np.ndarray, decibels: float) -> np.ndarray:
    """Gain that changes by this many dB per octave between 250 Hz and 6 kHz, 1 at 1 kHz."""
    return np.asarray(10 ** (decibels * np.log2(np.clip(hertz, 250, 6000) / 1000) / 20))


def _band(hertz: np.ndarray, situation: Situation) -> np.ndarray:
    """Amplitude response of a low and a high cut, fourth order."""
    low = 1 / np.sqrt(1 + (situation.low_cut / np.maximum(hertz, 1)) ** 8)
    return np.asarray(low / np.sqrt(1 + (hertz / situation.high_cut) ** 8))


def _reverberate(voice: np.ndarray, situation: Situation, rng: np.random.Generator) -> np.ndarray:
    """Add decaying reflections (60 dB in ``reverberation`` seconds) without changing the level."""
    seconds = np.arange(int(situation.reverberation * RATE)) / RATE
    decay = rng.normal(size=len(seconds)) * 10 ** (-3 * seconds / situation.reverberation)
    size = _fast_size(len(voice) + len(decay))
    reflected = np.fft.irfft(np.fft.rfft(voice, size) * np.fft.rfft(decay, size), size)
    reflected = reflected[: len(voice)]
    mixed = voice + situation.wet * reflected * _rms(voice) / _rms(reflected)
    return mixed * _rms(voice) / _rms(mixed)
