import pickle
import tracemalloc

import numpy as np
import pytest
from builders import draw_noise

from metaser.frontends.prosody import Prosody

RATE = 16000
PITCH, VOICING, LEVEL, PITCH_SLOPE, LEVEL_SLOPE = range(5)


def _voice(start: float, end: float, seconds: float) -> np.ndarray:
    """Five harmonics of a fundamental that glides by equal ratios, in Hz."""
    time = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(start * (end / start) ** (time / seconds)) / RATE
    harmonics = sum(np.sin(k * phase) / k for k in range(1, 6))
    return (0.1 * harmonics).astype(np.float32)


@pytest.mark.parametrize(
    "start, end", [(80, 80), (100, 200), (220, 110), (300, 500), (550, 590), (590, 70)]
)
def test_pitch_is_within_a_quarter_tone(start, end):
    frames = Prosody()(_voice(start, end, 2))[5:-5]
    seconds = np.arange(5, 196) / 100
    expected = 12 * np.log2(start / 100 * (end / start) ** (seconds / 2))
    np.testing.assert_allclose(frames[:, PITCH], expected, atol=0.5)
    per_frame = 12 * np.log2(end / start) / 200
    assert frames[:, PITCH_SLOPE].mean() == pytest.approx(per_frame, abs=0.01)


def test_pitch_is_in_hertz_at_other_rates_too():
    time = np.arange(22050) / 22050
    buzz = sum(0.1 * np.sin(2 * np.pi * 150 * k * time) / k for k in range(1, 6))
    pitch = Prosody(rate=22050)(buzz.astype(np.float32))[5:-5, PITCH]
    np.testing.assert_allclose(pitch, 12 * np.log2(1.5), atol=0.5)


def test_a_voice_is_told_from_noise_and_silence():
    pause = np.zeros(RATE // 2, np.float32)
    clip = np.concatenate([_voice(150, 150, 1), pause, _voice(300, 300, 1), draw_noise(RATE // 2)])
    frames = Prosody()(clip)
    first, silence, second, noise = (
        frames[a:b] for a, b in ((5, 95), (105, 145), (155, 245), (260, 295))
    )
    assert (np.concatenate([first, second])[:, VOICING] > 0.5).all()
    for unvoiced in (silence, noise):
        assert (unvoiced[:, [PITCH, PITCH_SLOPE]] == 0).all()
        assert (unvoiced[:, VOICING] < 0.2).all()
    assert np.abs(frames[:, PITCH_SLOPE]).max() < 0.5  # none of the octave between the voices
    assert ((frames[:, VOICING] >= 0) & (frames[:, VOICING] <= 1)).all()


def test_level_is_the_written_formula():
    clip = draw_noise(RATE) * np.linspace(0, 1, RATE, dtype=np.float32)
    padded = np.pad(clip.astype(float), 320)
    windows = np.stack([padded[start : start + 640] for start in range(0, RATE + 1, 160)])
    expected = np.maximum(20 * np.log10(np.sqrt((windows**2).mean(axis=1))), -100)
    np.testing.assert_allclose(Prosody()(clip)[:, LEVEL], expected, atol=1e-3)


def test_level_refers_to_full_scale():
    square = np.sign(np.sin(np.arange(RATE) * 0.05)).astype(np.float32)
    frames = Prosody()(square)[5:-5]
    np.testing.assert_allclose(frames[:, LEVEL], 0, atol=0.01)
    quieter = Prosody()(square / 10)[5:-5]
    np.testing.assert_allclose(quieter[:, LEVEL], -20, atol=0.01)
    np.testing.assert_allclose(Prosody()(np.zeros(RATE, np.float32))[:, LEVEL], -100, atol=1e-3)


def test_slope_of_the_level_is_a_line_s_through_nine_frames():
    clip = draw_noise(RATE) * np.hanning(RATE).astype(np.float32)
    frames = Prosody()(clip)
    for centre in range(4, 97, 7):
        nearby = frames[centre - 4 : centre + 5, LEVEL]
        expected = np.polyfit(np.arange(9), nearby, 1)[0]
        assert frames[centre, LEVEL_SLOPE] == pytest.approx(expected, abs=1e-4)


def test_a_steady_decay_has_a_steady_slope():
    decay = 10 ** (-60 * np.arange(RATE) / RATE / 20)  # 60 dB a second
    frames = Prosody()(_voice(200, 200, 1) * decay.astype(np.float32))[10:-10]
    np.testing.assert_allclose(frames[:, LEVEL_SLOPE], -0.6, atol=0.05)


@pytest.mark.parametrize("samples", [1, 2, 100, 159, 160, 320, 480, 640, 961])
def test_short_clips_have_frames(samples):
    for clip in (
        np.zeros(samples, np.float32),
        draw_noise(RATE)[:samples],
        _voice(150, 150, 1)[:samples],
    ):
        frames = Prosody()(clip)
        assert frames.shape == (1 + samples // 160, 5) and frames.dtype == np.float32
        assert np.isfinite(frames).all()


def test_long_clips_are_cut_before_they_are_analysed():
    frontend, clip = Prosody(seconds=2), draw_noise(600 * RATE)
    frontend(clip[:RATE])  # loads librosa
    tracemalloc.start()
    frames = frontend(clip)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6  # the clip itself has 38 MB, a spectrogram of it ten times that
    np.testing.assert_array_equal(frames, frontend(clip[: 2 * RATE]))
    assert len(frames) == 201


def test_it_is_the_same_in_another_process_and_leaves_the_clip_alone():
    clip = _voice(120, 180, 1)
    before = clip.copy()
    np.testing.assert_array_equal(Prosody()(clip), pickle.loads(pickle.dumps(Prosody()))(clip))
    np.testing.assert_array_equal(clip, before)


@pytest.mark.parametrize("lowest, highest", [(20, 600), (600, 65), (65, 5000), (65, 65)])
def test_impossible_search_ranges_are_refused(lowest, highest):
    with pytest.raises(ValueError, match=f"lowest={lowest}, highest={highest}"):
        Prosody(lowest=lowest, highest=highest)
