import numpy as np
import pytest

from metaser.frontends import Waveform


@pytest.mark.parametrize("samples", [0, 1, 159, 160, 161, 16000])
def test_its_frames_are_the_samples_then_zeros(samples):
    clip = np.random.default_rng(0).normal(size=samples).astype(np.float32)
    frames = Waveform()(clip)
    assert frames.dtype == np.float32
    assert frames.shape == (max(-(-samples // 160), 1), 160)
    assert np.array_equal(frames.ravel()[:samples], clip)
    assert not frames.ravel()[samples:].any()


def test_a_long_clip_is_cut():
    assert Waveform(seconds=2.0)(np.ones(600 * 16000, np.float32)).shape == (200, 160)
