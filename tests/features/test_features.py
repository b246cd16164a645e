import multiprocessing
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from builders import write_noise
from joblib import parallel_config
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

from metaser import audio, features
from metaser.audio import AudioError
from metaser.cli import app
from metaser.features import (
    Features,
    extract,
    extraction,
    list_stores,
    normalise,
    prune,
    store,
    verify,
)
from metaser.features import cache as cache_module
from metaser.frontends import Statistics, Waveform, make_frontend
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
    subtype = "FLOAT" if path.suffix == ".wav" else "PCM_16"
    write_noise(path, np.random.default_rng(seed), samples, subtype=subtype)


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
        np.testing.assert_array_equal(found.values[row][: row + 4], Chunks()(clip))
        assert not found.values[row][row + 4 :].any()


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
    heard = [
        extract(task, Chunks(), tmp_path / name, situation=situation) for name in ("cache", "new")
    ]
    assert len(CALLS) == 24
    assert wide.values.shape[1] == 4
    assert not np.array_equal(heard[0].values, plain.values)
    np.testing.assert_array_equal(heard[0].values, heard[1].values)


def test_a_changed_file_is_extracted_anew(task, tmp_path):
    first = extract(task, Chunks(), tmp_path / "cache")
    _write(task.audio / task.table["file"][2], seed=77, samples=6000)
    second = extract(task, Chunks(), tmp_path / "cache")
    assert len(CALLS) == 7
    changed = (np.asarray(first.values) != second.values).any(axis=(1, 2))
    assert changed.tolist() == [False, False, True, False, False, False]
    assert features.verify(task, tmp_path / "cache") == []


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


def test_files_that_come_and_go_leave_the_others_as_they_are(task, tmp_path):
    few = replace(task, table=task.table[:4])
    extract(few, Chunks(), tmp_path / "cache")
    extract(task, Chunks(), tmp_path / "cache")
    assert len(CALLS) == 6
    (task.audio / task.table["file"][0]).unlink()
    rest = extract(replace(task, table=task.table[1:]), Chunks(), tmp_path / "cache")
    assert len(CALLS) == 6 and rest.lengths.tolist() == [5, 6, 7, 8, 9]
    with pytest.raises(FileNotFoundError, match=task.table["file"][0]):
        extract(task, Chunks(), tmp_path / "cache")


def test_files_that_have_not_changed_are_not_decoded(task, tmp_path, monkeypatch):
    decode, decoded = audio.decode, []
    monkeypatch.setattr(
        audio, "decode", lambda path, *rest: decoded.append(path) or decode(path, *rest)
    )
    for _ in range(2):
        extract(task, Chunks(), tmp_path / "cache")
        assert len(decoded) == 6
    copy = replace(task, audio=tmp_path / "copy")
    shutil.copytree(task.audio, copy.audio)
    extract(copy, Chunks(), tmp_path / "cache")
    assert len(decoded) == 12 and len(CALLS) == 6
    extract(task, Chunks(), tmp_path / "cache")
    assert len(decoded) == 12


