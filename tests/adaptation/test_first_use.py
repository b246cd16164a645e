"""What a new user does, in processes of their own: train, be interrupted, then three commands."""

import gc
import importlib
import resource
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from metaser.adaptation import adapt as adaptation
from metaser.adaptation import recipe
from metaser.adaptation.model_file import load, read_header
from metaser.cli import app
from metaser.cli.options import quick_imports
from metaser.episodes import TaskSampler
from metaser.features import Features
from metaser.labelling.curve import adapted_model
from metaser.machine import cpu_threads
from metaser.synthetic import generate
from metaser.training import loop

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
frontend = { name = "statistics" }
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
"""
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests may ignore it
from metaser.cli import app
app(prog_name="metaser")
"""
MOST_SECONDS = 60
"""Of a processor, for the three commands."""


def start(*arguments, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.Popen(command, text=True, stderr=subprocess.PIPE, **options)


def run(*arguments, cwd) -> str:
    """Run a command to its end; what it says on standard output."""
    with start(*arguments, cwd=cwd, stdout=subprocess.PIPE) as process:
        said, complained = process.communicate()
    assert process.returncode == 0, complained
    return said


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    (folder / "tiny.toml").write_text(PROTOCOL, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def training(place, spoken):
    """A `metaser train` but for its output."""
    corpora = ("--data", spoken / "audio", "--tasks", spoken / "tasks")
    return (
        *("train", "--protocol", place / "tiny.toml", "--draws", 5),
        *(*corpora, "--cache", place / "cache"),
    )


@pytest.fixture(scope="module")
def trained(place, training):
    done = CliRunner().invoke(app, [*map(str, training), "--out", str(place / "m.safetensors")])
    assert done.exit_code == 0, done.output
    return place / "m.safetensors"


def test_an_interrupted_training_goes_on_and_ends_as_if_nothing_had_been(
    training, trained, tmp_path, monkeypatch
):
    out = tmp_path / "deep" / "model.safetensors"
    with start(*training, "--out", out) as process:
        for line in process.stderr:
            if "measuring on it" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130 and "the same command continues" in rest
    assert not out.exists() and not list(tmp_path.rglob("*.part"))
    loaded, inside = [], loop._Run.load
    monkeypatch.setattr(
        loop._Run, "load", lambda run, path: loaded.append(path) or inside(run, path)
    )
    again = CliRunner().invoke(app, [*map(str, training), "--out", str(out)])
    assert again.exit_code == 0, again.output
    assert "fa" in loaded[0].relative_to(tmp_path).parts  # trained before, and not again
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [out]
    assert read_header(out) == read_header(trained)
    states = [load(path).method.state_dict() for path in (out, trained)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_from_forty_clips_to_predictions_by_three_commands(trained, tmp_path):
    """10 clips a class, as a new user has them, and others of the same language to predict."""
    made = generate(tmp_path / "made", ["ur"], speakers=5, sentences=2)
    clips = tmp_path / "data" / "my clips"
    for path in (made / "audio" / "SYNTHETIC-UR").glob("*.wav"):
        speaker, emotion = path.stem.split("_")[:2]
        folder = clips / emotion / speaker
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    new = generate(tmp_path / "new", ["ur"], speakers=2, sentences=1, seed=1) / "audio"
    before = _cpu_seconds()
    known = ("--language", "ur", "--licence", "CC0", "--consent", "nobody spoke", "--yes")
    fields = ("--emotion", "folder2", "--speaker", "folder1")
    run("tasks", "new", "mine", "--audio", clips, *fields, *known, cwd=tmp_path)
    place = ("--task", "ur_mine", "--tasks", "my_tasks", "--data", "data")
    said = run("adapt", trained, *place, "--out", "mine.safetensors", cwd=tmp_path)
    run("predict", "mine.safetensors", new, "--csv", "told.csv", cwd=tmp_path)
    seconds = _cpu_seconds() - before  # whatever else the machine does meanwhile
    assert "UAR to expect on new clips of other speakers" in said
    own = read_header(tmp_path / "mine.safetensors").adaptation
    assert (own.name, own.clips, own.shots, own.speakers) == ("ur_mine", 40, 10, 5)
    told = pd.read_csv(tmp_path / "told.csv")
    assert len(told) == 8 and set(told["emotion"]) <= set(own.classes)
    assert seconds < MOST_SECONDS


def _cpu_seconds() -> float:
    """What processes that were waited for have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_vectors_are_learnt_from_by_one_thread_and_frames_by_all(trained, monkeypatch):
    file = load(trained)
    seen, inside = [], type(file.method).adapt
    monkeypatch.setattr(
        type(file.method),
        "adapt",
        lambda *arguments: seen.append(torch.get_num_threads()) or inside(*arguments),
    )
    with cpu_threads(2):
        for frames in (1, 3):
            features, rows, targets = _made_up(file.header.channels["audio"], frames)
            adaptation.fit(file, features, rows, targets)
        assert seen == [1, 2] and torch.get_num_threads() == 2


def test_on_vectors_one_thread_trains(training, tmp_path, monkeypatch):
    seen = []

    def stop(*_, **__):
        seen.append(torch.get_num_threads())
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "train_job", stop)
    with cpu_threads(2):
        CliRunner().invoke(app, [*map(str, training), "--out", str(tmp_path / "m.safetensors")])
    assert seen == [1]


def _made_up(channels: int, frames: int):
    values = np.random.default_rng(0).standard_normal((8, frames, channels)).astype(np.float32)
    contents = np.array([str(row) for row in range(8)])
    return Features(values, np.full(8, frames), contents), np.arange(8), np.arange(8) % 4


def test_garbage_is_looked_for_again_after_imports_that_fail():
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError), quick_imports():
        assert not gc.isenabled()
        importlib.import_module("no_such_module")
    assert gc.isenabled()


@pytest.mark.parametrize(
    "command",
    [
        ("train",),
        ("adapt", "MODEL", "clips"),
        ("predict", "MODEL", "clips", "--csv"),
        ("export", "MODEL", "--card"),
        ("export", "MODEL", "--onnx"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(command, tmp_path):
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"not looked at")
    said = [str(model) if part == "MODEL" else part for part in command]
    said += [] if said[-1].startswith("--") else ["--out"]

    def refused(out) -> str:
        done = CliRunner().invoke(app, [*said, str(out)])
        assert done.exit_code == 2
        return done.output

    assert f"{tmp_path} is one: name a file in it, such as" in refused(tmp_path)
    assert f"{model} is a file, not a folder" in refused(model / "deep" / "file")
    if "MODEL" in command:
        assert "is what is read here, and would be lost" in refused(model)
    assert list(tmp_path.iterdir()) == [model] and model.read_bytes() == b"not looked at"


def test_the_next_command_is_told_so_that_a_shell_understands_it(trained, spoken, tmp_path):
    out = tmp_path / "my model.safetensors"
    corpora = ("--data", spoken / "audio", "--tasks", spoken / "tasks")
    arguments = ["adapt", trained, "--task", "ur_synthetic", "--shots", 1, *corpora, "--out", out]
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert f"metaser predict '{out}' FILES" in done.output


def test_what_a_model_buys_is_told_beside_logistic_regression(trained, spoken, tmp_path):
    corpora = ("--data", spoken / "audio", "--tasks", spoken / "tasks", "--cache", tmp_path)

    def curve(name, model, *more):
        options = ["--task", name, "--episodes", 4, "--queries", 1, "--model", model, *more]
        return CliRunner().invoke(app, ["curve", *map(str, options), *map(str, corpora)])

    unheard = curve("ur_synthetic", trained)
    assert unheard.exit_code == 0, unheard.output
    assert "the model buys" in unheard.output and "synthetic speech only" in unheard.output
    assert "has learnt from" not in unheard.stderr.replace("has learnt from synthetic", "")
    assert "has learnt from it_synthetic" in curve("it_synthetic", trained).stderr
    adapted = tmp_path / "adapted.safetensors"
    language = ("--task", "ur_synthetic", "--shots", 1)
    done = CliRunner().invoke(
        app, list(map(str, ["adapt", trained, *language, "--out", adapted, *corpora[:4]]))
    )
    assert done.exit_code == 0, done.output
    refused = curve("ur_synthetic", adapted)
    assert refused.exit_code == 2 and "adapted to 'ur_synthetic' already" in refused.output


def test_a_model_s_curve_is_that_of_adapting_to_the_drawn_clips_alone(trained, make_task, plant):
    file = load(trained)
    task = make_task(speakers=4, clips=2)
    features = plant(task, channels=file.header.channels["audio"])
    episode = TaskSampler(task, file.header.classes, 2, 1).episode(0)
    fitted = adaptation.fit(file, features, episode.support, episode.support_targets)
    expected = fitted.scores(features, episode.query).argmax(axis=1)
    speakers = task.table["speaker"].to_numpy(str)
    assert np.array_equal(adapted_model(file, features, speakers)(episode), expected)
    changed = replace(features, values=features.values + 100 * _outside(episode, features))
    assert np.array_equal(adapted_model(file, changed, speakers)(episode), expected)


def _outside(episode, features) -> np.ndarray:
    """1 for clips that an episode does not hold, of the shape of the values."""
    others = np.ones(len(features.values), np.float32)
    others[[*episode.support, *episode.query]] = 0
    return others[:, None, None]
