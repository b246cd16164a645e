"""Text and video, from the task folder to the report."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from builders import write_noise
from rich.console import Console
from sklearn.feature_extraction.text import HashingVectorizer

from metaser import benchmark, features, tasks, video
from metaser.backbones import BACKBONES
from metaser.batch import Padded, stack
from metaser.episodes import TaskSampler, tensors
from metaser.features import Features, extract, lacks, list_stores, normalise, prune
from metaser.files import Places
from metaser.frontends import HashedNgrams, VideoFrames, make_frontend
from metaser.methods import METHODS
from metaser.model import Model
from metaser.protocol import Protocol
from metaser.tasks import modalities
from metaser.training.meta_batch import MetaBatch

TOML = """
language = "sw"
corpus = "Test"
audio = "test"
version = 1
speakers = 2
utterances = 8
licence = "CC0"
homepage = "https://example.org"
reference = "none"

[files]
pattern = '(?P<speaker>s\\d)_(?P<emotion>[a-z])_(?P<take>\\d)'

[emotion]
a = "angry"
h = "happy"
n = "neutral"
t = "sad"

[[transcripts]]
file = "published.tsv"
separator = "\\t"
columns = { file = "clip", text = "words" }

[[transcripts]]
file = "copy.csv"

[vectors.video]
file = "faces.npz"