def test_verifying_finds_what_size_and_time_do_not_tell(task, tmp_path):
    first = extract(task, Chunks(), tmp_path / "cache")
    name = task.table["file"][2]
    before = (task.audio / name).stat()
    _write(task.audio / name, seed=77, samples=6000)
    os.utime(task.audio / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (task.audio / name).stat().st_size == before.st_size
    assert (extract(task, Chunks(), tmp_path / "cache").hashes == first.hashes).all()
    assert verify(task, tmp_path / "cache") == [name]
    assert verify(task, tmp_path / "cache") == []
    second = extract(task, Chunks(), tmp_path / "cache")
    assert len(CALLS) == 7
    assert (first.hashes != second.hashes).nonzero()[0].tolist() == [2]
    assert not np.array_equal(first.values[2], second.values[2])


def test_an_interrupted_extraction_goes_on_where_it_was(task, tmp_path, monkeypatch):
    call, cache = Chunks.__call__, tmp_path / "cache"

    def interrupted(self, waveform):
        if len(CALLS) == 5:
            raise KeyboardInterrupt
        return call(self, waveform)

    monkeypatch.setattr(extraction, "CHUNK", 2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Chunks, "__call__", interrupted)
        extract(task, Chunks(), cache)
    assert [found.clips for found in list_stores(cache)] == [4]
    found = extract(task, Chunks(), cache)
    assert len(CALLS) == 5 + 2
    np.testing.assert_array_equal(found.values, extract(task, Chunks(), tmp_path / "new").values)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_an_interrupted_write_leaves_no_broken_store(task, tmp_path, monkeypatch, error, where):
    cache = tmp_path / "cache"
    first = extract(replace(task, table=task.table[:2]), Chunks(), cache)

    def interrupted(*_):
        raise error

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, OSError)):
        patch.setattr(store.os, where, interrupted)
        extract(task, Chunks(), cache)
    again = extract(replace(task, table=task.table[:2]), Chunks(), cache)
    np.testing.assert_array_equal(first.values, again.values)
    assert [found.clips for found in list_stores(cache)] == [2]
    assert not [path for path in _files(cache) if path.suffix == ".part"]
    found = extract(task, Chunks(), cache)
    assert (found.hashes[:2] == first.hashes).all()
    np.testing.assert_array_equal(found.values, extract(task, Chunks(), tmp_path / "new").values)


def _fill(task, cache: Path, calls) -> None:
    """Extract slowly, in small chunks, counting the calls; for a process of its own."""
    call = Chunks.__call__

    def slowly(self, waveform):
        with calls.get_lock():
            calls.value += 1
        time.sleep(0.01)
        return call(self, waveform)

    Chunks.__call__ = slowly
    extraction.CHUNK, extraction.WRITE_SECONDS = 2, 0
    found = extract(task, Chunks(width=20), cache)
    for name, values in zip(task.table["file"], np.asarray(found.values)):
        clip = audio.read(task.audio / name).reshape(-1, 20)[:, :4]
        np.testing.assert_array_equal(values[: len(clip)], clip)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs an operating system that forks")
def test_processes_fill_one_store_at_once_and_a_killed_one_harms_nothing(make_task, tmp_path):
    task = replace(make_task(speakers=2, clips=4), audio=tmp_path)
    for row, name in enumerate(task.table["file"]):
        _write(tmp_path / name, row, 100)
    context = multiprocessing.get_context("fork")
    calls = [context.Value("i", 0) for _ in range(3)]
    killed, *others = (
        context.Process(target=_fill, args=(task, tmp_path / "cache", count)) for count in calls
    )
    killed.start()
    while calls[0].value < 7:
        time.sleep(0.001)
    killed.kill()
    killed.join()
    for process in others:
        process.start()
    for process in others:
        process.join(timeout=60)
    assert [process.exitcode for process in others] == [0, 0]
    assert all(count.value < len(task.table) for count in calls)  # what was written is used
    (found,) = list_stores(tmp_path / "cache")
    assert found.clips == len(task.table)
    size = (found.folder / "values.f32").stat().st_size
    assert size == len(task.table) * 5 * 4 * 4  # clips, frames, channels, bytes


def test_opening_a_large_store_reads_none_of_its_values(tmp_path):
    folder = tmp_path / "it_made" / "Made"
    clips = {f"{row:032x}": np.full((1 + row % 3, 4), row, np.float32) for row in range(10_000)}
    store.append(folder, clips, {"task": "it_made"})
    opened = store.read(folder, clips)
    assert isinstance(opened.frames, np.memmap)
    assert opened.shape == (10_000, 3, 4) and len(opened) == 10_000
    np.testing.assert_array_equal(opened[[7, 3]][:, 0, 0], [7, 3])
    assert opened[4].shape == (3, 4) and opened[4][:2].all() and not opened[4][2:].any()
    assert np.asarray(opened)[[5]].tolist() == opened[[5]].tolist()
    os.truncate(folder / "values.f32", 100)
    with pytest.raises(ValueError, match="must have at least .* not 100; it is damaged: delete"):
        store.read(folder, clips)


