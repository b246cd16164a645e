"""Clips of a voice that are given beside those to predict, neutral ones or any."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import lfilter
from typer.testing import CliRunner

from metaser.adaptation import adapt as adaptation
from metaser.adaptation.clips import labelled_folder
from metaser.adaptation.fitted import Constants, constants_of_voice, voice_batch, where_neutral
from metaser.adaptation.model_file import load, read_header, save
from metaser.adaptation.predict import predict
from metaser.batch import Batch, Padded
from metaser.cli import app
from metaser.features import Features
from metaser.features.voice import normalise_voices

COLOURS = {"angry": 0.0, "happy": 0.5, "neutral": 0.9, "sad": 0.99}
"""Emotions as colours of noise: how much of a sample stays in the next."""


def say(path, emotion, seed):
    """Write half a second of noise of an emotion's colour, loud and quiet as syllables are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).standard_normal(8000)
    sound = lfilter([1], [1, -COLOURS[emotion]], noise) * np.sin(np.pi * np.arange(8000) / 2000)
    soundfile.write(path, 0.1 * sound / np.abs(sound).max(), 16000)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Labelled clips of two people, clips to predict of two others, and clips given of these."""
    folder = tmp_path_factory.mktemp("given")
    for number, emotion in enumerate(COLOURS):
        for seed in range(3):
            for who in ("ann", "ben"):
                clip = folder / "labelled" / emotion / who / f"{seed}.wav"
                say(clip, emotion, 100 * number + 10 * seed + len(who) * (who == "ann"))
        for seed, who in enumerate(("cat", "dan")):
            say(folder / "new" / f"{who}_{emotion}.wav", emotion, 1000 + 10 * number + seed)
            for take in range(2):
                clip = folder / "given" / emotion / who / f"{take}.wav"
                say(clip, emotion, 2000 + 100 * number + 10 * take + seed)
    return folder


@pytest.fixture(scope="module")
def adapted(place):
    file = load("starter-light")
    file = adaptation.adapt(file, labelled_folder(place / "labelled", file.header.classes))
    save(place / "adapted.safetensors", replace(file, fitted=replace(file.fitted, trust=0.9)))
    return load(place / "adapted.safetensors")


def test_where_neutral_lies_leans_on_the_sources():
    values = torch.tensor([[1.0], [3.0], [8.0]])[:, :, None]
    batch = Batch(
        {"audio": Padded(values, torch.ones(3, 1, dtype=torch.bool))},
        torch.tensor([2, 2, 0]),
        torch.ones(4, dtype=torch.bool),
    )
    # The neutral clips lie at 2, all at 4: 2 clips at -2 beside 3 of the sources at 0.5.
    expected = (2 * -2.0 + 3 * 0.5) / 5
    assert where_neutral(batch, 2, np.array([0.5])) == pytest.approx(np.array([expected]))
    assert where_neutral(batch, 2, None) == pytest.approx(np.array([-4 / 5]))
    assert where_neutral(batch, 1, None) is None


def test_a_voice_is_known_by_neutral_clips_as_in_the_benchmark():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((8, 1, 3)).astype(np.float32)
    features = Features(values, np.ones(8, int), np.array([""] * 8))
    speakers = np.array(list("aaaabbbb"))
    known = np.array([True, True, False, False] * 2)
    neutral = np.array([0.5, -1.0, 0.0], np.float32)
    for moved in (None, neutral):
        there = normalise_voices(features, speakers, known, neutral=moved)
        frames = values[:, 0]
        own = Constants(frames.mean(axis=0), frames.std(axis=0), neutral)
        voices = {
            who: constants_of_voice(
                features, np.flatnonzero(known & (speakers == who)), own, neutral=moved is not None
            )
            for who in "ab"
        }
        rows = np.arange(8)
        batch = features.batch(rows, np.zeros(8, int), np.ones(4, bool))
        here = voice_batch(batch, features, rows, speakers, own, voices)
        expected = np.asarray(there.values[rows])[:, :1]
        np.testing.assert_allclose(here.modalities["audio"].values, expected, atol=1e-5)


def test_given_clips_take_the_place_of_those_to_predict(place, adapted):
    assert adapted.fitted.own.neutral is not None and adapted.fitted.own.neutral.any()
    pattern, told = "^([a-z]+)_", []
    files = [place / "new"]
    arguments = dict(speaker=pattern, tell=told.append)
    plain = predict(adapted, files)
    own = predict(adapted, files, **arguments)
    neutral = predict(adapted, files, neutral=[place / "given" / "neutral"], **arguments)
    voice = predict(adapted, files, voice=[place / "given" / "neutral"], **arguments)
    tables = [table["confidence"].to_numpy() for table in (plain, own, neutral, voice)]
    assert told == []
    for index, first in enumerate(tables):
        assert all(np.abs(first - other).max() > 1e-4 for other in tables[index + 1 :])
    # A clip's answer depends on the given clips alone, not on its neighbours.
    alone = predict(
        adapted, [place / "new" / "dan_sad.wav"], neutral=[place / "given" / "neutral" / "dan"]
    )
    (row,) = np.flatnonzero(neutral["file"].str.endswith("dan_sad.wav"))
    assert alone["confidence"][0] == pytest.approx(neutral["confidence"][row], abs=1e-6)


def test_what_is_doubtful_about_given_clips_is_told(place, adapted):
    told, options = [], dict(speaker="^([a-z]+)_")
    files = [place / "new"]
    predict(adapted, files, neutral=[place / "given" / "angry"], tell=told.append, **options)
    assert len(told) == 2 and "2 of the 2 clips of cat that are given as neutral" in told[0]
    assert "angry 2" in told[0]
    told.clear()
    one = place / "given" / "neutral" / "cat"
    given = [one.parent / "cat"]
    predict(adapted, [place / "new" / "cat_sad.wav"], neutral=given, tell=told.append)
    assert told == []
    folder = one.parent
    predict(adapted, [place / "new" / "cat_sad.wav"], neutral=[folder], tell=told.append, **options)
    assert told == ["clips are given of dan, who do not speak in the files"]


def test_a_model_that_makes_no_use_of_voices_says_so(place, adapted):
    told = []
    shut = replace(adapted, fitted=replace(adapted.fitted, trust=0.0))
    never = replace(adapted, fitted=replace(adapted.fitted, by_voice=None, trust=0.0))
    for file in (shut, never):
        given = [place / "given" / "neutral" / "cat"]
        predict(file, [place / "new" / "cat_sad.wav"], neutral=given, tell=told.append)
    assert "do not show that knowing the voice is safe" in told[0]
    assert "was not told who speaks" in told[1]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--neutral", "given/neutral"], "must hold clips of one voice, but holds the folders cat"),
        (["--neutral", "given/neutral/cat", "--voice", "given/sad"], "must be given in one way"),
        (["--voice", "given/sad/cat", "--one-speaker-per-file"], "another person is said to speak"),
        (["--voice", "nothing"], "must be an audio file or a folder"),
        (["--voice", "given/sad/cat", "--speaker", "^([a-z]+)_"], "does not fit 0.wav: put it"),
        (["--voice", "given", "--speaker", "^([a-z]+)_"], "they are of angry, happy, neutral, sad"),
    ],
)
def test_clips_that_cannot_be_given_are_refused(place, adapted, monkeypatch, options, words):
    monkeypatch.chdir(place)
    done = CliRunner().invoke(app, ["predict", "adapted.safetensors", "new", *options])
    assert done.exit_code == 2 and words in done.output.replace("\n", " ")


def test_neutral_needs_a_model_that_has_heard_neutral_clips(place, adapted):
    own = replace(adapted.fitted.own, neutral=None)
    file = replace(adapted, fitted=replace(adapted.fitted, own=own))
    with pytest.raises(ValueError, match="must know where neutral clips lie"):
        predict(file, [place / "new"], neutral=[place / "given" / "neutral" / "cat"])


def test_clips_that_hold_one_recording_with_two_labels_are_told(place, tmp_path):
    labelled = tmp_path / "labelled"
    shutil.copytree(place / "labelled", labelled)
    sound, rate = soundfile.read(labelled / "angry" / "ann" / "0.wav")
    copy = labelled / "sad" / "ann" / "copy.flac"
    soundfile.write(copy, 0.5 * sound, rate)
    file, told = load("starter-light"), []
    adaptation.adapt(file, labelled_folder(labelled, file.header.classes), tell=told.append)
    (doubt,) = [one for one in told if "same recording" in one]
    assert doubt.startswith("1 pairs") and "0.wav (angry) = " in doubt
    assert "copy.flac (sad)" in doubt
    copy.rename(labelled / "angry" / "ann" / "copy.flac")
    told.clear()
    adaptation.adapt(file, labelled_folder(labelled, file.header.classes), tell=told.append)
    assert told == []


def test_a_language_without_neutral_clips_knows_voices_by_any(place, tmp_path):
    file = load("starter-light")
    file = replace(file, source=replace(file.source, neutral=None))
    clips = labelled_folder(place / "labelled", file.header.classes, drop=["neutral"])
    adapted, given = adaptation.adapt(file, clips), [place / "given" / "sad" / "cat"]
    with pytest.raises(ValueError, match="give the same clips by --voice"):
        predict(adapted, [place / "new" / "cat_sad.wav"], neutral=given)
    assert "neutral" not in predict(adapted, [place / "new" / "cat_sad.wav"], voice=given)


def test_a_speaker_with_one_clip_and_one_who_is_not_known(place, adapted):
    told = []
    files = [place / "new" / "cat_sad.wav", place / "given" / "sad" / "dan" / "0.wav"]
    table = predict(adapted, files, speaker="^([a-z]+)_", tell=told.append)
    assert len(told) == 1 and "not known of 1 files" in told[0] and "such as 0.wav" in told[0]
    plain = predict(adapted, files)
    assert table["confidence"][1] == pytest.approx(plain["confidence"][1], abs=1e-6)
    assert np.isfinite(table["confidence"]).all()


@pytest.mark.parametrize(
    "options, people",
    [
        (["--one-speaker"], 1),
        (["--one-speaker-per-file"], 24),
        (["--speaker", "^([0-9])$"], 3),
        ([], 2),
    ],
)
def test_adapting_is_told_who_speaks_as_predicting_is(place, tmp_path, options, people):
    out = tmp_path / "out.safetensors"
    arguments = ["adapt", "starter-light", str(place / "labelled"), "--out", str(out), *options]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    own = read_header(out).adaptation
    assert own.speakers == people and 0 <= own.trust <= 1
    assert (own.trust > 0.5) == (people != 24)  # each voice with one emotion is no voice to trust


@pytest.mark.parametrize(
    "options, words",
    [
        (["labelled", "--one-speaker", "--speaker", "(.)"], "must be said in one way"),
        (["--task", "it_emovo", "--one-speaker"], "a task says them itself"),
        (["--task", "it_emovo", "--drop", "sad"], "a task says them itself"),
    ],
)
def test_what_cannot_be_said_together_is_refused(place, monkeypatch, options, words):
    monkeypatch.chdir(place)
    done = CliRunner().invoke(app, ["adapt", "starter-light", "--out", "no.safetensors", *options])
    assert done.exit_code == 2 and words in done.output.replace("\n", " ")


def test_silence_and_noise_are_not_learnt_from_and_are_no_evidence(place, tmp_path):
    labelled = tmp_path / "labelled"
    shutil.copytree(place / "labelled", labelled)
    file, told = load("starter-light"), []
    clean = adaptation.adapt(file, labelled_folder(labelled, file.header.classes))
    steady = 0.1 * np.random.default_rng(0).standard_normal(16000)
    for name, sound in (("silent", np.zeros(16000)), ("steady", steady)):
        soundfile.write(labelled / "sad" / "ann" / f"{name}.wav", sound, 16000)
    clips = labelled_folder(labelled, file.header.classes)
    found = adaptation.adapt(file, clips, tell=told.append)
    (doubt,) = told
    assert doubt.startswith("2 of 26") and "silent.wav" in doubt and "steady.wav" in doubt
    assert found.header.adaptation == clean.header.adaptation
    for path in (labelled / "sad").rglob("[0-9].wav"):
        path.unlink()
    clips = labelled_folder(labelled, file.header.classes, drop=["happy", "neutral"])
    with pytest.raises(ValueError, match="at least two classes, not {'angry': 6}"):
        adaptation.adapt(file, clips)


def test_who_speaks_is_known_of_all_clips_or_of_none(place):
    file = load("starter-light")
    clips = labelled_folder(place / "labelled", file.header.classes)
    some = replace(clips, speakers=("", *clips.speakers[1:]))
    with pytest.raises(ValueError, match="but 1 of 24 have no speaker: .*0.wav"):
        adaptation.adapt(file, some)
    nobody = adaptation.adapt(file, replace(clips, speakers=("",) * 24)).header.adaptation
    assert nobody.speakers is None and nobody.trust == 0