[video]
folder = "../films"
"""
NAMES = [f"s{speaker}_{code}_1" for speaker in "12" for code in "ahnt"]


@pytest.fixture
def corpus(tmp_path):
    """Task folder and data root of eight short clips."""
    folder = tmp_path / "tasks" / "sw_test"
    folder.mkdir(parents=True)
    (folder / "task.toml").write_text(TOML)
    (folder / "README.md").write_text("# Test\n")
    place = tmp_path / "data" / "test"
    place.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in NAMES:
        write_noise(place / f"{name}.wav", rng)
    return folder, tmp_path / "data"


def _film(path: Path, levels, rate: int = 25, size: int = 64) -> None:
    """Write a video whose left half is black and whose right half has a level a picture."""
    av = pytest.importorskip("av", reason="pip install 'metaser[video]'")
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for level in levels:
            picture = np.full((size, size, 3), level, np.uint8)
            picture[:, : size // 2] = 0
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())


def _check(corpus, **options):
    return tasks.check_task(tasks.read_task(corpus[0], corpus[1], strict=False), jobs=1, **options)


def test_the_first_table_that_is_present_gives_the_transcripts(corpus):
    place = corpus[1] / "test"
    assert "transcript" in tasks.read_task(*corpus).table  # and empty: no table is there
    (place / "copy.csv").write_text('file,text\ns1_a_1,copied\ns1_h_1.wav,"two, words"\n')
    assert list(tasks.read_task(*corpus).table["transcript"][:3]) == ["copied", "two, words", ""]
    (place / "published.tsv").write_text(
        "clip\twords\tmore\nwav/s1_a_1.wav\tno\t\ns1_a_1\t yes \t\n"
    )
    assert list(tasks.read_task(*corpus).table["transcript"][:2]) == ["yes", ""]


def test_the_check_tells_what_is_absent_and_what_belongs_to_no_clip(corpus):
    notes = "\n".join(_check(corpus).notes)
    assert "found no table published.tsv or copy.csv" in notes
    assert "no video vectors: found no file faces.npz" in notes and "found no *.mp4" in notes
    place = corpus[1] / "test"
    (place / "copy.csv").write_text("file,text\ns1_a_1,a\ngone,b\n")
    np.savez(place / "faces.npz", s1_a_1=np.ones(3), s9_a_1=np.ones(3))
    (corpus[1] / "films").mkdir()
    (corpus[1] / "films" / "other.mp4").touch()
    problems = _check(corpus).problems
    for where, name in (("copy.csv", "gone"), ("faces.npz", "s9_a_1"), ("video folder", "other")):
        assert any(where in text and text.endswith(f"(1): {name}") for text in problems)
    assert not _check(corpus, subset=True).problems
    assert "text: 1 of 8 clips" in _check(corpus).facts


@pytest.mark.parametrize(
    "toml, words",
    [
        (TOML.replace("[vectors.video]", "[vectors.vidoe]"), "'vidoe'. Did you mean 'video'?"),
        (TOML.replace("faces.npz", "faces.pt"), ".csv or .npz file, not 'faces.pt'"),
        (TOML.replace('text = "words"', 'word = "words"'), "file = …, text = …"),
        (TOML.replace("<take>", "<video>"), "gives 'video', and so does a section"),
        (TOML.replace("folder = ", "foldr = "), "Did you mean 'folder'?"),
    ],
)
def test_a_wrong_section_says_what_is_wrong(corpus, toml, words):
    (corpus[0] / "task.toml").write_text(toml)
    with pytest.raises(ValueError) as caught:
        tasks.read_task(*corpus)
    assert words in str(caught.value)


def test_two_transcripts_of_one_clip_are_refused(corpus):
    (corpus[1] / "test" / "copy.csv").write_text("file,text\ns1_a_1,yes\ns1_a_1,no\n")
    with pytest.raises(ValueError, match="gives 's1_a_1' two transcripts, 'yes' and 'no'"):
        tasks.read_task(*corpus)


def test_vectors_are_read_from_both_kinds_of_file(tmp_path):
    np.savez(tmp_path / "v.npz", a=np.array([1, 2]), b=np.array([[3, 4], [5, 6]]), c=np.array([]))
    (tmp_path / "v.csv").write_text("file,x,y\nb,3,4\na,1,2\nb,5,6\n")
    for name in ("v.npz", "v.csv"):
        found = modalities.read_vectors(tmp_path / name)
        assert found["a"].tolist() == [[1, 2]] and found["b"].tolist() == [[3, 4], [5, 6]]
        assert found["a"].dtype == np.float32
    assert modalities.read_vectors(tmp_path / "v.npz")["c"].shape == (0, 2)


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"a": np.ones(3), "b": np.ones((2, 4))}, "a has 3 channels, b has 4"),
        ({"a": np.array([1, np.nan])}, "a must hold finite numbers, not NaN"),
        ({"a": np.array(["x"])}, "a must hold numbers"),
        ({"a": np.ones((1, 2, 3))}, r"a must have .*, not \(1, 2, 3\)"),
        ({}, "holds no vectors"),
    ],
)
def test_wrong_vectors_are_named_with_their_clip(tmp_path, arrays, words):
    np.savez(tmp_path / "v.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        modalities.read_vectors(tmp_path / "v.npz")
    (tmp_path / "v.npz").write_bytes(b"PK\3\4 not an archive")
    with pytest.raises(ValueError, match="v.npz cannot be read"):
        modalities.read_vectors(tmp_path / "v.npz")


@pytest.mark.parametrize("per", ["word", "clip"])
def test_hashed_ngrams_are_those_of_scikit_learn(per):
    text = "Ünder  the ﬁne sea"
    found = HashedNgrams(channels=64, per=per)(text)
    oracle = HashingVectorizer(analyzer="char_wb", ngram_range=(1, 3), n_features=64)
    parts = ["ünder", "the", "fine", "sea"] if per == "word" else ["ünder the fine sea"]
    np.testing.assert_allclose(found, oracle.transform(parts).toarray(), atol=1e-6)
    assert HashedNgrams(channels=64)(" \n").shape == (0, 64)


def test_pictures_are_those_on_show_at_the_wanted_times(tmp_path):
    levels = [20 * k for k in range(12)]
    _film(tmp_path / "film.mp4", levels)
    for rate, seconds, shown in (
        (25, 10, range(12)),
        (10, 10, [0, 2, 5, 7, 10]),
        (50, 0.2, [0, 0, 1, 1, 2, 2, 3, 3, 4]),
    ):
        frames = VideoFrames(fps=rate, size=4, seconds=seconds)(tmp_path / "film.mp4")
        assert frames.dtype == np.float32 and frames.shape == (len(shown), 16)
        pictures = frames.reshape(-1, 4, 4) * 255
        expected = [levels[k] for k in shown]
        np.testing.assert_allclose(pictures[:, :, 3], np.tile(expected, (4, 1)).T, atol=4)
        np.testing.assert_allclose(pictures[:, :, 0], 0, atol=4)


def test_a_video_that_cannot_be_read_is_named(corpus):
    pytest.importorskip("av", reason="pip install 'metaser[video]'")
    (corpus[1] / "films").mkdir()
    path = corpus[1] / "films" / "s1_a_1.mp4"
    path.write_bytes(b"no film")
    task = tasks.read_task(*corpus)
    with pytest.raises(video.VideoError, match="s1_a_1.mp4: cannot be decoded"):
        extract(task, VideoFrames(), corpus[1] / "cache")
    soundfile.write(path.with_suffix(".wav"), np.zeros(800), 16000)
    with pytest.raises(video.VideoError, match="no video stream"):
        video.read(path.with_suffix(".wav"), 5, 4, 1)


def _full(corpus):
    """The corpus with text of four clips, vectors of three, films of two."""
    place, films = corpus[1] / "test", corpus[1] / "films"
    rows = "".join(f"{name},a few words {row}\n" for row, name in enumerate(NAMES[:4]))
    (place / "copy.csv").write_text("file,text\n" + rows)
    np.savez(place / "faces.npz", **{name: np.full((2, 3), 7.0) for name in NAMES[2:5]})
    films.mkdir()
    for name in NAMES[:2]:
        _film(films / f"{name}.mp4", [10, 200, 30])
    return tasks.read_task(*corpus)


def test_features_of_text_and_video_are_stored_and_leave_gaps(corpus, monkeypatch):
    task, cache = _full(corpus), corpus[1] / "cache"
    text = extract(task, HashedNgrams(channels=8), cache)
    film = extract(task, VideoFrames(fps=25, size=2), cache)
    face = extract(task, make_frontend({"name": "vectors"}, "video"), cache)
    assert text.lengths.tolist() == [4] * 4 + [0] * 4 and text.modality == "text"
    assert film.lengths.tolist() == [3, 3] + [0] * 6 and film.modality == "video"
    assert face.lengths.tolist() == [0, 0, 2, 2, 2, 0, 0, 0]
    np.testing.assert_allclose(text.values[[0]][0], HashedNgrams(channels=8)("a few words 0"))
    assert (face.values[[2]] == 7).all() and not face.values[[5]].any()
    assert (text.hashes == "").tolist() == [False] * 4 + [True] * 4
    for kind in (HashedNgrams, VideoFrames):
        monkeypatch.setattr(kind, "__call__", None)  # nothing is computed again
    again = extract(task, HashedNgrams(channels=8), cache), extract(task, VideoFrames(25, 2), cache)
    for one, other in zip(again, (text, film)):
        np.testing.assert_array_equal(one.values, other.values)
    assert [store.current for store in list_stores(cache)] == [True, True]
    assert prune(cache) == []


def test_what_a_task_does_not_give_is_told(corpus, tmp_path):
    task = tasks.read_task(*corpus)
    assert "[[transcripts]]" in lacks(task, HashedNgrams())
    assert "[vectors.video]" in lacks(task, make_frontend({"name": "vectors"}, "video"))
    assert "[video]" in lacks(task, VideoFrames())
    with pytest.raises(ValueError, match="sw_test must have text for HashedNgrams"):
        extract(task, HashedNgrams(), tmp_path)
    with pytest.raises(ValueError, match="front end of text.*'video_frames', which is.*of video"):
        make_frontend({"name": "video_frames"}, "text")
    with pytest.raises(ValueError, match="modality must be one of"):
        make_frontend({"name": "vectors"}, "smell")


def test_audio_contents_are_the_hashes_of_features(corpus, tmp_path):
    task = tasks.read_task(*corpus)
    frontend = make_frontend({"name": "log_mel"})
    found = features.audio_contents(task, tmp_path / "a").tolist()
    assert found == extract(task, frontend, tmp_path / "b").hashes.tolist()


@pytest.fixture
def several(make_task, plant):
    """A task whose every second clip lacks text, and whose last speaker was never filmed."""
    task = make_task()
    audio = plant(task)

    def part(modality, channels, has, seed):
        found = plant(task, channels=channels, frames=4, seed=seed)
        lengths = np.where(has, found.lengths, 0)
        values = found.values * (np.arange(4) < lengths[:, None])[..., None]
        return Features(values, lengths, found.hashes, modality)

    rows = np.arange(len(task.table))
    filmed = (task.table["speaker"] != "s5").to_numpy()
    beside = part("text", 5, rows % 2 == 0, 1), part("video", 7, filmed, 2)
    return task, normalise(replace(audio, beside=beside), task, "speaker")


def test_normalising_goes_by_modality_and_heeds_gaps(several):
    _, found = several
    for part in found.modalities.values():
        values = np.asarray(part.values)
        assert np.isfinite(values).all()
        real = np.arange(values.shape[1]) < part.lengths[:, None]
        assert not values[~real].any()
        assert np.abs(values[real].mean(axis=0)).max() < 0.1
    assert list(found.modalities) == ["audio", "text", "video"]


def test_a_batch_of_clips_without_a_modality_is_masked(several):
    task, found = several
    rows = np.flatnonzero(task.table["speaker"] == "s5")[:3]
    batch = found.batch(rows, np.arange(3), np.ones(4, bool))
    assert batch.modalities["video"].values.shape == (3, 1, 7)
    assert not batch.modalities["video"].mask.any() and batch.modalities["audio"].mask.any()
    assert not Padded(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)).mean().any()


@pytest.mark.parametrize("name", ["mlp", "modality_hopping"])
@pytest.mark.parametrize("chosen", [("audio", "text", "video"), ("text",), ("text", "video")])
def test_methods_learn_from_clips_with_gaps(several, name, chosen):
    task, found = several
    parts = [part for modality, part in found.modalities.items() if modality in chosen]
    found = replace(parts[0], beside=tuple(parts[1:]))
    sampler = TaskSampler(task, ("angry", "happy", "neutral", "sad"), 2, 2)
    episodes = [tensors(sampler.episode(index), found) for index in range(2)]
    channels = {key: part.values.shape[2] for key, part in found.modalities.items()}
    own = {"hidden": (8,)} if name == "mlp" else {"hidden": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(BACKBONES[name](channels, **own), 4)
    method = METHODS["maml"](model=model, inner_steps=2)
    losses = [method.loss(episode) for episode in episodes]
    torch.testing.assert_close(method.loss(stack(episodes)), torch.stack(losses))
    MetaBatch(method).backward(episodes)
    assert all(value.grad.isfinite().all() for value in method.parameters())
    scores = method.adapt(episodes[0].support)(episodes[0].query.modalities)
    assert scores.isfinite().all()
    with torch.no_grad():  # every modality counts
        for modality in chosen:
            changed = dict(episodes[0].query.modalities)
            changed[modality] = changed[modality].map(lambda x: x.flip(0))
            assert not torch.equal(
                method.model(changed), method.model(episodes[0].query.modalities)
            )


def test_a_perceptron_joins_the_means():
    clips = {
        key: Padded(
            torch.randn(3, 2, width), torch.tensor([[True, True], [True, False], [False] * 2])
        )
        for key, width in (("audio", 2), ("video", 3))
    }
    net = BACKBONES["mlp"]({"video": 3, "audio": 2}, hidden=(4,))
    joined = torch.cat([clips["audio"].mean(), clips["video"].mean()], dim=1)
    torch.testing.assert_close(net(**clips), net.layers(joined))
    with pytest.raises(ValueError, match="must get audio and video, .*not audio"):
        net(audio=clips["audio"])
    with pytest.raises(ValueError, match="channels must name some of"):
        BACKBONES["mlp"]({"smell": 3})


SETUP = {
    "text": {"name": "hashed_ngrams", "channels": 16},
    "normalise": "corpus",
    "backbone": {"name": "mlp", "hidden": [8]},
    "training": {
        "queries": 2,
        "shots": [1],
        "held_out": 0.5,
        "updates": 2,
        "meta_batch": 2,
        "validation_episodes": 2,
    },
    "methods": {"metaser": {"inner_steps": 1, "adapt_steps": 1}, "logistic_regression": {}},
}
MEL, LIPS = {"name": "log_mel", "bands": 4, "frames": 40}, {"name": "vectors", "pooling": "mean"}


def _protocol(**setups) -> Protocol:
    return Protocol.model_validate(
        {
            "name": "trial",
            "title": "A trial",
            "description": "Everything small.",
            "classes": ["angry", "happy", "neutral", "sad"],
            "sources": ["fa_synthetic", "it_synthetic"],
            "targets": ["ur_synthetic"],
            "seeds": [0],
            "episodes": {"shots": [2], "queries": 2, "count": 2},
            "setups": json.loads(json.dumps(setups)),
        }
    )


def _run(protocol, spoken, out, cache):
    place = {"data": spoken / "audio", "task_folders": [spoken / "tasks"], "cache": cache}
    places = Places.at(place["data"], place["task_folders"], cache)
    said = benchmark.forecast(benchmark.Run(protocol=protocol, out=out, places=places))
    benchmark.run(protocol, out, console=Console(quiet=True), **place)
    return said, [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def test_a_protocol_runs_with_any_modality_alone_and_with_all(spoken, tmp_path):
    from metaser.report import write

    hopping, light = {"name": "modality_hopping", "hidden": 4}, {"logistic_regression": {}}
    protocol = _protocol(
        heard=SETUP | {"text": None, "frontend": MEL, "methods": light},
        read=SETUP,
        seen=SETUP | {"text": None, "video": LIPS, "methods": light},
        all=SETUP | {"frontend": MEL, "video": LIPS, "backbone": hopping},
    )
    said, rows = _run(protocol, spoken, tmp_path / "out", tmp_path / "cache")
    assert "6 remain in 6 trainings" in said
    assert len({row["digest"] for row in rows}) == 1  # the same episodes, heard or not
    assert {row["setup"]: row["modalities"] for row in rows} == {
        "heard": ["audio"],
        "read": ["text"],
        "seen": ["video"],
        "all": ["audio", "text", "video"],
    }
    _, markdown = write(tmp_path / "out")
    text = markdown.read_text()
    assert "text: hashed_ngrams + mlp" in text
    assert "audio, text, video: log_mel, hashed_ngrams, vectors + modality_hopping" in text


@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"video": {"name": "video_frames"}},
            "asks for video ('video_frames'), which fa_synthetic",
        ),
        ({"text": {"name": "vectors"}}, "asks for text ('vectors'), which fa_synthetic"),
        ({"backbone": {"name": "recurrent"}}, "'recurrent' takes audio, but the setup gives text"),
        ({"backbone": {"name": "key_sparse_transformer"}}, "takes audio and text and needs audio"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(spoken, tmp_path, change, words):
    with pytest.raises(ValueError) as caught:
        _run(_protocol(odd=SETUP | change), spoken, tmp_path / "out", tmp_path / "cache")
    assert words in str(caught.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"text": None}, "needs a frontend"),
        ({"training": {"situations": 2}}, "situations.*does not hear"),
        ({"training": {"mask_frames": 2}}, "mask_frames.*does not hear"),
    ],
)
def test_a_setup_that_contradicts_itself_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        _protocol(odd=SETUP | change)


def test_nemo_reads_its_published_table(tmp_path):
    place = tmp_path / "nemo" / "samples"
    place.mkdir(parents=True)
    (place / "EB0_anger_10.wav").touch()
    head = "file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage\n"
    row = "EB0_anger_10.wav\tanger\tTo zdanie.\tto zdanie\tEB0\tfemale\t27\n"
    (place.parent / "data.tsv").write_text(head + row)
    assert list(tasks.read_task("pl_nemo", tmp_path).table["transcript"]) == ["To zdanie."]


def test_nemo_has_a_transcript_of_every_clip(corpora):
    task = tasks.read_task("pl_nemo", corpora)
    if task.table is None:
        pytest.skip(f"no audio of pl_nemo below {corpora}")
    told = pd.read_csv(task.audio / "metadata.csv").set_index("file")["transcript"]
    assert list(task.table["transcript"]) == list(told[task.table["file"]])
