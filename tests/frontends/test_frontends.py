import numpy as np
import pytest
from builders import draw_noise
from scipy.fft import dct
from scipy.signal import get_window
from torch import nn

from metaser import safe_librosa as librosa
from metaser.frontends import FRONTENDS, MFCC, LogMel, Statistics


def _tone(hertz: float, rate: int, seconds: float = 1.5) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    harmonics = sum(np.sin(2 * np.pi * k * hertz * time) / k for k in range(1, 6))
    return (0.1 * harmonics).astype(np.float32)


def _slaney(hertz):
    """Mel scale of Slaney's Auditory Toolbox: linear below 1 kHz, logarithmic above."""
    hertz = np.asarray(hertz, float)
    return np.where(
        hertz < 1000, hertz * 3 / 200, 15 + 27 * np.log(np.maximum(hertz, 1) / 1000) / np.log(6.4)
    )


def _mel_decibel(waveform: np.ndarray, rate: int, window: int, hop: int, bands: int) -> np.ndarray:
    """Mel spectrogram in dB by the written formula, (bands, frames)."""
    padded = np.pad(waveform.astype(float), window // 2)
    starts = range(0, len(padded) - window + 1, hop)
    frames = np.stack([padded[start : start + window] for start in starts])
    power = np.abs(np.fft.rfft(frames * get_window("hann", window))) ** 2
    frequency = np.arange(window // 2 + 1) * rate / window
    fine = np.linspace(0, rate / 2, 200_001)
    edges = np.interp(np.linspace(0, _slaney(rate / 2), bands + 2), _slaney(fine), fine)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequency - low) / (centre - low), (high - frequency) / (high - centre)
    weights = np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)
    return 10 * np.log10(np.maximum(weights @ power.T, 1e-10))


def test_mfcc_equals_the_written_formula():
    waveform = draw_noise(4 * 22050) * np.linspace(0, 1, 4 * 22050, dtype=np.float32)
    decibel = _mel_decibel(waveform, 22050, 2048, 512, 128)
    expected = dct(np.maximum(decibel, decibel.max() - 80), axis=0, norm="ortho")[:20, :120].T
    values = MFCC()(waveform)
    assert values.shape == (120, 20) and values.dtype == np.float32
    np.testing.assert_allclose(values, expected, atol=0.01)


def test_mfcc_pads_short_clips_with_zeros_at_the_end():
    clip = draw_noise(22050)
    values, real = MFCC()(clip), 1 + len(clip) // 512
    assert values.shape == (120, 20)
    assert (values[:real] != 0).all() and (values[real:] == 0).all()


def test_log_mel_equals_the_written_formula():
    waveform = draw_noise(16000)
    values = LogMel()(waveform)
    expected = _mel_decibel(waveform, 16000, 512, 160, 64).T
    assert values.shape == (101, 64)
    np.testing.assert_allclose(values, expected, atol=0.01)


def test_log_mel_cuts_long_clips_and_leaves_short_ones_short():
    clip = draw_noise(56000)
    assert len(LogMel()(clip)) == 300
    assert len(LogMel(frames=400)(clip)) == 351
    np.testing.assert_array_equal(LogMel()(clip), LogMel(frames=400)(clip)[:300])


def test_statistics_know_the_gain_in_two_channels_only():
    frontend = Statistics()
    clip = draw_noise(16000) + _tone(180, 16000, 1)
    change = (frontend(np.float32(0.5) * clip) - frontend(clip))[0]
    moved = np.sort(change[np.abs(change) > 0.01])
    decibel = 20 * np.log10(0.5)  # the level, and the mean of 64 orthonormal mel bands
    np.testing.assert_allclose(moved, [decibel * np.sqrt(64), decibel], atol=0.01)


def test_statistics_follow_the_pitch():
    frontend = Statistics()
    low, high = (frontend(_tone(hertz, 16000))[0] for hertz in (120, 240))
    octave = np.isclose(high - low, 12, atol=0.3)
    height = np.isclose(low, 12 * np.log2(1.2), atol=0.3)
    assert (octave & height).sum() >= 5  # mean, median and further percentiles


def test_statistics_do_not_count_the_silence_around_the_speech():
    frontend = Statistics()
    clip = draw_noise(16000)
    quiet = draw_noise(8000, level=1e-5)
    inside, outside = frontend(clip)[0], frontend(np.concatenate([quiet, clip, quiet]))[0]
    # Most channels look at the active frames only; the edges of the noise touch a few of these.
    assert np.median(np.abs(inside - outside) / (np.abs(inside) + 1)) < 0.05


