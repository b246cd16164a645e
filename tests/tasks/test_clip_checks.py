"""What the check of a task says is suspicious is so, and what is sound is not called suspicious."""

import numpy as np
import pandas as pd
import pytest
import soundfile
from scipy.signal import lfilter
from sklearn.metrics import balanced_accuracy_score

from metaser import tasks
from metaser.tasks import clip_checks

RATE = 16000


def speech(seed, seconds=2.0):
    """Noise with syllables: different for every seed."""
    rng = np.random.default_rng(seed)
    noise = lfilter([1], [1, -0.9], rng.normal(size=round(seconds * RATE)))
    syllables = np.repeat(rng.uniform(0.01, 1, size=round(seconds * 10)), RATE // 10)
    return (noise * syllables[: len(noise)] * 0.02).astype(np.float32)


@pytest.fixture
def hear(tmp_path):
    def make(samples, name="a.wav", rate=RATE, **options):
        soundfile.write(tmp_path / name, samples, rate, **options)
        return clip_checks.listen(tmp_path / name)

    return make


def test_measures_of_a_known_signal(hear):
    tone = 0.5 * np.sin(2 * np.pi * 500 * np.arange(RATE) / RATE)
    clip = hear(np.concatenate([tone, np.zeros(3 * RATE)]), subtype="FLOAT")
    assert clip.peak == pytest.approx(0.5, abs=1e-3)
    assert (clip.seconds, clip.rate, clip.clipped) == (4.0, RATE, 0.0)
    assert clip.level == pytest.approx(10 * np.log10(0.5**2 / 2 / 4), abs=0.01)
    assert clip.quiet == pytest.approx(0.75, abs=0.01)
    square = hear(np.sign(tone), "b.wav")
    assert square.clipped > 0.9


def test_a_file_that_is_no_audio(tmp_path):
    (tmp_path / "c.flac").write_text("text")
    assert "cannot be decoded" in clip_checks.listen(tmp_path / "c.flac").error


@pytest.mark.parametrize("long, short", [(40, 31), (47, 24), (33, 5), (6, 6)])
def test_correlation_over_lags_agrees_with_every_lag_in_turn(long, short):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(long, 3)), rng.normal(size=(short, 3))
    enough = min(short, max(long / 2, 10))
    naive = []
    for lag in range(1 - short, long):
        first, second = a[max(lag, 0) : lag + short], b[max(-lag, 0) : long - lag]
        if len(first) >= enough:
            naive.append((first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum()))
    assert clip_checks.lag_correlation(a, b, 10) == pytest.approx(max(naive))


