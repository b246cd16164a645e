from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from joblib import parallel_config
from sklearn.preprocessing import StandardScaler

from metaser import features
from metaser.audio import AudioError
from metaser.features import Features, extract, make_frontend, normalise
from metaser.recording import draw_situation

CALLS: list[int] = []


@dataclass(frozen=True)
class Chunks:
    """Frames of ``width`` samples, and a note of every call."""

    rate: int = 16000
    width: int = 1000
    broken: bool = False

    def __call__(self, waveform):
        CALLS.append(len(waveform))
        frames = waveform[: len(waveform) // self.width * self.width].reshape(-1, self.width)
        return np.log(frames[:, :4] * 0) if self.broken else frames[:, :4].astype(np.float32)


def _write(path: Path, seed: int, samples: int = 4000) -> None:
    noise = np.random.default_rng(seed).standard_normal(samples) * 0.1
    soundfile.write(path, noise, 16000, subtype="FLOAT" if path.suffix == ".wav" else "PCM_16")


@pytest.fixture
def task(tmp_path, make_task):
    """Six clips of 4 to 9 frames by two speakers."""
    CALLS.clear()
    folder = tmp_path / "audio"
    folder.mkdir()
    made = make_task(speakers=2, clips=1, classes=("angry", "happy", "sad"))
    for row, name in enumerate(made.table["file"]):
        _write(folder / name, row, 4000 + 1000 * row)
    return replace(made, audio=folder)


def _files(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def test_features_are_the_front_end_s_in_the_order_of_the_table(task, tmp_path):
    found = extract(task, Chunks(), tmp_path / "cache")
    assert found.values.shape == (6, 9, 4) and found.lengths.tolist() == [4, 5, 6, 7, 8, 9]
    for row, name in enumerate(task.table["file"]):
        clip, _ = soundfile.read(task.audio / name, dtype="float32")
        np.testing.assert_array_equal(found.values[row, : row + 4], Chunks()(clip))
        assert not found.values[row, row + 4 :].any()


def test_what_was_extracted_once_is_read_from_the_cache(task, tmp_path):
    first = extract(task, Chunks(), tmp_path / "cache")
    assert len(CALLS) == 6
    second = extract(task, Chunks(), tmp_path / "cache")
    assert len(CALLS) == 6
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_array_equal(first.lengths, second.lengths)
    np.testing.assert_array_equal(first.hashes, second.hashes)


def test_other_arguments_and_situations_are_extracted_apart(task, tmp_path):
    plain = extract(task, Chunks(), tmp_path / "cache")
    wide = extract(task, Chunks(width=2000), tmp_path / "cache")
    situation = draw_situation(np.random.default_rng(0))
    heard = [extract(task, Chunks(), tmp_path / name, situation) for name in ("cache", "new")]
    assert len(CALLS) == 24
    assert wide.values.shape[1] == 4
    assert heard[0].values.shape != plain.values.shape or (heard[0].values != plain.values).any()
    np.testing.assert_array_equal(heard[0].values, heard[1].values)


def test_a_changed_file_is_extracted_anew(task, tmp_path):
    first = extract(task, Chunks(), tmp_path / "cache")
    _write(task.audio / task.table["file"][2], seed=77, samples=6000)
    second = extract(task, Chunks(), tmp_path / "cache")
    assert len(CALLS) == 7
    changed = (first.values != second.values).any(axis=(1, 2))
    assert changed.tolist() == [False, False, True, False, False, False]


def test_the_same_audio_under_another_name_and_container_is_extracted_once(task, tmp_path):
    name = task.table["file"][0]
    samples, rate = soundfile.read(task.audio / name, dtype="float32")
    samples = (samples * 2**15).astype(np.int16)
    for suffix in (".wav", ".flac"):
        path = (task.audio / name).with_suffix(suffix)
        soundfile.write(path, samples, rate, subtype="PCM_16")
    other = pd.DataFrame({"file": [name, str(Path(name).with_suffix(".flac"))]})
    found = extract(replace(task, table=other), Chunks(), tmp_path / "cache")
    assert len(CALLS) == 1 and found.hashes[0] == found.hashes[1]
    np.testing.assert_array_equal(found.values[0], found.values[1])


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_no_broken_cache(task, tmp_path, monkeypatch, error):
    save, cache = np.save, tmp_path / "cache"

    def interrupted(file, values):
        if len(CALLS) == 3:
            file.write(b"half of it")
            raise error
        save(file, values)

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, OSError)):
        patch.setattr(features.np, "save", interrupted)
        extract(task, Chunks(), cache)
    assert len(_files(cache)) == 2
    found = extract(task, Chunks(), cache)
    assert len(CALLS) == 3 + 4
    np.testing.assert_array_equal(found.values, extract(task, Chunks(), tmp_path / "new").values)