def test_a_store_tells_what_does_not_fit(tmp_path):
    store.append(tmp_path, {"a": np.zeros((0, 4), np.float32)}, {})
    assert store.read(tmp_path, ["a"])[:].shape == (1, 0, 4)
    with pytest.raises(ValueError, match="must have 4 channels per frame, not 5"):
        store.append(tmp_path, {"b": np.zeros((2, 5), np.float32)}, {})
    with pytest.raises(FileNotFoundError, match="must hold clip 'b'.*run the same command again"):
        store.read(tmp_path, ["a", "b"])
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(ValueError, match="index.json is damaged .*: delete"):
        store.read(tmp_path, ["a"])


def test_stores_are_listed_and_pruned(task, tmp_path, monkeypatch):
    cache, situation = tmp_path / "cache", draw_situation(np.random.default_rng(0))
    assert list_stores(cache) == [] and prune(cache) == []
    extract(task, Chunks(), cache)
    statistics = make_frontend({"name": "statistics"})
    extract(task, statistics, cache)
    extract(task, statistics, cache, situation=situation)
    found = {(one.frontend, bool(one.situation)): one for one in list_stores(cache)}
    assert len(found) == 3 and {one.clips for one in found.values()} == {6}
    assert found[repr(statistics), True].current and not found[repr(Chunks()), False].current
    values = found[repr(statistics), False].folder / "values.f32"
    assert found[repr(statistics), False].size > values.stat().st_size > 0
    assert list_stores(cache, ["ur_other"]) == []
    assert [one.frontend for one in prune(cache)] == [repr(Chunks())]  # unknown to FRONTENDS
    assert len(list_stores(cache)) == 2
    monkeypatch.setattr(cache_module, "version", lambda name: "another")
    cache_module.code_digest.cache_clear()
    assert not any(one.current for one in list_stores(cache))
    cache_module.code_digest.cache_clear()
    monkeypatch.undo()
    assert prune(cache, ["..", ""]) == [] and task.audio.exists()
    assert len(prune(cache, [task.name])) == 2
    assert [path.name for path in _files(cache)] == ["lock"]


def test_the_command_extracts_verifies_lists_and_prunes(spoken, tmp_path):
    def call(*arguments):
        return CliRunner().invoke(app, ["features", *arguments, "--cache", str(tmp_path)])

    where = ["--data", str(spoken / "audio"), "--tasks", str(spoken / "tasks")]
    name = next(path.name for path in sorted((spoken / "tasks").iterdir()) if path.is_dir())
    first = call(name, *where, "--frontend", "log_mel", "--set", "engine=torch")
    assert first.exit_code == 0, first.output
    assert f"{name}: " in first.output and "64 channels" in first.output
    second = call(name, *where, "--frontend", "log_mel", "--set", "engine=torch", "--verify")
    assert f"{name}: 0 clips are not what they were" in second.output
    listed = call("--list")
    assert "LogMel" in listed.output and "outdated" not in listed.output
    assert "0 stores removed" in call("--prune").output
    assert "1 stores removed" in call("--prune", name).output
    assert "0 stores, 0.0 MB" in call("--list").output
    assert call().exit_code == 2
    refused = call(name, *where, "--set", "engine=tensorflow", "--frontend", "mfcc")
    assert refused.exit_code == 2 and "'librosa', 'torch'" in refused.output


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
    short = found.batch(np.array([0, 1]), np.array([2, 0]), classes).modalities["audio"]
    assert short.values.shape == (2, 5, 4) and short.mask.sum(dim=1).tolist() == [4, 5]
    np.testing.assert_array_equal(short.values.numpy(), found.values[[0, 1]][:, :5])
    assert batch.targets.tolist() == [2, 0] and batch.classes.tolist() == classes.tolist()


