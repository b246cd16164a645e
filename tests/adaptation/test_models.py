"""From a folder of recordings to a model in use: train, adapt, predict, evaluate, export."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import safetensors
import soundfile
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from metaser import metrics
from metaser.adaptation import adapt as adaptation
from metaser.adaptation import card as model_card
from metaser.adaptation import evaluate as evaluation
from metaser.adaptation import measure as starter
from metaser.adaptation import predict as prediction
from metaser.adaptation import recipe
from metaser.adaptation import train as training
from metaser.adaptation.clips import Clips, labelled_folder
from metaser.adaptation.fitted import Constants, constants_of
from metaser.adaptation.model_file import (
    load,
    other_versions,
    read_header,
    save,
)
from metaser.batch import Batch, Padded
from metaser.cli import app
from metaser.features import Features
from metaser.frontends import egemaps

PROTOCOL = """
name = "tiny"
title = "Tiny"
description = "Made-up languages."
classes = ["angry", "happy", "neutral", "sad"]
sources = ["fa_synthetic", "it_synthetic"]
targets = ["ur_synthetic"]
speakers = "any"
seeds = [0]

[episodes]
shots = [1]
queries = 1
count = 1

[setups.plain]
frontend = { name = "mfcc", coefficients = 13, frames = 40 }
normalise = "corpus"
backbone = { name = "mlp", hidden = [16] }

[setups.plain.training]
shots = [1]
queries = 1
held_out = 0.5
updates = 60
validate_every = 30
meta_batch = 4

[setups.plain.methods]
inner_loop_alone = { method = "metaser", rates = "element", adapt_steps = 10 }
with_sources = { method = "metaser", adapt_rate = 1e-3, rehearsal = 5.0 }
protonet = {}
majority = {}

[setups.encoder]
frontend = { name = "speaker" }
normalise = "none"
backbone = { name = "mlp" }