def test_an_unreadable_clip_is_named(task, tmp_path):
    name = task.table["file"][3]
    (task.audio / name).write_bytes(b"RIFF, and then nothing")
    with pytest.raises(AudioError, match=name):
        extract(task, Chunks(), tmp_path / "cache")


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_features_that_are_not_finite_are_refused_and_not_kept(task, tmp_path):
    with pytest.raises(AudioError, match=f"{task.table['file'][0]}.*not finite"):
        extract(task, Chunks(broken=True), tmp_path / "cache")
    assert not _files(tmp_path / "cache")


def test_absent_audio_is_refused_with_the_remedy(make_task):
    task = replace(make_task(), table=None)
    with pytest.raises(FileNotFoundError, match="it_made.*https://example.org.*--data"):
        extract(task, Chunks())


def test_working_in_parallel_does_not_change_the_result(task, tmp_path):
    with parallel_config(backend="threading"):
        one, two = (extract(task, Chunks(), tmp_path / str(jobs), jobs=jobs) for jobs in (1, 2))
    np.testing.assert_array_equal(one.values, two.values)
    assert (one.hashes == two.hashes).all()


def test_batches_mask_what_is_padded(task, tmp_path):
    found = extract(task, Chunks(), tmp_path / "cache")
    classes = np.array([True, False, True])
    batch = found.batch(np.array([5, 0]), np.array([2, 0]), classes)
    audio = batch.modalities["audio"]
    assert audio.mask.sum(dim=1).tolist() == [9, 4] and audio.mask[1, :4].all()
    np.testing.assert_array_equal(audio.values.numpy(), found.values[[5, 0]])
    assert batch.targets.tolist() == [2, 0] and batch.classes.tolist() == classes.tolist()


@pytest.mark.parametrize("how", ["corpus", "speaker"])
def test_normalising_standardises_the_real_frames(make_task, how):
    task = make_task(speakers=3, clips=2)
    rng = np.random.default_rng(1)
    lengths = rng.integers(2, 7, len(task.table))
    real = np.arange(6) < lengths[:, None]
    shift = 10 * task.table["unit"].to_numpy()[:, None, None]
    values = (rng.uniform(-1, 1, (len(lengths), 6, 5)) * 3 + shift - 40) * real[..., None]
    raw = Features(values.astype(np.float32), lengths, np.array(["x"] * len(lengths)))
    before = raw.values.copy()
    done = normalise(raw, task, how)
    groups = task.table["speaker"] if how == "speaker" else np.zeros(len(lengths))
    for group in np.unique(groups):
        own = (groups == group).to_numpy() if how == "speaker" else groups == group
        expected = StandardScaler().fit_transform(values[own][real[own]])
        np.testing.assert_allclose(done.values[own][real[own]], expected, atol=1e-4)
    assert not done.values[~real].any()
    np.testing.assert_array_equal(raw.values, before)
    assert done.values.dtype == np.float32 and (done.lengths == lengths).all()


def test_normalising_tames_outliers_and_constant_channels(make_task):
    task = make_task(speakers=2, clips=200)
    count = len(task.table)
    values = np.random.default_rng(0).standard_normal((count, 1, 3)).astype(np.float32)
    values[..., 1] = -100.1
    values[7, 0, 2] = 1e4
    done = normalise(Features(values, np.ones(count, int), np.arange(count)), task, "corpus").values
    assert done[7, 0, 2] == features.OUTLIER
    np.testing.assert_allclose(done[..., 1], 0, atol=1e-3)


def test_not_normalising_changes_nothing_and_other_words_are_refused(make_task, plant):
    task = make_task()
    raw = plant(task)
    np.testing.assert_array_equal(normalise(raw, task, "none").values, raw.values)
    with pytest.raises(ValueError, match="'none', 'corpus', 'speaker'.*not 'corpora'"):
        normalise(raw, task, "corpora")


def test_front_ends_are_made_by_name():
    from metaser.frontends import MFCC

    arguments = {"name": "mfcc", "frames": 50}
    assert make_frontend(arguments) == MFCC(frames=50)
    assert arguments == {"name": "mfcc", "frames": 50}
    with pytest.raises(ValueError, match="mfcc.*not 'mfc'"):
        make_frontend({"name": "mfc"})
    with pytest.raises(ValueError, match="not None"):
        make_frontend({"frames": 50})
    with pytest.raises(ValueError, match="mfcc.*farmes"):
        make_frontend({"name": "mfcc", "farmes": 50})


def test_the_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("METASER_CACHE", str(tmp_path))
    assert features.default_cache() == tmp_path
    monkeypatch.delenv("METASER_CACHE")
    assert features.default_cache().name == "metaser"
