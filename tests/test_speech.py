"""What can hold no speech is named; what can is let pass."""

import numpy as np
import pytest

from metaser.speech import lacks_speech

RATE = 16000
TIME = np.arange(2 * RATE) / RATE
NOISE = 0.1 * np.random.default_rng(0).standard_normal(2 * RATE)
TONE = 0.3 * np.sin(2 * np.pi * 440 * TIME)


@pytest.mark.parametrize(
    "wave, words",
    [
        (0 * TIME, "silent"),
        (1e-3 * NOISE, "silent"),
        (0 * TIME + 0.3, "silent"),
        (np.eye(1, len(TIME), 9000)[0], "silent but for 0.02 s"),
        (NOISE[:1], "too short"),
        (NOISE[:1600], "too short (0.10 s)"),
        (NOISE, "one steady sound"),
        (TONE, "one steady sound"),
        (TONE * (np.sin(2 * np.pi * 2 * TIME) > 0), "tone"),
    ],
)
@pytest.mark.parametrize("rate", [8000, 16000])
def test_what_is_no_speech_is_named(wave, words, rate):
    assert words in lacks_speech(wave[:: RATE // rate].astype(np.float32), rate)


def test_syllables_of_noise_pass():
    syllables = NOISE * np.maximum(np.sin(2 * np.pi * 3 * TIME), 0.03)
    assert lacks_speech(syllables.astype(np.float32), RATE) == ""


def test_no_clip_of_the_corpora_is_doubted(corpora):
    from metaser import audio

    for path in audio.find(corpora)[::97]:
        assert lacks_speech(audio.read(path), RATE) == "", path
