import json
import os

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from typer.testing import CliRunner

from metaser import benchmark
from metaser.analysis import report as similarity_report
from metaser.analysis import study
from metaser.analysis.transfer import Pool, agreement, controls, transfer
from metaser.benchmark import plan
from metaser.cli import app
from metaser.features import Features
from metaser.files import Places
from metaser.protocol import Protocol, build

SOURCES = ["de_a", "en_b", "fr_c", "pl_d"]
TARGETS = ["it_x", "ur_y", "fa_z"]
SETUP = {
    "frontend": {"name": "statistics"},
    "normalise": "corpus",
    "backbone": {"name": "mlp", "hidden": [4]},
    "methods": {"fine_tuning": {"steps": 2}, "zero_shot": {}},
}


def _protocol(setups, **changes) -> Protocol:
    facts = {
        "name": "trial",
        "title": "A trial",
        "description": "Made up.",
        "classes": ["angry", "happy", "neutral", "sad"],
        "sources": SOURCES,
        "targets": TARGETS,
        "seeds": [0],
        "episodes": {"shots": [1], "queries": 1, "count": 2},
        "setups": setups,
    }
    return Protocol.model_validate(facts | changes)


def _pairs(seed=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [(source, target, rng.uniform()) for source in SOURCES for target in TARGETS]
    return pd.DataFrame(rows, columns=["source", "target", "uar"])


def _scores(pairs, values, name="score") -> pd.DataFrame:
    return pairs[["source", "target"]].assign(predictor=name, score=values)


def test_a_perfect_and_a_reversed_predictor():
    pairs = _pairs()
    hard = pairs["target"].map({"it_x": 0.0, "ur_y": 5.0, "fa_z": -5.0})  # says which target it is
    found = agreement(_scores(pairs, pairs["uar"] + hard), pairs).iloc[0]
    assert found["within"] == found["within_low"] == found["within_high"] == pytest.approx(1)
    assert found["pooled"] == pytest.approx(spearmanr(pairs["uar"] + hard, pairs["uar"]).statistic)
    best = pairs.groupby("target")["uar"].agg(lambda uar: uar.max() - uar.mean())
    assert found["gain"] == pytest.approx(best.mean())
    assert (found["targets"], found["pairs"]) == (3, 12)
    worst = agreement(_scores(pairs, -pairs["uar"]), pairs).iloc[0]
    assert worst["within"] == pytest.approx(-1) and worst["gain"] < 0
    assert np.isnan(agreement(_scores(pairs, 1.0), pairs).iloc[0]["within"])


def test_the_interval_is_that_of_targets_drawn_again():
    pairs = _pairs()
    score = np.where(pairs["target"] == "it_x", -1, 1) * pairs["uar"]  # wrong on one of three
    found = agreement(_scores(pairs, score), pairs).iloc[0]
    assert found["within"] == pytest.approx(1 / 3)
    assert (found["within_low"], found["within_high"]) == pytest.approx((-1, 1))


def test_controls_hear_nothing_of_the_target(make_task):
    tasks = {name: make_task(name, speakers=n + 2) for n, name in enumerate(SOURCES + TARGETS)}
    pool = Pool(_protocol({"one": SETUP}), tasks, Places())
    pairs = _pairs()
    changed = pairs.copy()
    changed.loc[changed["target"] == "it_x", "uar"] = 0.5
    first, second = (
        controls(pool, table).set_index(["target", "predictor", "source"])["score"]
        for table in (pairs, changed)
    )
    assert first["it_x"].equals(second["it_x"]) and not first["ur_y"].equals(second["ur_y"])
    assert first["it_x", "speakers of the source", "pl_d"] == 5
    assert first["it_x", "clips of the source", "de_a"] == len(tasks["de_a"].table)
    others = pairs[pairs["target"] != "it_x"]
    relative = others["uar"] - others.groupby("target")["uar"].transform("mean")
    wanted = relative[others["source"] == "de_a"].mean()
    name = "UAR that the source gives other targets"
    assert first["it_x", name, "de_a"] == pytest.approx(wanted)


def _row(source, target, digest, uar) -> dict:
    facts = {"sources": [source], "target": target, "digest": digest, "uar": uar, "seed": 0}
    return facts | {"method": "fine_tuning", "confusion": [[1, 1, 0], [0, 2, 0], [0, 0, 0]]}


def _write(folder, *rows):
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_transfer_is_read_from_all_sources(tmp_path):
    _write(tmp_path / "de_a", _row("de_a", "it_x", "one", [0.2, 0.6]))
    _write(tmp_path / "en_b", _row("en_b", "it_x", "one", [1.0, 0.8]))
    found = transfer(tmp_path).set_index("source")
    assert found["uar"].to_dict() == pytest.approx({"de_a": 0.4, "en_b": 0.9})
    assert (found["episodes"] == 2).all() and (found["classes"] == 2).all()


def test_sources_on_different_episodes_are_refused(tmp_path):
    _write(tmp_path / "de_a", _row("de_a", "it_x", "one", [0.2]))
    _write(tmp_path / "en_b", _row("en_b", "it_x", "two", [1.0]))
    with pytest.raises(ValueError, match="different episodes of it_x"):
        transfer(tmp_path)
    with pytest.raises(ValueError, match="must hold rows of single sources"):
        transfer(tmp_path / "empty")


@pytest.fixture
def shifted(make_task, monkeypatch):
    """Tasks of which each lies farther from the targets than the one before, and their features."""
    tasks = {name: make_task(name) for name in SOURCES + TARGETS}
    shift = {name: float(n) for n, name in enumerate(SOURCES)} | {"it_x": -1.0, "ur_y": 4.0}

    def features(task, *_, **__):
        rng = np.random.default_rng(len(task.name))
        values = rng.standard_normal((len(task.table), 1, 3)) + shift.get(task.name, 0)
        hashes = np.array([f"{row:032x}" for row in range(len(task.table))])
        return Features(values.astype(np.float32), np.ones(len(hashes), int), hashes)

    monkeypatch.setattr(plan, "extract", features)
    return tasks


def _chosen(protocol, tasks) -> benchmark.Plan:
    plan = benchmark.Plan(protocol, build.settle(protocol), tasks)
    return benchmark.choose_sources(plan, Places())


def test_a_set_up_learns_from_the_nearest_sources_alone(shifted):
    near = SETUP | {"choose": {"count": 2}}
    far = SETUP | {"choose": {"count": 1, "order": "farthest", "by": "proxy_a"}}
    protocol = _protocol({"all": SETUP, "near": near, "far": far})
    chosen = _chosen(protocol, shifted)
    jobs = {(job.setup, job.targets): job.sources for job in chosen.jobs()}
    assert jobs["all", tuple(TARGETS)] == tuple(SOURCES)
    assert set(jobs["near", ("it_x", "fa_z")]) == {"de_a", "en_b"}
    assert set(jobs["near", ("ur_y",)]) == {"fr_c", "pl_d"}
    assert jobs["far", ("ur_y",)] == ("de_a",)
    for name in ("near", "far"):  # what was chosen stands in the row, not in the settings
        setups = protocol.setups[name], chosen.setups[name], protocol.setups["all"]
        digests = [build.settings(protocol, setup, "fine_tuning") for setup in setups]
        assert digests[0] == digests[1] != digests[2]


def test_choosing_hears_no_label_of_the_target(shifted):
    protocol = _protocol({"near": SETUP | {"choose": {"count": 2}}})
    before = _chosen(protocol, shifted).chosen
    table = shifted["it_x"].table
    table["emotion"] = table["emotion"].to_numpy()[::-1].copy()
    assert _chosen(protocol, shifted).chosen == before


def test_a_choice_is_checked():
    with pytest.raises(ValueError, match="'mmd' or 'proxy_a'"):
        _protocol({"near": SETUP | {"choose": {"count": 2, "by": "class_mmd"}}})


def _tables() -> dict[str, pd.DataFrame]:
    pairs = _pairs().assign(method="fine_tuning", low=0.1, high=0.9, seeds=2, episodes=60)
    pairs["classes"] = np.where(pairs["target"] == "ur_y", 3, 4)
    agreed = agreement(_scores(pairs, pairs["uar"], "a score"), pairs).assign(method="fine_tuning")
    layer = {"target": "it_x", "setup": "one", "layer": "head", "episodes": 20}
    bounds = {"change": 0.25, "change_low": 0.2, "change_high": 0.3}
    bounds |= {"cka": 0.875, "cka_low": 0.8, "cka_high": 0.9}
    bad = {"target": "it_x", "situation": "GSM codec", "shots": 5, "episodes": 50, "uar": 0.5}
    bad |= {"low": 0.4, "high": 0.6, "difference": -0.125}
    bad |= {"difference_low": -0.2, "difference_high": -0.1}
    return {
        "pairs": pairs,
        "agreement": agreed,
        "layers": pd.DataFrame([layer | bounds]),
        "corruptions": pd.DataFrame([bad]),
    }


def test_the_report_says_what_the_tables_hold(tmp_path):
    for name, table in _tables().items():
        study.write_table(tmp_path / "results" / f"{name}.csv", table)
    page = similarity_report.write(tmp_path / "results", tmp_path / "report")
    text = page.read_text()
    for words in (
        "60 episodes a pair over 2 seeds",
        "| ur_y (3) |",
        "| a score | 1.00 [1.00, 1.00]",
        "| one | it_x | head | 0.250 [0.200, 0.300] | 0.875 [0.800, 0.900] |",
        "| it_x | GSM codec | 5 | 50.0 [40.0, 60.0] | −12.5 [−20.0, −10.0] |",
    ):
        assert words in text, words
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"report.md", "transfer.svg", "agreement.svg", "layers.svg"}
    os.remove(tmp_path / "results" / "layers.csv")
    with pytest.raises(FileNotFoundError, match=r"lacks layers.csv: run `metaser transferability"):
        similarity_report.write(tmp_path / "results", tmp_path / "report")


