"""What a new user does, in processes of their own: train, be interrupted, then three commands."""

import gc
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from metaser import adaptation
from metaser import training as library
from metaser.cli import app
from metaser.commands.options import quick_imports
from metaser.features import Features
from metaser.model_file import load, read_header
from metaser.synthetic import generate

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
"""For the three commands, on two cores."""


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
    assert process.returncode == 130 and "the same command goes on" in rest
    assert not out.exists() and not list(tmp_path.rglob("*.part"))
    loaded, inside = [], library._load
    monkeypatch.setattr(
        library, "_load", lambda path, *rest: loaded.append(path) or inside(path, *rest)
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
    begun = time.monotonic()
    known = ("--language", "ur", "--licence", "CC0", "--consent", "nobody spoke", "--yes")
    fields = ("--emotion", "folder2", "--speaker", "folder1")
    run("tasks", "new", "mine", "--audio", clips, *fields, *known, cwd=tmp_path)
    place = ("--task", "ur_mine", "--tasks", "my_tasks", "--data", "data")
    said = run("adapt", trained, *place, "--out", "mine.safetensors", cwd=tmp_path)
    run("predict", "mine.safetensors", new, "--csv", "told.csv", cwd=tmp_path)
    seconds = time.monotonic() - begun
    assert "UAR to expect on new clips of other speakers" in said
    own = read_header(tmp_path / "mine.safetensors").adaptation
    assert (own.name, own.clips, own.shots, own.speakers) == ("ur_mine", 40, 10, 5)
    told = pd.read_csv(tmp_path / "told.csv")
    assert len(told) == 8 and set(told["emotion"]) <= set(own.classes)
    assert seconds < MOST_SECONDS


def test_vectors_are_learnt_from_by_one_thread_and_frames_by_all(trained, monkeypatch):
    file = load(trained)
    seen, inside = [], type(file.method).adapt
    monkeypatch.setattr(
        type(file.method),
        "adapt",
        lambda *arguments: seen.append(torch.get_num_threads()) or inside(*arguments),
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for frames in (1, 3):
            features, rows, targets = _made_up(file.header.channels["audio"], frames)
            adaptation.fit(file, features, rows, targets)
        assert seen == [1, 2] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def _made_up(channels: int, frames: int):
    values = np.random.default_rng(0).standard_normal((8, frames, channels)).astype(np.float32)
    contents = np.array([str(row) for row in range(8)])
    return Features(values, np.full(8, frames), contents), np.arange(8), np.arange(8) % 4


def test_garbage_is_looked_for_again_after_imports_that_fail():
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError), quick_imports():
        assert not gc.isenabled()
        import no_such_module  # noqa: F401
    assert gc.isenabled()
