"""Who speaks, as a vector, by the package ``resemblyzer`` (``pip install 'metaser[speaker]'``).

The package and its weights are under the Apache License 2.0.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from metaser import safe_librosa as librosa

if TYPE_CHECKING:
    from resemblyzer import VoiceEncoder

QUIETEST = 1e-5
"""Clips without a sample above this (-100 dB) hold nothing to amplify."""


@dataclass(frozen=True)
class SpeakerEmbedding:
    """One vector per clip, of length 1, that is alike for clips of one voice.

    Clips below -30 dB relative to full scale are amplified to that, as ``resemblyzer`` does. Its
    removal of pauses is left out: it took up to 70 % of a clip of emotional speech, and told
    speakers apart better on one corpus and worse on two.

    Parameters
    ----------
    rate : int
        Sampling rate in Hz that the waveform must have; the encoder knows 16,000 only.
    seconds : float
        Longest clip; what exceeds it is cut.

    Raises
    ------
    ValueError
        If the rate is another.
    ModuleNotFoundError
        If ``resemblyzer`` is not installed.

    References
    ----------
    Wan et al., "Generalized End-to-End Loss for Speaker Verification", ICASSP 2018.
    """

    LIBRARIES = ("resemblyzer", "torch")
    TRAINED = True

    rate: int = 16000
    seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.rate != 16000:
            raise ValueError(
                f"rate must be 16000 Hz, as the encoder needs, not {self.rate}: leave it out"
            )
        _encoder()

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Return (1, 256) float32 of a mono waveform (samples,) at ``rate``, not negative."""
        encoder, louder = _encoder()
        waveform = waveform[: round(self.seconds * self.rate)]
        if np.abs(waveform).max() > QUIETEST:
            waveform = louder(waveform)
        return encoder.embed_utterance(waveform)[None]


@cache
def _encoder() -> tuple["VoiceEncoder", Callable[[np.ndarray], np.ndarray]]:
    """Return the encoder, loaded once per process, and what amplifies quiet clips for it."""
    librosa.feature  # noqa: B018 (resemblyzer uses librosa: this loads it by one process at a time)
    try:
        with warnings.catch_warnings(action="ignore"):  # it imports from places that are to go
            from resemblyzer import VoiceEncoder, normalize_volume
            from resemblyzer.hparams import audio_norm_target_dBFS
    except ImportError as error:
        raise ModuleNotFoundError(
            f"the front end SpeakerEmbedding needs resemblyzer, and importing it says: {error}. "
            "Run: pip install 'metaser[speaker]'"
        ) from error
    louder = partial(normalize_volume, target_dBFS=audio_norm_target_dBFS, increase_only=True)
    return VoiceEncoder("cpu", verbose=False), louder