PROTOCOL = """
name = "trial"
title = "A trial"
description = "Made-up languages."
classes = ["angry", "happy", "neutral", "sad"]
sources = ["it_synthetic", "fa_synthetic"]
targets = ["it_synthetic"]
seeds = [0]
episodes = { shots = [1], queries = 1, count = 2 }

[setups.one]
frontend = { name = "log_mel" }
normalise = "corpus"
backbone = { name = "mlp", hidden = [4] }
training = { shots = [1], queries = 1, updates = 2, held_out = 0.5, speakers = "any" }
methods = { fine_tuning = { steps = 2 } }
"""


def _run(*arguments):
    return CliRunner().invoke(app, ["similarity", *map(str, arguments)])


def test_the_command_ranks_and_measures_the_sources_of_a_target(spoken, tmp_path):
    plan = tmp_path / "trial.toml"
    plan.write_text(PROTOCOL)
    places = ["--data", spoken / "audio", "--tasks", spoken / "tasks", "--cache", tmp_path / "c"]
    options = ["--protocol", plan, "--frontend", "log_mel", "--shots", 2, "--measure"]
    files = ["--csv", tmp_path / "t.csv", "--out", tmp_path / "out"]
    result = _run("ur_synthetic", *places, *options, *files)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "t.csv")
    assert set(table["source"]) == {"it_synthetic", "fa_synthetic"}
    measured = table[table["normalise"] == "measured UAR"]
    assert (measured["distance"] == "fine_tuning").all() and (measured["episodes"] == 2).all()
    assert set(table["distance"]) == {"mmd", "proxy_a", "class_mmd", "class_means", "fine_tuning"}
    assert "Sources for ur_synthetic" in result.output


def test_targets_without_audio_or_name_are_refused(tmp_path):
    for target, words in (
        ("it_emovo", "the audio of it_emovo must be present, but is not"),
        ("it_emov", "Did you mean 'it_emovo'?"),
    ):
        result = _run(target, "--data", tmp_path)
        assert result.exit_code == 2 and words in result.output