def _awkward_clips(rate: int) -> dict[str, np.ndarray]:
    return {
        "silence": np.zeros(rate, np.float32),
        "almost silence": draw_noise(rate, level=1e-7),
        "a hundred samples": draw_noise(100),
        "one sample": np.full(1, 0.5, np.float32),
        "tone": _tone(200, rate),
        "pure sine": np.sin(np.arange(rate) * 0.1).astype(np.float32),
        "noise": draw_noise(2 * rate),
        "click": np.eye(1, rate, rate // 2, dtype=np.float32)[0],
        "full scale square": np.sign(np.sin(np.arange(rate) * 0.05)).astype(np.float32),
        "offset": np.full(rate, 0.7, np.float32),
    }


@pytest.mark.filterwarnings("ignore:n_fft=:UserWarning")
@pytest.mark.parametrize("name", FRONTENDS)
def test_every_front_end_keeps_the_contract(name):
    if name.startswith("ssl") or name == "whisper":
        pytest.skip("needs a model; tests/test_ssl.py makes some")
    if name == "joined":
        pytest.skip("needs front ends to join; tests/test_features.py has some")
    try:
        frontend = getattr(FRONTENDS[name](), "extracted", FRONTENDS[name]())
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    assert frontend.rate > 0
    if not isinstance(FRONTENDS[name](), nn.Module):
        assert frontend == FRONTENDS[name]()
    widths = set()
    for kind, clip in _awkward_clips(frontend.rate).items():
        before = clip.copy()
        values = frontend(clip)
        np.testing.assert_array_equal(clip, before)
        assert values.dtype == np.float32 and values.ndim == 2 and len(values) >= 1, kind
        assert np.isfinite(values).all(), kind
        np.testing.assert_array_equal(values, frontend(clip))
        widths.add(values.shape[1])
    assert len(widths) == 1


def _clips(rate: int, window: int, hop: int) -> list[np.ndarray]:
    """Made-up speech-like clips: shorter than a window, one window, at and around a frame's end."""
    rng = np.random.default_rng(1)
    lengths = [1, hop, window // 3, window, window + 1, 7 * hop - 1, 7 * hop, rate, 5 * rate // 2]
    clips = []
    for seed, length in enumerate(lengths):
        voice = _tone(150 + 20 * seed, rate, 3)[:length] * np.hanning(length + 2)[1:-1]
        clips.append((voice + 1e-4 * rng.standard_normal(length)).astype(np.float32))
    return clips


@pytest.mark.filterwarnings("ignore:n_fft=:UserWarning")
@pytest.mark.parametrize(
    "kind, arguments",
    [
        (MFCC, {}),
        (MFCC, {"coefficients": 40, "deltas": 2, "frames": 60}),
        (LogMel, {}),
        (LogMel, {"rate": 22050, "bands": 40, "window": 400, "hop": 100, "frames": 120}),
        (LogMel, {"window": 256, "hop": 512}),
        (LogMel, {"window": 401, "hop": 160}),
    ],
)
def test_torch_gives_librosa_s_numbers(kind, arguments):
    reference, fast = kind(**arguments), kind(**arguments, engine="torch")
    clips = _clips(reference.rate, arguments.get("window", 2048), arguments.get("hop", 512))
    for order in (slice(None), slice(None, None, -1), slice(4, 6)):
        found = fast.many(clips[order])
        for clip, values, expected in zip(clips[order], found, reference.many(clips[order])):
            assert values.shape == expected.shape and values.dtype == np.float32, len(clip)
            np.testing.assert_allclose(values, expected, atol=1e-4, rtol=3e-7)
    np.testing.assert_allclose(fast(clips[-1]), reference(clips[-1]), atol=1e-4, rtol=3e-7)
    assert fast.many([]) == []


@pytest.mark.filterwarnings("ignore:n_fft=:UserWarning")
@pytest.mark.parametrize("name", ["mfcc", "log_mel"])
def test_torch_gives_librosa_s_numbers_on_awkward_clips(name):
    reference, fast = FRONTENDS[name](), FRONTENDS[name](engine="torch")
    for kind, clip in _awkward_clips(reference.rate).items():
        np.testing.assert_allclose(fast(clip), reference(clip), atol=1e-4, rtol=3e-7, err_msg=kind)


@pytest.mark.parametrize("kind", [MFCC, LogMel])
def test_other_engines_are_refused(kind):
    with pytest.raises(ValueError, match="'librosa', 'torch'.*not 'jax'"):
        kind(engine="jax")


def test_deltas_are_librosa_s_over_the_whole_clip():
    clip = draw_noise(4 * 22050)
    plain, deltas = MFCC(frames=150, coefficients=40), FRONTENDS["mfcc40"]()
    assert deltas == MFCC(coefficients=40, deltas=2, frames=300)
    whole = MFCC(frames=1 + len(clip) // 512, coefficients=40)(clip)
    values = MFCC(frames=150, coefficients=40, deltas=2)(clip)
    assert values.shape == (150, 120) and deltas(clip).shape == (300, 120)
    np.testing.assert_array_equal(values[:, :40], plain(clip))
    for order in (1, 2):
        expected = librosa.feature.delta(whole, order=order, axis=0)[:150]
        np.testing.assert_allclose(values[:, 40 * order :][:, :40], expected, atol=1e-4)