[setups.encoder.methods]
inner_loop_alone = { method = "metaser" }
"""


def run(*arguments, code=0, stdin=None):
    done = CliRunner().invoke(app, list(map(str, arguments)), input=stdin)
    assert done.exit_code == code, (done.output, done.exception)
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny.toml").write_text(PROTOCOL, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def made(spoken):
    return ("--data", spoken / "audio", "--tasks", spoken / "tasks")


@pytest.fixture(scope="module")
def trained(place, made):
    """Path of a model trained on two made-up languages."""
    path, cache = place / "model.safetensors", ("--cache", place / "cache")
    options = ("--protocol", place / "tiny.toml", "--draws", 10)
    done = run("train", "--out", path, *options, *made, *cache)
    assert "measured by leaving out each language" in done.output
    assert "synthetic speech only" in done.output
    return path


def test_sources_that_are_too_small_are_refused_before_any_sound_is_read(
    place, made, tmp_path, monkeypatch
):
    def never(*arguments, **options):
        raise AssertionError("sound was read")

    monkeypatch.setattr(training, "prepare", never)
    large = PROTOCOL.replace("queries = 1\nheld_out", "queries = 50\nheld_out")
    (tmp_path / "tiny.toml").write_text(large, encoding="utf-8")
    options = ("--protocol", tmp_path / "tiny.toml", "--cache", place / "cache", *made)
    done = run("train", "--out", tmp_path / "m.safetensors", *options, code=2)
    assert "is too small to learn from, with fa left out, to measure: every class must have 51" in (
        done.output
    )
    assert "other sources by --sources" in done.output and "fewer shots" not in done.output
    lonely = PROTOCOL.replace("held_out = 0.5", "held_out = 0.01")
    (tmp_path / "tiny.toml").write_text(lonely, encoding="utf-8")
    done = run("train", "--out", tmp_path / "m.safetensors", *options, code=2)
    assert "must have enough speakers to hold some out for validation" in done.output


@pytest.fixture(scope="module")
def folder(place, spoken):
    """A folder of 16 labelled clips of the third language, of which two speakers speak each."""
    root = place / "my clips наши"
    for path in sorted((spoken / "audio").glob("SYNTHETIC-UR/*.wav")):
        speaker, emotion = path.stem.split("_")[:2]
        for_class = root / emotion
        if len(list(for_class.rglob("*.wav"))) < 4:
            (for_class / speaker).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, for_class / speaker)
    return root


@pytest.fixture(scope="module")
def adapted(trained, folder, place):
    path = place / "adapted.safetensors"
    done = run("adapt", trained, folder, "--out", path)
    assert "UAR to expect on new clips of other speakers" in done.output
    return path


def _vectors(channels, clips=12, seed=0) -> dict[str, Padded]:
    values = torch.randn(clips, 5, channels, generator=torch.Generator().manual_seed(seed))
    return {"audio": Padded(values, torch.ones(clips, 5, dtype=torch.bool))}


def test_the_header_says_what_was_learnt_and_measured(trained, place):
    header = read_header(trained)
    assert [source.name for source in header.sources] == ["fa_synthetic", "it_synthetic"]
    assert header.synthetic and header.left_out == "language"
    assert [one.shots for one in header.quality] == [0, 1, 2]
    for one in header.quality:
        assert 0 <= one.low <= one.uar <= one.high <= 1 and one.chance == 0.25
        assert one.tasks == ["fa_synthetic", "it_synthetic"]
    assert {(band.shots, band.folds) for band in header.bands} >= {(1, "none"), (2, "none")}
    assert not (place / "model.safetensors.checkpoints").exists()


def test_scores_are_bit_equal_after_writing_and_reading(trained, adapted, tmp_path):
    for path in (trained, adapted):
        first = load(path)
        save(tmp_path / "again.safetensors", first)
        second = load(tmp_path / "again.safetensors")
        assert first.header == second.header
        clips = _vectors(first.header.channels["audio"])
        assert torch.equal(first.predictor(clips), second.predictor(clips))
    assert not torch.equal(load(trained).predictor(clips), load(adapted).predictor(clips))


def test_a_model_that_was_read_adapts_like_the_one_that_was_written(trained, tmp_path):
    file = load(trained)
    with torch.no_grad():
        for value in file.method.parameters():
            value.add_(torch.rand(value.shape, generator=torch.Generator().manual_seed(1)) / 10)
    save(tmp_path / "m.safetensors", file)
    clips = _vectors(file.header.channels["audio"])
    support = Batch(clips, torch.arange(12) % 4, torch.ones(4, dtype=torch.bool))
    one, two = (m.method.adapt(support)(clips) for m in (file, load(tmp_path / "m.safetensors")))
    assert torch.equal(one, two)


def _rewrite(path, out, **changes):
    """Write a model file anew with other facts in its header."""
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        facts = json.loads(file.metadata()["metaser"]) | changes
    save_file(tensors, out, metadata={"metaser": json.dumps(facts)})
    return out


def test_files_that_cannot_be_read_say_why(trained, tmp_path):
    cut = tmp_path / "cut.safetensors"
    whole = trained.read_bytes()
    for length in (0, 5, 400, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut off"):
            load(cut)
    newer = _rewrite(trained, tmp_path / "newer.safetensors", format=4, metaser="9.1")
    with pytest.raises(ValueError, match="not of *format 4, made by MetaSER 9.1"):
        load(newer)
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not another safetensors file"):
        load(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="header must be valid, but is damaged"):
        load(_rewrite(trained, tmp_path / "odd.safetensors", surprise=1))
    with pytest.raises(ValueError, match="must fit the model"):
        load(_rewrite(trained, tmp_path / "wide.safetensors", channels={"audio": 7}))
    with pytest.raises(FileNotFoundError, match="a model must be a file .* there is none at"):
        load(tmp_path / "absent.safetensors")


def test_a_missing_extra_is_named(trained, tmp_path, monkeypatch):
    setup = read_header(trained).setup.model_dump() | {"frontend": {"name": "egemaps"}}
    path = _rewrite(trained, tmp_path / "extra.safetensors", setup=setup)
    monkeypatch.setitem(sys.modules, "opensmile", None)
    egemaps._extractor.cache_clear()  # another test may have loaded it
    with pytest.raises(ModuleNotFoundError, match="metaser\\[opensmile\\]"):
        load(path).frontend()


def test_other_versions_of_libraries_are_told(trained):
    header = read_header(trained)
    assert other_versions(header) == []
    other = header.model_copy(update={"libraries": {"numpy": "0.1", "nothing-like-it": "3"}})
    assert [line.split(" ")[0] for line in other_versions(other)] == ["numpy", "nothing-like-it"]


def test_constants_are_mean_and_deviation_and_lean_on_the_sources():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((6, 3, 2)).astype(np.float32)
    lengths = np.array([3, 1, 2, 3, 3, 3])
    features = Features(values, lengths, np.arange(6).astype(str))
    rows = np.array([0, 1, 4])
    frames = np.concatenate([values[row, : lengths[row]] for row in rows])
    plain = constants_of(features, rows)
    np.testing.assert_allclose(plain.centre, frames.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(plain.spread, frames.std(axis=0), atol=1e-6)
    prior = Constants(np.array([10.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))
    half = constants_of(features, rows, prior, (3, 3))
    np.testing.assert_allclose(half.centre, (plain.centre + prior.centre) / 2, atol=1e-5)
    np.testing.assert_allclose(half.spread**2, (plain.spread**2 + prior.spread**2) / 2, rtol=1e-4)


def test_adapting_states_an_interval_and_remembers_its_clips(adapted, trained, folder):
    own = read_header(adapted).adaptation
    assert own.clips == 16 and own.shots == 4 and len(set(own.contents)) == 16
    assert 0 <= own.low <= own.uar <= own.high <= 1
    assert own.low < own.high
    clips = labelled_folder(folder, read_header(trained).classes)
    assert own.speakers == len(set(clips.speakers)) > 1
    with pytest.raises(ValueError, match="adapted to 'my clips наши' already"):
        adaptation.adapt(load(adapted), clips)


def test_a_class_with_one_clip_is_not_cross_validated(trained, folder):
    clips = labelled_folder(folder, read_header(trained).classes)
    found = adaptation.adapt(load(trained), clips, shots=1)
    assert found.header.adaptation.clips == 4
    assert found.header.adaptation.folds == "none" and np.isnan(found.header.adaptation.seen)


def test_a_language_may_lack_a_class_and_never_hears_it(trained, folder):
    clips = labelled_folder(folder, read_header(trained).classes, drop=["sad"])
    found = adaptation.adapt(load(trained), clips)
    table = prediction.predict(found, [folder])
    assert "sad" not in table and not (table["emotion"] == "sad").any()
    assert table[["angry", "happy", "neutral"]].sum(axis=1).to_numpy() == pytest.approx(1)


def test_what_cannot_be_adapted_to_is_refused(trained, folder):
    clips = labelled_folder(folder, read_header(trained).classes)
    with pytest.raises(ValueError, match="must have 9 clips for 9 shots.*has 4"):
        adaptation.adapt(load(trained), clips, shots=9)
    with pytest.raises(ValueError, match="at least two classes"):
        adaptation.adapt(load(trained), Clips(clips.files[:2], clips.emotions[:2]))
    with pytest.raises(ValueError, match="must be a class.*not 'agry'.*Did you mean 'angry'"):
        adaptation.adapt(load(trained), Clips(clips.files[:2], ("agry", "sad")))


def test_cross_validation_never_hears_what_it_is_asked(trained, plant, make_task, monkeypatch):
    """Features that tell the labels of speakers apart give nothing away across speakers."""
    file = load(trained)
    task = make_task(speakers=4, clips=3)
    features = plant(task, channels=file.header.channels["audio"])
    rows = np.arange(len(task.table))
    targets = pd.factorize(task.table["emotion"])[0]
    speakers = task.table["speaker"].to_numpy()
    asked = []
    inside = adaptation.fit

    def watch(file, features, learnt, *arguments):
        asked.append(set(speakers[learnt]))
        return inside(file, features, learnt, *arguments)

    monkeypatch.setattr(adaptation, "fit", watch)
    kind, seen = adaptation.cross_validate(file, features, rows, targets, speakers)
    assert kind == "speakers" and len(asked) == 4 and all(len(side) == 3 for side in asked)
    assert seen.uar > 0.7  # the planted classes are the same for all speakers
    shuffled = np.random.default_rng(0).permutation(targets)
    assert adaptation.cross_validate(file, features, rows, shuffled, None)[1].uar < 0.5


def test_speakers_of_one_emotion_each_are_not_cross_validated(trained, plant, make_task):
    file = load(trained)
    task = make_task(speakers=8, clips=3)
    targets = pd.factorize(task.table["emotion"])[0]
    rows = np.flatnonzero(targets == task.table["unit"] % 4)
    features = plant(task, channels=file.header.channels["audio"])
    speakers = task.table["speaker"].to_numpy()[rows]
    kind, seen = adaptation.cross_validate(file, features, rows, targets[rows], speakers)
    assert kind == "none" and seen is None


def test_where_every_clip_is_of_somebody_else_leaving_it_out_leaves_them_out(
    trained, plant, make_task
):
    file = load(trained)
    task = make_task(speakers=4, clips=3)
    features = plant(task, channels=file.header.channels["audio"])
    targets = pd.factorize(task.table["emotion"])[0]
    rows = np.arange(len(targets))
    everybody = rows.astype(str)
    kind, seen = adaptation.cross_validate(file, features, rows, targets, everybody)
    assert kind == "speakers" and seen.uar > 0.5  # chance is 0.25


def test_draws_keep_speakers_apart():
    targets, units = np.tile([0, 1], 40), np.repeat(np.arange(8), 10)
    for seed in range(20):
        own, rest = starter.draw_clips(targets, units, 7, np.random.default_rng(seed))
        assert not set(units[own]) & set(units[rest])
        assert np.bincount(targets[own]).tolist() == [7, 7]
        assert min(np.bincount(targets[rest])) >= starter.QUERIES
        assert set(units[own]) | set(units[rest]) == set(range(8)) or len(set(units[own])) > 1
    assert starter.draw_clips(targets, units, 41, np.random.default_rng(0)) is None


def test_predictions_are_the_model_s_and_files_come_in_order(adapted, folder):
    file = load(adapted)
    table = prediction.predict(file, [folder])
    paths = sorted(str(path) for path in folder.rglob("*.wav"))
    assert table["file"].tolist() == paths
    assert table[file.header.classes].sum(axis=1).to_numpy() == pytest.approx(1)
    again = pd.concat([prediction.predict(file, [path]) for path in paths], ignore_index=True)
    pd.testing.assert_frame_equal(table, again, rtol=1e-4)  # each clip for itself
    unsure = prediction.predict(file, [folder], abstain=1.0)["emotion"]
    assert (unsure == "unsure").mean() > 0.9


def test_a_hot_temperature_makes_probabilities_alike(adapted, folder):
    file = load(adapted)
    facts = file.header.adaptation.model_copy(update={"temperature": 1000.0})
    hot = replace(file, header=file.header.model_copy(update={"adaptation": facts}))
    one, two = (prediction.predict(m, [folder]) for m in (file, hot))
    assert one["emotion"].tolist() == two["emotion"].tolist()
    assert two["confidence"].to_numpy() == pytest.approx(0.25, abs=0.02)


def test_predict_writes_tables_and_reads_names(adapted, trained, folder, tmp_path):
    names = sorted(map(str, folder.rglob("*.wav")))[:3]
    csv, jsonl = tmp_path / "o ü.csv", tmp_path / "o.jsonl"
    stdin = "\n".join(names) + "\n"
    done = run("predict", adapted, "-", "--csv", csv, "--jsonl", jsonl, stdin=stdin)
    assert "synthetic speech only" in done.output and "zero-shot" not in done.output
    lines = [json.loads(line) for line in jsonl.read_text(encoding="utf-8").splitlines()]
    assert pd.read_csv(csv)["file"].tolist() == [line["file"] for line in lines] == names
    shown = run("predict", trained, names[0])
    assert "zero-shot" in shown.output and "confidence" in shown.output


def test_predict_goes_through_a_long_recording(adapted, folder, tmp_path):
    clips = [soundfile.read(path) for path in sorted(folder.rglob("*.wav"))]
    long = np.concatenate([samples for samples, _ in clips] * 4)
    soundfile.write(tmp_path / "long one.wav", long, clips[0][1])
    run("predict", adapted, tmp_path / "long one.wav", code=2)
    table = prediction.predict(load(adapted), [tmp_path / "long one.wav"], window=4.0, hop=2.0)
    assert table["start"].tolist() == list(2.0 * np.arange(len(table)))
    assert table["end"].iloc[-1] == pytest.approx(len(long) / clips[0][1], abs=4)


def test_bad_input_to_predict_is_refused(adapted, tmp_path):
    file = load(adapted)
    with pytest.raises(FileNotFoundError, match="absent.wav must be an audio file or a folder"):
        prediction.predict(file, [tmp_path / "absent.wav"])
    with pytest.raises(ValueError, match="must hold audio files"):
        prediction.predict(file, [tmp_path])
    with pytest.raises(ValueError, match="abstain must be a probability.*not 2"):
        prediction.predict(file, [tmp_path], abstain=2.0)
    with pytest.raises(ValueError, match="must come with a window"):
        prediction.predict(file, [adapted], hop=2.0)
    with pytest.raises(ValueError, match="at least one audio file or folder"):
        prediction.predict(file, [])


def test_evaluation_leaves_out_what_was_adapted_to(adapted, made, place):
    done = run("evaluate", adapted, "--task", "ur_synthetic", *made, "--cache", place / "cache")
    assert "left out, because the model is adapted to them: 16 clips" in done.output
    assert "UAR on speakers that the model does not know" in done.output
    done = run("evaluate", adapted, "--task", "fa_synthetic", *made, "--cache", place / "cache")
    assert "has learnt from fa_synthetic" in done.output


def test_evaluation_agrees_with_scores_made_by_hand(adapted, plant, make_task):
    file = load(adapted)
    task = make_task(gender="")
    task.table["gender"] = np.where(task.table["unit"] < 2, "female", "male")
    features = plant(task, channels=file.header.channels["audio"])
    rows = np.arange(len(task.table))
    own = file.header.adaptation.model_copy(update={"contents": [str(features.hashes[0])]})
    file = replace(file, header=file.header.model_copy(update={"adaptation": own}))
    found = evaluation.evaluate(file, task.table, features)
    guessed = file.fitted.scores(features, rows[1:]).argmax(axis=1)
    targets = [file.header.classes.index(name) for name in task.table["emotion"]][1:]
    assert found.left_out == 1 and found.confusion.sum() == len(rows) - 1
    assert found.uar.value == metrics.uar(targets, guessed)
    assert found.uar.low <= found.uar.value <= found.uar.high
    assert found.new_speakers.speakers == 5
    assert set(found.groups["group"]) == {"gender", "speaker"}
    female = (task.table["gender"] == "female").to_numpy()[1:]
    row = found.groups.set_index("name").loc["female"]
    assert row["uar"] == metrics.uar(np.array(targets)[female], guessed[female])


def test_the_interval_knows_that_clips_of_a_speaker_are_alike():
    rng = np.random.default_rng(0)
    units, targets = np.repeat(np.arange(8), 40), rng.integers(4, size=320)
    right = rng.random(8)[units] > rng.random(320)  # some voices are easy, some are hard
    guessed = np.where(right, targets, (targets + 1) % 4)
    by_speaker = evaluation.score("uar", targets, guessed, units)
    by_clip = evaluation.score("uar", targets, guessed, np.arange(320))
    assert by_speaker.high - by_speaker.low > 2 * (by_clip.high - by_clip.low)
    one = evaluation.score("uar", targets, guessed, np.zeros(320))
    assert one.speakers == 1 and one.high - one.low == pytest.approx(
        by_clip.high - by_clip.low, rel=0.2
    )


def test_the_bootstrap_scores_confusion_matrices_as_the_metrics_do():
    rng = np.random.default_rng(0)
    targets, guessed = rng.integers(3, size=30), rng.integers(4, size=30)
    counts = metrics.confusion(targets, guessed, range(5)).astype(float)
    for name in ("uar", "macro_f1"):
        expected = getattr(metrics, name)(targets, guessed)
        assert evaluation._from_confusion(name, counts) == pytest.approx(expected)


def test_the_card_says_where_it_comes_from_and_what_it_is_worth(adapted, trained, tmp_path):
    run("export", adapted, "--card", tmp_path / "card.md")
    text = (tmp_path / "card.md").read_text(encoding="utf-8")
    header = read_header(adapted)
    own = header.adaptation
    for part in (
        "synthetic speech only",
        "fa_synthetic (version",
        header.sources[0].licence,
        f"{100 * own.low:.0f} to {100 * own.high:.0f} %",
        "Do not judge anyone",
    ):
        assert part in text
    assert "not adapted to a language" in model_card.card(load(trained), "m")
    run("export", trained, code=2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"method": "with_sources"}, "must adapt without the sources' clips"),
        ({"method": "majority"}, "must learn something that can be kept"),
        ({"method": "inner"}, "the method must be one of .*not 'inner'"),
        ({"setup": "plane"}, "Did you mean 'plain'"),
    ],
)
def test_what_cannot_be_trained_is_refused(place, arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe.read_recipe(place / "tiny.toml", **{"method": "inner_loop_alone", **arguments})


def test_another_setup_s_missing_packages_do_not_matter(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "resemblyzer", None)
    from metaser.frontends import speaker

    speaker._encoder.cache_clear()
    assert recipe.read_recipe(place / "tiny.toml").setup_name == "plain"
    with pytest.raises(ModuleNotFoundError, match="metaser\\[speaker\\]"):
        recipe.read_recipe(place / "tiny.toml", setup="encoder")


def test_one_language_leaves_out_tasks_and_one_task_leaves_out_speakers(plant, make_task):
    def materials(*names):
        tasks = {name: make_task(name) for name in names}
        raw = {name: plant(task) for name, task in tasks.items()}
        made = {name: starter.Material(tasks[name], raw[name], ()) for name in names}
        return made, raw

    kind, parts = starter.split_sources(*materials("it_a", "it_b"))
    assert kind == "task" and [list(part.learnt) for part in parts] == [["it_b"], ["it_a"]]
    kind, parts = starter.split_sources(*materials("it_a", "it_b", "de_c"))
    assert kind == "language" and [list(p.learnt) for p in parts] == [["de_c"], ["it_a", "it_b"]]
    kind, (part,) = starter.split_sources(*materials("it_a"))
    (held, features), learnt = part.held[0], part.learnt["it_a"]
    assert kind == "speakers" and len(features.lengths) == len(held.table)
    assert not set(held.table["unit"]) & set(learnt.task.table["unit"])


def test_further_tasks_are_measured_by_models_that_lack_their_language(plant, make_task):
    tasks = {name: make_task(name) for name in ("it_a", "de_c", "it_d", "pl_e")}
    raw = {name: plant(task) for name, task in tasks.items()}
    made = {name: starter.Material(tasks[name], raw[name], ()) for name in ("it_a", "de_c")}
    others = [(tasks[name], raw[name]) for name in ("it_d", "pl_e")]
    _, parts = starter.split_sources(made, raw)
    parts = starter.with_others(parts, made, raw, others)
    assert [(list(part.learnt), [task.name for task, _ in part.held]) for part in parts] == [
        (["de_c"], ["it_a", "it_d"]),
        (["it_a"], ["de_c"]),
        (["it_a", "de_c"], ["pl_e"]),
    ]
    _, parts = starter.split_sources({"it_a": made["it_a"]}, raw)
    with pytest.raises(ValueError, match="without the language of it_d"):
        starter.with_others(parts, {"it_a": made["it_a"]}, raw, others)


def test_adapt_wants_clips_from_one_place(trained, folder, tmp_path):
    for arguments in ((), (folder, "--task", "ur_synthetic")):
        done = run("adapt", trained, *arguments, "--out", tmp_path / "o.safetensors", code=2)
        assert "exactly one of" in done.output
    done = run("adapt", trained, folder, "--label", "x", "--out", tmp_path / "o", code=2)
    assert "NAME=CLASS" in done.output
    assert not (tmp_path / "o").exists()
