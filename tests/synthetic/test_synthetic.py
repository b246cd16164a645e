import csv
import hashlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from metaser import safe_librosa as librosa
from metaser import tasks
from metaser.synthetic import corpus, face, texts, voice

pytest.importorskip("espeakng_loader", reason='needs pip install "metaser[synthetic]"')

LANGUAGES = ("it", "fa")
SPEAKERS, SENTENCES, SEED = 4, 3, 3


def _make(folder: Path, languages=LANGUAGES, seed: int = SEED) -> Path:
    return corpus.generate(folder, languages, SPEAKERS, SENTENCES, seed)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def _measure(path: Path) -> dict[str, float]:
    """What librosa hears in a clip; pitch in semitones, in the louder half of the frames."""
    signal, rate = librosa.load(path, sr=None)
    loudness = librosa.feature.rms(y=signal, frame_length=1024, hop_length=320)[0]
    pitch = 12 * np.log2(librosa.yin(signal, fmin=60, fmax=400, sr=rate, frame_length=1024))
    loud = librosa.feature.rms(y=signal, frame_length=1024, hop_length=256)[0][: len(pitch)]
    voiced = pitch[loud > np.median(loud)]
    power = np.abs(librosa.stft(signal, n_fft=512)) ** 2
    high = librosa.fft_frequencies(sr=rate, n_fft=512) > 1500
    return {
        "level": 20 * np.log10(np.sqrt(np.mean(signal**2))),
        "loudness_range": float(np.std(librosa.amplitude_to_db(loudness))),
        "pitch": float(np.median(voiced)),
        "pitch_range": float(np.subtract(*np.percentile(voiced, [85, 15]))),
        "seconds": len(signal) / rate,
        "high": float(10 * np.log10(power[high].sum() / power[~high].sum())),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return _make(tmp_path_factory.mktemp("synthetic") / "made")


@pytest.fixture(scope="module")
def heard(made) -> pd.DataFrame:
    rows = []
    for path in sorted(made.glob("audio/*/*.wav")):
        speaker, emotion, *_ = path.stem.split("_")
        corpus = path.parent.name
        rows.append({"corpus": corpus, "speaker": speaker, "emotion": emotion, **_measure(path)})
    return pd.DataFrame(rows)


def test_other_languages_order_and_history_change_nothing(made, tmp_path):
    alone = _digests(_make(tmp_path / "alone", ["fa"]))
    reversed_ = _digests(_make(tmp_path / "reversed", LANGUAGES[::-1]))
    reference = _digests(made)
    voices = (made / "tasks" / "it_synthetic" / "README.md").read_text("utf-8")
    assert "F01 f2" in voices  # a breathy voice, whose noise the engine would seed by the clock
    assert reversed_ == reference
    del alone[corpus.STAMP]
    assert len(alone) == SPEAKERS * SENTENCES * 4 + 5
    assert alone.items() <= reference.items()


def test_another_seed_makes_other_audio(made, tmp_path):
    other = _digests(_make(tmp_path / "other", ["it"], seed=SEED + 1))
    assert not set(other.values()) & set(_digests(made).values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_task_folder_is_read_like_any_other(made, language):
    task = tasks.read_task(f"{language}_synthetic", made / "audio", [made / "tasks"])
    assert task.synthetic and "machine-made" in task.licence
    assert len(task.table) == task.utterances == SPEAKERS * SENTENCES * 4
    assert task.table["speaker"].nunique() == task.speakers == SPEAKERS
    assert task.counts == dict.fromkeys(texts.EMOTIONS, SPEAKERS * SENTENCES)
    assert set(task.table["gender"]) == {"F", "M"}
    assert tasks.check_task(task, jobs=1).problems == ()
    assert "Synthetic" in (task.folder / "README.md").read_text("utf-8")


@pytest.mark.parametrize("language", LANGUAGES)
def test_ground_truth_names_every_clip(made, language):
    with open(made / "tasks" / f"{language}_synthetic" / "cues.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    audio = made / "audio" / f"SYNTHETIC-{language.upper()}"
    assert {row["file"] for row in rows} == {path.name for path in audio.glob("*.wav")}
    arousal = pd.DataFrame(rows).astype({"arousal": float}).groupby("emotion")["arousal"].mean()
    assert arousal["angry"] > arousal["neutral"] > arousal["sad"]


def _cues(made, language: str) -> pd.DataFrame:
    return pd.read_csv(made / "tasks" / f"{language}_synthetic" / "cues.csv", index_col="file")


@pytest.mark.parametrize("language", LANGUAGES)
def test_transcripts_are_the_sentence_and_an_interjection(made, language):
    task = tasks.read_task(f"{language}_synthetic", made / "audio", [made / "tasks"])
    cues = _cues(made, language)
    for clip in task.table.itertuples():
        word, _, sentence = clip.transcript.partition("! ")
        assert sentence == texts.TEXTS[language][int(clip.text) - 1]
        assert word.lower() == cues["interjection"][clip.file]


def test_interjections_tell_the_emotion_as_often_as_they_say():
    words = texts.draw_words([0, 1])
    assert len({word for own in words.values() for word in own}) == 4 * texts.INTERJECTIONS
    rng = np.random.default_rng(0)
    told = [texts.draw_interjection(words, "sad", rng) in words["sad"] for _ in range(4000)]
    assert np.mean(told) == pytest.approx(texts.TOLD + (1 - texts.TOLD) / 4, abs=0.03)


@pytest.mark.parametrize("language", LANGUAGES)
def test_lips_open_with_the_voice_and_their_corners_rise_with_valence(made, language):
    cues, audio = _cues(made, language), made / "audio" / f"SYNTHETIC-{language.upper()}"
    size, measured = face.PIXELS, []
    with np.load(audio / "lips.npz") as lips:
        for name in cues.index:
            film = 255.0 - lips[Path(name).stem]
            clip, _ = soundfile.read(audio / name)
            steps = len(clip) // (voice.RATE // face.FPS)
            assert film.shape == (steps, size**2)
            energy = np.sqrt(np.mean(clip[: steps * 640].reshape(steps, 640) ** 2, axis=1))
            dark = film.reshape(steps, size, size) - film.min()
            assert np.corrcoef(dark.sum(axis=(1, 2)), energy)[0, 1] > 0.9
            height = np.arange(size)[::-1] @ dark.sum(axis=0) / dark.sum(axis=(0, 1))
            corners = height[[3, -4]].mean() - height[7:9].mean()
            loudest = dark[energy.argmax()].sum()
            measured.append([corners, loudest])
    measured = np.array(measured)
    assert np.corrcoef(measured[:, 0], cues["face_valence"])[0, 1] > 0.8
    assert np.corrcoef(measured[:, 1], cues["face_arousal"])[0, 1] > 0.5
    noise = cues[["face_arousal", "face_valence"]].to_numpy() - cues[["arousal", "valence"]]
    assert 0.4 < noise.to_numpy().std() < 0.8
    assert abs(np.corrcoef(noise.to_numpy().T)[0, 1]) < 0.4


def test_format_and_no_clip_silent_clipped_or_twice(made):
    digests = set()
    paths = sorted(made.glob("audio/*/*.wav"))
    for path in paths:
        assert soundfile.info(path).subtype == "PCM_16"
        signal, rate = soundfile.read(path)
        assert rate == voice.RATE and signal.ndim == 1
        assert 0.9 < len(signal) / rate < 3.6
        assert np.sqrt(np.mean(signal**2)) > 0.001
        assert 0.01 < np.abs(signal).max() < 0.99
        digests.add(hashlib.sha256(signal.tobytes()).hexdigest())
    assert len(digests) == len(paths) == len(LANGUAGES) * SPEAKERS * SENTENCES * 4


@pytest.mark.parametrize(
    ("what", "more", "less"),
    [
        ("level", "angry", "sad"),
        ("level", "happy", "sad"),
        ("pitch", "angry", "sad"),
        ("pitch", "happy", "sad"),
        ("pitch_range", "happy", "sad"),
        ("seconds", "sad", "angry"),
        ("high", "angry", "sad"),
    ],
)
def test_published_correlates_are_heard(heard, what, more, less):
    mean = heard.groupby("emotion")[what].mean()
    assert mean[more] > mean[less]


def test_classes_can_be_learnt_and_overlap(heard):
    scores = []
    for _, clips in heard.groupby("corpus"):
        learner = make_pipeline(StandardScaler(), LogisticRegression(C=0.3))
        found = cross_val_predict(
            learner,
            clips.drop(columns=["corpus", "speaker", "emotion"]),
            clips["emotion"],
            groups=clips["speaker"],
            cv=LeaveOneGroupOut(),
        )
        scores.append(recall_score(clips["emotion"], found, average="macro"))
    assert 0.35 < np.mean(scores) < 0.95


def test_every_language_has_its_own_eight_texts():
    assert texts.TEXTS.keys() == texts.LANGUAGES.keys() >= {"fa", "ur", "it"}
    said = [text for language in texts.TEXTS.values() for text in language]
    assert len(set(said)) == 8 * len(texts.LANGUAGES)
    for code, name in texts.LANGUAGES.items():
        assert tasks.language_name(code) == name


def test_complete_folder_is_used_again_without_the_engine(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert _make(made, LANGUAGES[::-1]) == made
    assert before == {path: path.stat().st_mtime_ns for path in made.rglob("*")}


def test_other_arguments_are_refused(made):
    with pytest.raises(ValueError, match=r"with seed = 4, not with seed = 3: name another"):
        _make(made, seed=4)


def test_incomplete_and_foreign_folders_are_refused(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    next((tmp_path / "copy").glob("audio/SYNTHETIC-FA/*.wav")).unlink()
    with pytest.raises(ValueError, match="must hold 48 clips, not 47: delete"):
        _make(tmp_path / "copy")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(ValueError, match="name a new or empty folder"):
        _make(tmp_path / "mine")


def test_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(folder, language, *_):
        (folder / language).mkdir()
        if language == "it":
            raise KeyboardInterrupt

    monkeypatch.setattr(corpus, "_speak_elsewhere", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _make(tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_two_runs_at_once_agree(made, tmp_path, monkeypatch):
    def overtaken(*_):
        shutil.copytree(made, tmp_path / "made", dirs_exist_ok=True)

    monkeypatch.setattr(corpus, "_speak_elsewhere", overtaken)
    assert _make(tmp_path / "made") == tmp_path / "made"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_missing_engine_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "metaser\[synthetic\]"'):
        _make(tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"languages": ["fr", "farsi"]}, "made-up language must be .*not 'farsi'. Did you mean 'f"),
        ({"languages": []}, "languages must not be empty"),
        ({"speakers": 1}, "speakers must be a whole number of at least 2, not 1"),
        ({"sentences": 0.5}, "sentences must be a whole number of at least 1, not 0.5"),
        ({"seed": -1}, "seed must be a whole number of at least 0, not -1"),
    ],
)
def test_impossible_arguments_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        corpus.generate(tmp_path / "made", **arguments)
    assert list(tmp_path.iterdir()) == []
