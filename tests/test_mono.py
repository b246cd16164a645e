"""Offsets are taken away where they matter, and channels that cancel each other are noticed."""

import logging

import numpy as np
import pytest
import soundfile

from metaser import audio
from metaser.features.hear import hear_windows
from metaser.mono import to_mono

RATE = 16000


@pytest.fixture
def speech():
    """Two seconds of noise at two levels, whose mean is 0."""
    wave = 0.1 * np.random.default_rng(0).standard_normal(2 * RATE)
    wave[RATE:] *= 0.1
    return (wave - wave.mean()).astype(np.float32)


@pytest.mark.parametrize("offset", [-0.4, -0.1, 0.02, 0.1, 0.3])
@pytest.mark.parametrize("channels", [1, 2])
def test_an_offset_makes_no_difference(speech, offset, channels):
    samples = np.stack([speech] * channels, axis=1)
    found, note = to_mono(samples + np.float32(offset))
    np.testing.assert_allclose(found, speech, atol=1e-6)
    assert not note and found.dtype == np.float32


@pytest.mark.parametrize("offset", [0, 0.004, -0.009])
def test_what_microphones_give_stays_to_the_last_bit(speech, offset):
    samples = (speech + np.float32(offset))[:, None]
    np.testing.assert_array_equal(to_mono(samples)[0], samples[:, 0])
    loud = np.float32(5) * speech + np.float32(0.02)  # inaudible beside the signal
    np.testing.assert_array_equal(to_mono(loud[:, None])[0], loud)


@pytest.mark.parametrize("gain", [-1, -0.9, -1.1])
def test_channels_that_cancel_each_other_are_read_as_the_louder(speech, gain):
    noise = 1e-3 * np.random.default_rng(1).standard_normal((2 * RATE, 2))
    samples = (np.stack([speech, np.float32(gain) * speech], axis=1) + noise).astype(np.float32)
    found, note = to_mono(samples)
    np.testing.assert_array_equal(found, samples[:, int(abs(gain) > 1)])
    assert "cancel each other" in note


@pytest.mark.parametrize("gain", [1, 0.3, 0, -0.3])
def test_other_channels_are_averaged(speech, gain):
    samples = np.stack([speech, np.float32(gain) * speech], axis=1)
    found, note = to_mono(samples)
    np.testing.assert_array_equal(found, samples.mean(axis=1))
    assert not note


def test_files_and_windows_are_read_so_and_it_is_said_once(speech, tmp_path, caplog):
    audio._say.cache_clear()
    samples = np.stack([speech, -speech], axis=1) + np.float32([0.2, -0.3])
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")

    class Itself:
        rate = RATE

        def __call__(self, waveform):
            return waveform[:, None]

    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(audio.read(tmp_path / "a.wav"), speech, atol=1e-6)
        windows = list(hear_windows([tmp_path / "a.wav"], Itself(), 1, 1))
    assert len(caplog.records) == 1 and "a.wav: its channels cancel" in caplog.text
    for window, part in zip(windows, np.split(speech, 2), strict=True):
        np.testing.assert_allclose(np.abs(window.frames[:, 0]), np.abs(part), atol=3e-3)
