"""What is read from embeddings, and that an adversary hides it: planted voices and emotions."""

import numpy as np
import pytest
import torch

from metaser.analysis.probe import probe
from metaser.backbones import MLP
from metaser.batch import Batch, EpisodeBatch, Padded
from metaser.cli.probe import table
from metaser.methods import METHODS
from metaser.model import Model

CORPORA, VOICES, CLASSES = 3, 4, 3
DOMAINS = {"speaker": CORPORA * VOICES, "corpus": CORPORA}


def _clips(each=8, seed=0):
    """Vectors of 12 numbers: 4 tell the emotion, 4 the speaker, 4 the corpus, all with noise."""
    draw, means = np.random.default_rng(seed), np.random.default_rng(7)
    emotion, speaker, _ = (
        grid.ravel()
        for grid in np.meshgrid(
            np.arange(CLASSES), np.arange(CORPORA * VOICES), np.arange(each), indexing="ij"
        )
    )
    corpus = speaker // VOICES
    parts = [
        3 * means.standard_normal((count, 4))[labels]
        for count, labels in ((CLASSES, emotion), (CORPORA * VOICES, speaker), (CORPORA, corpus))
    ]
    values = np.concatenate(parts, axis=1)
    return values + draw.standard_normal(values.shape), speaker, corpus, emotion


def _read(embeddings, speaker, corpus, emotion) -> dict[str, float]:
    found = probe(embeddings, speaker, corpus, emotion)
    return {name: float(np.mean(list(scores.values()))) for name, scores in found.items()}


def test_what_is_there_is_read_and_what_is_not_is_chance():
    values, *labels = _clips()
    found = _read(values, *labels)
    assert min(found.values()) > 0.85
    found = _read(values[:, :4], *labels)
    assert found["emotion"] > 0.85
    assert found["speaker"] < 0.2 and found["corpus"] < 0.45


def test_the_kernel_reads_what_lies_on_no_line():
    """Four clouds crosswise: no line tells one pair from the other."""
    draw = np.random.default_rng(0)
    corners = np.array([[1, 1], [-1, -1], [1, -1], [-1, 1]])[np.arange(400) % 4]
    values = 3 * corners + draw.standard_normal((400, 2))
    labels = np.arange(400) % 20, np.zeros(400, int), np.arange(400) % 4 // 2
    linear, kernel = (
        probe(values, *labels, reader=reader)["emotion"]["0"] for reader in ("linear", "kernel")
    )
    assert linear < 0.65 and kernel > 0.95


def test_the_emotion_is_read_from_other_speakers():
    """Where each voice gives its emotion away, a reader that knew the voices would be perfect."""
    draw = np.random.default_rng(0)
    speaker = np.repeat(np.arange(60), 10)
    values = 5 * draw.standard_normal((60, 100))[speaker] + draw.standard_normal((600, 100))
    found = _read(values, speaker, np.zeros(600, int), draw.permutation(60)[speaker] % 2)
    assert found["speaker"] > 0.95 and 0.3 < found["emotion"] < 0.7
    assert "corpus" not in found


def _trained(adversary: float, steps: int = 10) -> dict[str, float]:
    values, speaker, corpus, emotion = _clips()
    terms = {"adversary": adversary, "adversary_steps": steps}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = METHODS["adversarial"](
            Model(MLP(12, (16,)), CLASSES), terms=terms, domains=DOMAINS
        )
        optimiser = torch.optim.Adam(method.parameters(), lr=0.01)
        rows = np.random.default_rng(1)
        for step in range(200):
            method.progress = step / 200
            sides = [_batch(values, speaker, corpus, emotion, rows) for _ in range(2)]
            episode = EpisodeBatch(*sides)
            method.terms.catch_up(method.model, [episode], 1)
            optimiser.zero_grad()
            method.loss(episode).backward()
            optimiser.step()
        vectors = torch.tensor(values[:, None], dtype=torch.float32)
        audio = Padded(vectors, torch.ones(vectors.shape[:2], dtype=torch.bool))
        with torch.no_grad():
            embeddings = method.model.embed({"audio": audio}).numpy()
    return _read(embeddings, speaker, corpus, emotion)


def _batch(values, speaker, corpus, emotion, rng) -> Batch:
    rows = rng.choice(len(values), 64)
    vectors = torch.tensor(values[rows, None], dtype=torch.float32)
    padded = Padded(vectors, torch.ones(vectors.shape[:2], dtype=torch.bool))
    domains = {"speaker": torch.from_numpy(speaker[rows]), "corpus": torch.from_numpy(corpus[rows])}
    classes = torch.ones(CLASSES, dtype=torch.bool)
    return Batch({"audio": padded}, torch.from_numpy(emotion[rows]), classes, domains)


def test_the_adversary_hides_speaker_and_corpus_and_not_the_emotion():
    """With the reversal switched off (weight 1e-9) nothing is hidden, and adversaries that do not
    catch up hide less at the same weight."""
    off, on, lagging = _trained(1e-9), _trained(1.0), _trained(1.0, steps=0)
    for name, chance in (("speaker", 1 / 12), ("corpus", 1 / 3)):
        assert on[name] < chance + 0.15 and lagging[name] > chance + 0.3 and off[name] > 0.8
    assert on["emotion"] > off["emotion"] - 0.05 and on["emotion"] > 0.85


def test_the_table_compares_with_the_first_method():
    rows = [
        {
            "setup": "x",
            "method": m,
            "seed": s,
            "clips": "sources",
            "read": "speaker",
            "reader": "linear",
            "corpus": c,
            "uar": u,
            "chance": 0.125,
        }
        for m, base in (("off", 0.5), ("on", 0.3))
        for s in range(3)
        for c, u in (("a", base + 0.01 * s), ("b", base + 0.1))
    ]
    text = table(rows, ["off", "on"])
    assert "| x | sources | speaker | linear | 12.5 | off | 55.5 [" in text and "; 6]" in text
    (line,) = [line for line in text.splitlines() if "| on |" in line]
    assert "-20.0 [" in line


def test_the_command_reads_the_trainings_of_a_benchmark(spoken, tmp_path):
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from metaser.cli import app

    (tmp_path / "tiny.toml").write_text(
        """
name = "tiny"
title = "t"
description = "d"
classes = ["angry", "happy", "neutral", "sad"]
sources = ["fa_synthetic", "it_synthetic"]
targets = ["ur_synthetic"]
seeds = [0]
[episodes]
shots = [1]
queries = 1
count = 1
[setups.s]
frontend = { name = "statistics" }
normalise = "corpus"
backbone = { name = "mlp", hidden = [8] }
[setups.s.training]
shots = [1]
queries = 1
updates = 2
held_out = 0.5
[setups.s.methods]
fine_tuning = {}
zero_shot = {}
adversarial = {}
chance = {}
""",
        encoding="utf-8",
    )
    arguments = ["probe", str(tmp_path / "tiny.toml"), "--out", str(tmp_path)]
    arguments += ["--data", str(spoken / "audio"), "--tasks", str(spoken / "tasks")]
    arguments += ["--cache", str(tmp_path / "cache"), "--methods"]
    result = CliRunner().invoke(app, [*arguments, "fine_tuning,zero_shot,adversarial"])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "probe.md").read_text(encoding="utf-8")
    assert "| s | sources | corpus | linear | 50.0 | adversarial |" in text
    assert "| s | targets | emotion | kernel | 25.0 | zero_shot |" in text
    result = CliRunner().invoke(app, [*arguments, "chance"])
    assert result.exit_code == 2 and "chance has no embeddings" in result.output
