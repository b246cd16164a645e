"""Front ends, backbones and methods from outside the package: found, checked, measured again."""

import io
import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from metaser import benchmark, outside
from metaser.adaptation.model_file import load
from metaser.backbones import make_backbone
from metaser.cli import app
from metaser.contracts import (
    Backbone,
    FittedMethod,
    FrontEnd,
    LearningMethod,
    Method,
    OuterTerms,
    frontend_traits,
    method_traits,
)
from metaser.frontends import make_frontend
from metaser.methods import METHODS
from metaser.methods.outer_terms import OuterTerms as OurTerms
from metaser.protocol import read_protocol
from metaser.protocol.build import settings
from metaser.report import write

MINE = '''
"""Classes of one's own."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Loudness:
    """Logarithm of the power of each stretch of a clip."""

    rate: int = 16000
    seconds: float = 0.1

    def __call__(self, waveform):
        size = int(self.seconds * self.rate)
        parts = np.array_split(waveform, max(len(waveform) // size, 1))
        return np.array([[np.log(np.mean(part**2) + 1e-6)] for part in parts], np.float32)


class Net(nn.Module):
    """From vectors to vectors, without a word of MetaSER."""

    def __init__(self, channels, width: int = 4):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(channels, width), nn.Tanh())

    def forward(self, x):
        return self.net(x)


class Centroids:
    """Nearest centroid.

    Each class is the mean of its support clips. Nothing is learnt.
    """

    def adapt(self, support):
        values = support.modalities["audio"].mean()
        rows = [values[support.targets == c] for c in range(len(support.classes))]
        means = torch.stack([own.mean(0) if len(own) else values[0] + 1e3 for own in rows])
        return lambda modalities: -torch.cdist(modalities["audio"].mean(), means)


class Sourced(Centroids):
    """Counts the sources: it is given them without a word about it."""

    def fit(self, sources):
        self.count = len(sources)

    def adapt(self, support):
        assert self.count == 2
        return super().adapt(support)


class Terms(nn.Module):
    """Size of the embeddings as a term of the outer loss."""

    def __init__(self):
        super().__init__()
        self.steps = 0

    def forward(self, model, episode, progress):
        return 0.01 * model.embed(episode.query.modalities).square().mean()

    def catch_up(self, model, episodes, total):
        self.steps += 1


class Joint(nn.Module):
    """Joint: trained on query sets, not adapted."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.terms = Terms()
        self.progress = 0.0

    def loss(self, episode):
        scores = self.model(episode.query.modalities)
        own = nn.functional.cross_entropy(scores, episode.query.targets)
        return own + self.terms(self.model, episode, self.progress)

    def adapt(self, support):
        assert self.terms.steps == 4 and self.progress > 0

        def predict(modalities):
            with torch.no_grad():
                return self.model(modalities)

        return predict


class Broken:
    """Has nothing that a method needs."""

    def fit_predict(self):
        pass


class Matrix(nn.Module):
    """Gives something that is no vector."""

    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return x[:, :, None]
'''
PROTOCOL = """
name = "mine"
title = "Classes of one's own"
description = "Made-up languages."
classes = ["angry", "happy", "neutral", "sad"]
sources = ["fa_synthetic", "it_synthetic"]
targets = ["ur_synthetic"]
seeds = [0]

[episodes]
shots = [1]
queries = 2
count = 3

[setups.one]
frontend = { name = "./mine.py:Loudness", seconds = 0.05 }
normalise = "corpus"
backbone = { name = "./mine.py:Net", width = 3 }

[setups.one.training]
shots = [1]
queries = 2
held_out = 0.5
updates = 4
meta_batch = 2

[setups.one.methods]
"./mine.py:Centroids" = {}
sourced = { method = "./mine.py:Sourced" }
joint = { method = "./mine.py:Joint" }
metaser = { inner_steps = 1, adapt_steps = 1 }
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    (tmp_path / "mine.toml").write_text(PROTOCOL, encoding="utf-8")
    return tmp_path


@pytest.fixture
def run(spoken, folder):
    def run(out="results", **options) -> tuple[list[dict], str]:
        printed = io.StringIO()
        rows = benchmark.run(
            read_protocol(folder / "mine.toml"),
            folder / out,
            data=str(spoken / "audio"),
            task_folders=str(spoken / "tasks"),
            cache=str(folder / "cache"),
            console=Console(file=printed, width=300),
            **options,
        )
        return [json.loads(line) for line in rows.read_text().splitlines()], printed.getvalue()

    return run


def _scores(rows: list[dict]) -> dict[str, list[float]]:
    return {row["method"]: row["uar"] for row in rows}


def test_a_protocol_of_outside_classes_runs_in_every_process_and_is_reported(run, folder):
    alone, _ = run()
    several, _ = run("several", jobs=2)
    assert _scores(several) == _scores(alone) and len(alone) == 4
    digests = {row["method"]: row["outside"] for row in alone}
    assert digests["metaser"].keys() == {"./mine.py:Loudness", "./mine.py:Net"}
    assert digests["sourced"].keys() - digests["metaser"].keys() == {"./mine.py:Sourced"}
    page, _ = write(folder / "results")
    text = page.read_text(encoding="utf-8")
    assert "Nearest centroid" in text and "trained on query sets, not adapted" in text


def test_a_changed_file_is_measured_again_and_an_unchanged_one_is_not(run, folder):
    before, _ = run()
    again, printed = run()
    assert again == before and "4 cells are there, 0 remain" in printed
    file = folder / "mine.py"
    file.write_text(MINE.replace("-torch.cdist", "-2 * torch.cdist"), encoding="utf-8")
    after, printed = run()
    assert "0 cells are there, 4 remain" in printed and "outdated.jsonl" in printed
    aside = (folder / "results" / "outdated.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in aside] == before
    assert len(after) == 4 and _scores(after) == _scores(before)
    assert all(a["settings"] != b["settings"] for a, b in zip(after, before))


def test_a_file_that_changes_in_the_middle_of_a_run_changes_nothing(run, folder, monkeypatch):
    expected, _ = run("first")
    append = benchmark.harness.append_row

    def changing(path, row):
        (folder / "mine.py").write_text("raise RuntimeError('changed')", encoding="utf-8")
        append(path, row)

    monkeypatch.setattr(benchmark.harness, "append_row", changing)
    rows, _ = run("second")
    assert _scores(rows) == _scores(expected)


def test_digests_do_not_depend_on_the_folder(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("elsewhere")
    digests = []
    for place in (folder, other):
        (place / "mine.py").write_text(MINE, encoding="utf-8")
        (place / "mine.toml").write_text(PROTOCOL, encoding="utf-8")
        protocol = read_protocol(place / "mine.toml")
        with outside.pinned(protocol.files):
            setup = protocol.setups["one"]
            digests.append([settings(protocol, setup, label) for label in setup.methods])
    assert digests[0] == digests[1] and len(set(digests[0])) == 4


def _load(folder, name):
    return outside.load(f"{folder / 'mine.py'}:{name}")


def test_minimal_classes_fit_the_contracts(folder):
    frontend = make_frontend({"name": f"{folder / 'mine.py'}:Loudness"})
    assert isinstance(frontend, FrontEnd)
    assert isinstance(make_backbone({"name": f"{folder / 'mine.py'}:Net"}, 1), Backbone)
    assert isinstance(_load(folder, "Centroids")(), Method)
    assert isinstance(_load(folder, "Sourced")(), FittedMethod)
    joint = _load(folder, "Joint")(nn.Linear(1, 1))
    assert isinstance(joint, LearningMethod) and isinstance(joint.terms, OuterTerms)


def test_traits_are_those_of_the_object_and_of_its_class(folder):
    assert frontend_traits(_load(folder, "Loudness")()).rate == 16000
    plain, fitted = _load(folder, "Centroids"), _load(folder, "Sourced")
    for kind in (plain, plain()):
        assert not method_traits(kind).learns and not method_traits(kind).fits
    for kind in (fitted, fitted()):
        assert method_traits(kind).fits and not method_traits(kind).learns
    learning = method_traits(_load(folder, "Joint"))
    assert learning.learns and learning.takes_model and not learning.stackable
    assert not method_traits(METHODS["from_scratch"]).learns
    assert method_traits(METHODS["fine_tuning"]).learns
    assert not method_traits(METHODS["logistic_regression"]()).fits
    assert method_traits(METHODS["logistic_regression_sources"]()).fits
    assert isinstance(OurTerms(_Model(), {}, adversary=0), OuterTerms)


class _Model(nn.Module):
    backbone = nn.Linear(1, 1)
    backbone.dim = 1


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("mine.py:Centroids", "mine.py:Centroid", "has no method 'Centroid'. Did you mean 'Cent"),
        ("mine.py:Centroids", "mine.py:Broken", r"must have adapt\(support\), which Broken lacks"),
        ("mine.py:Centroids", "mine.py:Net", r"must have adapt\(support\), which Net lacks"),
        ("./mine.py:Net", "./mine.py:Centroids", "inherits from nn.Module, not <class"),
        ('Loudness", seconds = 0.05', 'Centroids"', "must be called with a waveform"),
        ("width = 3", "widht = 3", "backbone './mine.py:Net' must be width, not 'widht'. Did you"),
        ("width = 3", 'width = "3"', "width of backbone .* must be a whole number, not '3'"),
        ("seconds = 0.05", "second = 0.05", "not 'second'. Did you mean 'seconds'"),
        ('"./mine.py:Sourced"', '"no_mine:Sourced"', "neither installed nor in the folder"),
        ('"./mine.py:Sourced"', '"./my.py:Sourced"', "expected a Python file at .*my.py"),
        ('"./mine.py:Sourced"', '"metaserr"', "method must be one of .*Did you mean 'metaser'"),
        ("queries = 2\ncount", "querys = 2\ncount", "Did you mean 'queries'"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(run, folder, old, new, words):
    (folder / "mine.toml").write_text(PROTOCOL.replace(old, new), encoding="utf-8")
    with pytest.raises((ValueError, ModuleNotFoundError, FileNotFoundError), match=words):
        run()
    assert not (folder / "results").exists()


def test_a_file_that_cannot_be_run_is_told(folder):
    (folder / "mine.py").write_text("import no_such_thing", encoding="utf-8")
    with pytest.raises(ValueError, match="mine.py.*cannot be run.*no_such_thing"):
        _load(folder, "Centroids")


def test_a_plain_module_must_turn_vectors_into_vectors(folder):
    linear = make_backbone({"name": "torch.nn:Linear", "out_features": 5}, 3)
    assert linear.dim == 5
    with pytest.raises(ValueError, match=r"into vectors \(2, dim\), not \(2, 3, 1\)"):
        make_backbone({"name": f"{folder / 'mine.py'}:Matrix"}, 3)
    with pytest.raises(ValueError, match="fails on them"):
        make_backbone({"name": "torch.nn:Conv2d", "out_channels": 2, "kernel_size": 3}, 3)
    with pytest.raises(ValueError, match="takes vectors of the audio"):
        make_backbone({"name": "torch.nn:Linear", "out_features": 5}, {"audio": 3, "text": 4})


def test_modules_are_found_in_the_current_folder(folder, monkeypatch):
    (folder / "my_own_module.py").write_text(MINE, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = make_frontend({"name": "my_own_module:Loudness", "seconds": 0.2})
    assert found.seconds == 0.2
    with pytest.raises(ModuleNotFoundError, match="my_own_modul.*PYTHONPATH, or name the file"):
        make_frontend({"name": "my_own_modul:Loudness"})


def _added(*values: str):
    entries = [EntryPoint("nearest", value, "metaser.methods") for value in values]
    return lambda group: [entry for entry in entries if entry.group == group]


def test_installed_packages_add_names(folder, monkeypatch):
    monkeypatch.setattr(outside, "entry_points", _added("torch.nn:Linear"))
    found = outside.lookup("nearest", METHODS, "metaser.methods", "method")
    assert found is torch.nn.Linear
    with pytest.raises(ValueError, match="Did you mean 'nearest'"):
        outside.lookup("nearst", METHODS, "metaser.methods", "method")
    monkeypatch.setattr(outside, "entry_points", _added("torch.nn:Linear", "torch.nn:GRU"))
    with pytest.raises(ValueError, match="'nearest' is both torch.nn:Linear and torch.nn:GRU"):
        outside.lookup("nearest", METHODS, "metaser.methods", "method")


@pytest.fixture
def model(spoken, folder, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    arguments = ["train", "--protocol", "mine.toml", "--method", "metaser", "--draws", "2"]
    arguments += ["--data", str(spoken / "audio"), "--tasks", str(spoken / "tasks")]
    done = CliRunner().invoke(app, [*arguments, "--cache", "cache", "--out", "m.safetensors"])
    assert done.exit_code == 0, (done.output, done.exception)
    return folder / "m.safetensors"


def test_a_model_file_needs_the_classes_that_it_was_made_with(model, folder):
    assert load(model).header.outside.keys() == {"./mine.py:Loudness", "./mine.py:Net"}
    (folder / "mine.py").write_text(f"{MINE}\nraise RuntimeError\n", encoding="utf-8")
    with pytest.raises(ValueError, match="another source of './mine.py:.*use the version"):
        load(model)  # and what stands there now is not run
    (folder / "mine.py").unlink()
    with pytest.raises(FileNotFoundError, match="m.safetensors was made with './mine.py:"):
        load(model)
