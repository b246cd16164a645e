"""A model whose front end is learnt, LEAF, through every command; tiny, on made-up speech."""

import pytest
import torch
from typer.testing import CliRunner

from metaser.adaptation.model_file import load
from metaser.cli import app
from metaser.frontends.leaf import Leaf

PROTOCOL = """
name = "leafy"
title = "Leafy"
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
frontend = { name = "leaf", filters = 4, seconds = 0.25 }
normalise = "none"
backbone = { name = "mlp", hidden = [4] }

[setups.plain.training]
shots = [1]
queries = 1
held_out = 0.5
updates = 4
validate_every = 2
validation_episodes = 4
meta_batch = 2

[setups.plain.methods]
inner_loop_alone = { method = "metaser", second_order = false, adapt_steps = 2 }
"""


def run(*arguments, code=0) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


@pytest.fixture(scope="module")
def place(tmp_path_factory, spoken):
    folder = tmp_path_factory.mktemp("leafy")
    (folder / "leafy.toml").write_text(PROTOCOL, encoding="utf-8")
    corpora = ("--data", spoken / "audio", "--tasks", spoken / "tasks")
    options = ("--protocol", folder / "leafy.toml", "--draws", 1, "--cache", folder / "cache")
    run("train", "--out", folder / "leafy.safetensors", *options, *corpora)
    language = ("--task", "ur_synthetic", "--shots", 2)
    run("adapt", folder / "leafy.safetensors", *language, "--out", folder / "ur.st", *corpora)
    return folder


def test_what_was_learnt_of_the_front_end_is_kept(place):
    trained = load(place / "leafy.safetensors")
    fresh = Leaf(filters=4, seconds=0.25)
    learnt = dict(trained.method.model.frontend.named_parameters())
    assert any(not torch.equal(value, learnt[name]) for name, value in fresh.named_parameters())
    adapted = dict(load(place / "ur.st").adapted.model.frontend.named_parameters())
    assert all(torch.equal(value, adapted[name]) for name, value in learnt.items())


def test_it_predicts_and_is_scored(place, spoken):
    clips = sorted((spoken / "audio" / "SYNTHETIC-UR").glob("*.wav"))[:3]
    assert "confidence" in run("predict", place / "ur.st", *clips)
    corpora = ("--data", spoken / "audio", "--tasks", spoken / "tasks")
    options = ("--task", "ur_synthetic", "--cache", place / "cache")
    said = run("evaluate", place / "ur.st", *options, *corpora)
    assert "24 clips of 4 speakers" in said


def test_it_is_exported_with_a_length_and_refused_without(place):
    onnx, card = place / "new" / "ur.onnx", place / "card.md"
    refused = run("export", place / "ur.st", "--onnx", onnx, code=2)
    assert "learnt front end Leaf may ask for a fixed number of frames: --frames" in refused
    assert not onnx.exists()
    run("export", place / "ur.st", "--onnx", onnx, "--frames", 25, "--card", card)
    assert onnx.exists() and "the learnt front end is inside" in card.read_text(encoding="utf-8")
    refused = run("export", place / "ur.st", "--card", card, "--frames", 25, code=2)
    assert "--frames 25 is of the ONNX file" in refused