def values_of(found: Features) -> np.ndarray:
    return np.asarray(found.values)


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
        np.testing.assert_allclose(values_of(done)[own][real[own]], expected, atol=1e-4)
    assert not values_of(done)[~real].any()
    np.testing.assert_array_equal(raw.values, before)
    assert values_of(done).dtype == np.float32 and (done.lengths == lengths).all()


def test_normalising_tames_outliers_and_constant_channels(make_task):
    task = make_task(speakers=2, clips=200)
    count = len(task.table)
    values = np.random.default_rng(0).standard_normal((count, 1, 3)).astype(np.float32)
    values[..., 1] = -100.1
    values[7, 0, 2] = 1e4
    raw = Features(values, np.ones(count, int), np.arange(count))
    done = values_of(normalise(raw, task, "corpus"))
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


def test_a_trained_encoder_says_once_what_rates_it_was_given(task, tmp_path, caplog):
    class Encoder(Chunks):
        TRAINED = True

    extract(task, Chunks(rate=8000), tmp_path / "cache")
    extract(task, Encoder(rate=16000), tmp_path / "cache")
    assert not caplog.records
    extract(task, Encoder(rate=8000), tmp_path / "cache")
    extract(task, Encoder(rate=8000), tmp_path / "cache")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{task.name}: audio of 16000 Hz was resampled to 8000 Hz" in caplog.text


def test_long_clips_go_alone_and_give_the_same(task, tmp_path, monkeypatch):
    together = extract(task, Chunks(), tmp_path / "cache")
    monkeypatch.setattr("metaser.features.hear.PORTION_SECONDS", 0.3)
    alone = extract(task, Chunks(), tmp_path / "other")
    assert np.array_equal(together.values, alone.values) and len(CALLS) == 12


def test_arguments_of_a_front_end_have_their_types():
    assert make_frontend({"name": "waveform", "seconds": 10}) == Waveform(seconds=10.0)
    assert repr(make_frontend({"name": "waveform", "seconds": 10})) == repr(Waveform(seconds=10.0))
    for wrong in ({"rate": "abc"}, {"frames": 1.5}, {"engine": 3}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} of front end 'log_mel' must be"):
            make_frontend({"name": "log_mel", **wrong})
    with pytest.raises(ValueError, match="log_mel.*must be .*not 'lenght'"):
        make_frontend({"name": "log_mel", "lenght": 3})


def test_joined_front_ends_stand_side_by_side(task, tmp_path):
    joined = make_frontend({"name": "joined", "parts": ["statistics", {"name": "statistics"}]})
    one = np.asarray(extract(task, Statistics(), tmp_path / "cache").values)
    both = extract(task, joined, tmp_path / "cache").values
    assert np.array_equal(both, np.concatenate([one, one], axis=2))
    clip = np.random.default_rng(0).normal(size=8000).astype(np.float32)
    assert np.array_equal(joined(clip), np.concatenate([Statistics()(clip)] * 2, axis=1))
    assert len(list_stores(tmp_path / "cache")) == 1
    with pytest.raises(ValueError, match="not of 16000, 22050: give"):
        make_frontend({"name": "joined", "parts": ["statistics", "mfcc"]})
    with pytest.raises(ValueError, match="one frame per clip, but LogMel gives 51"):
        make_frontend({"name": "joined", "parts": ["log_mel", "statistics"]})(clip)


def test_clips_without_frames_are_refused_by_their_rows():
    lengths = np.array([2, 0, 1, 0])
    features = Features(np.zeros((4, 2, 3), np.float32), lengths, np.array(["x"] * 4))
    classes = np.ones(4, dtype=bool)
    with pytest.raises(ValueError, match=r"those in rows \[1, 3\] of the task's table have 0"):
        features.batch(np.array([3, 0, 1, 3]), np.arange(4), classes)
    assert len(features.batch(np.array([2, 0]), np.arange(2), classes)) == 2