def test_copies_are_found_though_quieter_cut_or_encoded_and_others_are_not(hear):
    whole = speech(0, 3)
    heard = [hear(speech(i), f"{i}.wav") for i in range(1, 12)]
    heard += [hear(whole, "x.wav"), hear(whole[RATE // 2 :] * 0.3, "y.ogg")]
    ((first, second, alike),) = clip_checks.near_duplicates(heard)
    assert (first, second) == (11, 12) and alike > 0.95
    assert clip_checks.near_duplicates(heard[:12]) == []


@pytest.mark.parametrize("rest", [0, 1e-5])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_silent_overlap_says_nothing(rest, kind):
    rng = np.random.default_rng(0)
    end = rest * rng.standard_normal(3 * RATE)
    one, other, short = (rng.standard_normal(length) for length in (RATE, RATE, RATE // 20))
    clips = [np.concatenate([part, end]).astype(kind)[:, None] for part in (one, other, short)]
    clips.append(np.zeros((RATE, 1), kind))
    found = [[clip_checks.lag_correlation(a, b, RATE) for a in clips] for b in clips]
    expected = np.diag([1, 1, 1, 0])
    np.testing.assert_allclose(found, expected, atol=0.15)
    assert np.abs(found).max() <= 1


def test_an_offset_and_channels_that_cancel_are_told(hear):
    wave = 0.1 * np.random.default_rng(0).standard_normal(RATE)
    assert hear(wave + 0.2, "a.wav").offset == pytest.approx(0.2, abs=1e-2)
    assert hear(wave, "b.wav").offset == 0 == len(hear(wave, "b.wav").notes)
    upside = hear(np.stack([wave, -wave], axis=1), "c.wav")
    assert "cancel each other" in upside.notes[0] and upside.level == hear(wave, "b.wav").level
    assert hear(np.full(RATE, 0.3), "d.wav").peak < 1e-3


def table(emotions, speakers, **columns):
    found = pd.DataFrame({"emotion": emotions, "speaker": speakers})
    found["unit"] = pd.factorize(found["speaker"])[0]
    found["clique"] = np.arange(len(found))
    return found.assign(file=[f"{i}.wav" for i in range(len(found))], **columns)


BALANCED = (["angry", "sad"] * 12, sorted("abcdef" * 4))


@pytest.fixture
def judged(hear):
    def judge(rows, change=lambda i, samples: samples, rates=None):
        heard = [
            hear(change(i, speech(i, 1)), f"{i}.wav", rates[i] if rates else RATE)
            for i in range(len(rows))
        ]
        return clip_checks.judge(rows, heard)

    return judge


def test_a_sound_corpus_has_no_complaints(judged):
    good, bad = judged(table(*BALANCED, text=["x", "x", "y", "y"] * 6))
    assert bad == []
    words = " ".join(good)
    for said in ("6 speakers", "12 clips of every class", "16000 Hz", "loudness alone does not"):
        assert said in words


@pytest.mark.parametrize(
    "rows, words",
    [
        (table(BALANCED[0], ["a"] * 24), "one speaker: scores say how well this voice"),
        (table(["angry"] * 12 + ["sad"] * 12, BALANCED[1]), "6 of 6 speakers show one emotion"),
        (table(*BALANCED, text=["hey", "oh"] * 12), "the text gives the label away: 24 of 24"),
        (table(["angry"] * 23 + ["sad"], BALANCED[1]), "class sad has one clip"),
        (table((["angry"] * 5 + ["sad"]) * 4, BALANCED[1]), "angry has 5 times the clips of sad"),
    ],
)
def test_suspicious_tables(judged, rows, words):
    assert any(words in line for line in judged(rows)[1])


def test_suspicious_sound(judged):
    rows = table(*BALANCED)
    bad = " ".join(judged(rows, lambda i, x: x * (1 if i % 2 else 0.1))[1])
    assert "loudness alone gives the label away (UAR 100%, chance 50%)" in bad
    bad = " ".join(judged(rows, lambda i, x: np.clip(x * 500, -1, 1) if i < 2 else x)[1])
    assert "2 clips are clipped" in bad
    bad = " ".join(judged(rows, lambda i, x: np.pad(x, (0, 9 * RATE)) if i == 3 else x)[1])
    assert "1 clips are mostly silence: 80 % of the time is below -60 dB: 3.wav" in bad
    bad = " ".join(judged(rows, rates=[RATE] * 20 + [8000] * 4)[1])
    assert "mixed sampling rates: 16000 Hz (20 clips), 8000 Hz (4 clips)" in bad


def test_giveaway_of_labels_that_are_told_and_of_chance():
    rng = np.random.default_rng(0)
    emotions = np.repeat(["angry", "sad", "happy"], 100)
    speakers = np.tile(np.arange(10), 30)
    told = np.repeat([0.0, 5.0, 10.0], 100) + rng.normal(size=300)
    guess = np.array(["angry", "sad", "happy"])[np.abs(told[:, None] - [0, 5, 10]).argmin(axis=1)]
    best = balanced_accuracy_score(emotions, guess)  # what the known means would reach
    assert clip_checks.giveaway(told, emotions, speakers) == pytest.approx(best, abs=0.02)
    noise = clip_checks.giveaway(rng.normal(size=300), emotions, speakers)
    assert noise == pytest.approx(1 / 3, abs=0.08)
    assert np.isnan(clip_checks.giveaway(told[:101], emotions[:101], speakers[:101]))


def test_video_and_other_sound_among_the_audio_is_named(tmp_path):
    for name in ("a.wav", "b.mkv", "c/d.avi", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (line,) = clip_checks.other_files(tmp_path)
    assert line.startswith("2 files are video,") and "b.mkv, c/d.avi" in line


def test_one_recording_under_two_speakers_of_urdu(corpora):
    """Found by this check: nobody has declared it."""
    folder = tasks.read_task("ur_urdu", corpora).audio
    names = ["SF1_F4_H04", "SF4_F3_H019", "SM1_F1_A01", "SF10_F2_S02", "SM25_F16_S066"]
    heard = [clip_checks.listen(folder / f"audio/{name}.flac") for name in names]
    ((first, second, alike),) = clip_checks.near_duplicates(heard)
    assert (first, second) == (0, 1) and alike > 0.99
