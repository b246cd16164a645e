from dataclasses import replace

import numpy as np
import pytest

from metaser.recording import CODECS, Situation, draw_situation, rerecord

RATE = 16000
CLEAN = Situation()


def _speech(seconds: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(5)
    time = np.arange(int(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * 3 * time) * rng.standard_normal(len(time))).astype(np.float32)


def _tones(*hertz: float) -> np.ndarray:
    time = np.arange(RATE) / RATE
    return sum(np.sin(2 * np.pi * f * time) for f in hertz).astype(np.float32)


def _hear(waveform, seed=0, **changes) -> np.ndarray:
    return rerecord(waveform, RATE, replace(CLEAN, **changes), np.random.default_rng(seed))


def _gain(situation: dict, hertz: float, against: float) -> float:
    """Level of one tone against another after recording, in dB."""
    spectrum = np.abs(np.fft.rfft(_hear(_tones(hertz, against), **situation)))
    return 20 * np.log10(spectrum[int(hertz)] / spectrum[int(against)])


def test_a_perfect_situation_changes_the_level_alone():
    clip = _speech()
    np.testing.assert_allclose(_hear(clip), clip / np.abs(clip).max(), atol=1e-6)


def test_the_tilt_is_in_decibel_an_octave():
    assert _gain({"tilt": 4.0}, 2000, 1000) == pytest.approx(4, abs=0.01)
    assert _gain({"tilt": -3.0}, 500, 1000) == pytest.approx(3, abs=0.01)


def test_the_pass_band_has_its_edges():
    assert _gain({"highest": 4000.0}, 4000, 500) == pytest.approx(-20 * np.log10(2), abs=0.05)
    assert _gain({"highest": 2000.0}, 6000, 500) < -40
    assert _gain({"lowest": 200.0}, 200, 4000) == pytest.approx(-20 * np.log10(2), abs=0.05)


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_keeps_length_and_place_and_loses_something(codec):
    clip = _tones(440, 900) * np.linspace(0.2, 1, RATE, dtype=np.float32)
    heard = _hear(clip, codec=codec)
    plain = _hear(clip)
    assert heard.shape == clip.shape and heard.dtype == np.float32
    shifts = range(-200, 201)
    likeness = [np.corrcoef(np.roll(heard, shift), plain)[0, 1] for shift in shifts]
    assert abs(shifts[int(np.argmax(likeness))]) <= 1 and max(likeness) > 0.97
    assert not np.allclose(heard, plain, atol=1e-4)


@pytest.mark.parametrize("codec, passes", [("gsm", False), ("mulaw", False), ("mp3", True)])
def test_telephone_codecs_end_at_four_kilohertz(codec, passes):
    assert (_gain({"codec": codec}, 6000, 1000) > -20) == passes


def test_an_unknown_codec_is_refused():
    with pytest.raises(ValueError, match="codec must be one of .*'gsm'.*, not 'flac'"):
        Situation(codec="flac")


def test_a_colour_stands_where_it_is_put():
    assert _gain({"colours": ((1000.0, 6.0),)}, 1000, 7000) == pytest.approx(6, abs=0.1)


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_the_noise_has_its_level_against_the_louder_half(slope):
    clip = _speech(2)
    silent = _hear(clip)
    noisy = _hear(clip, noise=20.0, noise_slope=slope)
    scale = noisy @ silent / (silent @ silent)  # the peak is at full scale again
    noise = noisy - scale * silent
    loud = np.sqrt(np.mean(np.sort((scale * silent) ** 2)[len(clip) // 2 :]))
    assert 20 * np.log10(loud / noise.std()) == pytest.approx(20, abs=3.2)
    power = np.abs(np.fft.rfft(noise)) ** 2  # from 100 to 6400 Hz: 6 octaves of 3 dB each
    octaves = [power[2 * low : 4 * low].mean() for low in (100, 6400 // 2)]
    assert 10 * np.log10(octaves[0] / octaves[1]) == pytest.approx(slope * 3.01 * 5, abs=1)


def test_the_room_dies_away_in_its_time():
    click = np.zeros(RATE, np.float32)
    click[100] = 1
    heard = _hear(click, reverberation=0.4, wet=0.3)
    tail = heard[101:] / heard[100]
    early, late = (np.sqrt(np.mean(tail[a : a + 800] ** 2)) for a in (800, 800 + 3200))
    assert 20 * np.log10(early / late) == pytest.approx(60 * 3200 / (0.4 * RATE), abs=3)
    assert np.sqrt((tail**2).sum()) == pytest.approx(0.3, rel=0.1)
    assert not tail[int(0.4 * RATE) + 1 :].any() or np.abs(tail[int(0.4 * RATE) + 1 :]).max() < 1e-6


def test_a_low_ceiling_clips():
    heard = _hear(_speech(), ceiling=0.4)
    clean = _hear(_speech())
    assert np.abs(heard).max() == 1
    np.testing.assert_array_equal(np.abs(heard) == 1, np.abs(clean) >= 0.4)


def test_silence_around_the_speech_is_cut():
    silence = np.zeros(RATE, np.float32)
    clip = np.concatenate([silence, _speech() + 0.01, silence])
    assert RATE <= len(_hear(clip, trim=True)) < 1.3 * RATE
    assert len(_hear(clip)) == 3 * RATE


def test_the_generator_decides_everything():
    draws = [draw_situation(np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    clip = _speech()
    before, state = clip.copy(), np.random.get_state()[1].copy()
    heard = [rerecord(clip, RATE, draws[0], np.random.default_rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(heard[0], heard[1])
    assert np.abs(heard[0] - heard[2]).max() > 1e-4
    np.testing.assert_array_equal(clip, before)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize("seed", range(12))
def test_every_situation_gives_sound(seed):
    situation = draw_situation(np.random.default_rng(seed))
    for clip in (_speech(), _speech(0.01), np.zeros(800, np.float32), np.full(1, 0.5, np.float32)):
        heard = rerecord(clip, RATE, situation, np.random.default_rng(seed))
        assert heard.dtype == np.float32 and heard.ndim == 1 and 1 <= len(heard) <= len(clip)
        assert np.isfinite(heard).all() and np.abs(heard).max() <= 1
    assert np.abs(rerecord(_speech(), RATE, situation, np.random.default_rng(0))).max() == 1


def test_situations_cover_studio_and_talk_show():
    draws = [draw_situation(np.random.default_rng(seed)) for seed in range(300)]
    assert {draw.trim for draw in draws} == {True, False}
    assert {draw.highest for draw in draws} == {3400, 5000, 7000, 7900}
    assert any(draw.ceiling == 1 for draw in draws) and any(draw.ceiling < 0.5 for draw in draws)
    assert any(draw.reverberation == 0 for draw in draws)
    noise = [draw.noise for draw in draws]
    assert 12 <= min(noise) < 15 and 42 < max(noise) <= 45


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_speed_moves_length_and_pitch_together(speed):
    heard = _hear(_tones(400), speed=speed)
    assert len(heard) == pytest.approx(RATE / speed, abs=2)
    peak = np.abs(np.fft.rfft(heard)).argmax() * RATE / len(heard)
    assert peak == pytest.approx(400 * speed, abs=2)


@pytest.mark.parametrize(
    "facts", [{"speed": 0.0}, {"ceiling": 0.0}, {"wet": -1.0}, {"reverberation": -0.1}]
)
def test_an_impossible_situation_is_refused(facts):
    with pytest.raises(ValueError, match=next(iter(facts))):
        Situation(**facts)
