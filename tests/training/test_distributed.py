"""Two processes that share the work arrive where one process arrives.

One process is that of the tests; two are of ``torchrun``, which runs this file as a program. It is
started once a test: a second group of the same processes could meet what is left of the first.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from metaser.backbones import MLP
from metaser.cli import app
from metaser.episodes import TaskSampler
from metaser.features import Features
from metaser.machine import process_group, rank, share, sum_over_processes
from metaser.methods.maml import MAML
from metaser.model import Model
from metaser.tasks import Task
from metaser.training import Source, Training, train

CLASSES = ("angry", "sad")
PROTOCOL = """
name = "small"
title = "Small"
description = "Two processes."
classes = ["angry", "happy", "neutral", "sad"]
sources = ["fa_synthetic", "it_synthetic"]
targets = ["ur_synthetic"]
speakers = "disjoint"
seeds = [0]
episodes = { shots = [1], queries = 1, count = 3 }

[setups.mlp]
frontend = { name = "statistics" }
normalise = "corpus"
backbone = { name = "mlp", hidden = [8] }
training = { shots = [1], queries = 1, updates = 4, held_out = 0.5 }
methods = { metaser = {}, chance = {} }
"""


def _source(name: str, seed: int) -> Source:
    rng = np.random.default_rng(seed)
    rows = [(f"{s}{e}{i}", f"s{s}", e, s) for s in range(4) for e in CLASSES for i in range(6)]
    table = pd.DataFrame(rows, columns=["file", "speaker", "emotion", "unit"])
    table["clique"] = np.arange(len(table))
    facts = dict.fromkeys(Task.__dataclass_fields__, None)
    facts |= {"name": name, "version": 1, "table": table}
    values = rng.standard_normal((len(table), 1, 3))
    hashes = table["file"].to_numpy()
    speaker = 4 * seed + table["speaker"].str[1:].astype(int).to_numpy()
    domains = {"speaker": speaker, "corpus": np.full(len(table), seed)}
    features = Features(values, np.ones(len(table), int), hashes, domains=domains)
    return Source(TaskSampler(Task(**facts), CLASSES, 1 + seed, 3), features)


def training(out: str) -> None:
    """Train a method; the first process writes its parameters and its history."""
    sources = [_source("aa_one", 0), _source("bb_two", 1)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, known = Model(MLP(3, (5,)), 2), {"speaker": 8, "corpus": 2}
        method = MAML(model, second_order=True, terms={"adversary": 0.5}, domains=known).double()
    plan = Training(updates=4, meta_batch=5, validate_every=2, validation_episodes=3)
    with process_group():
        history = train(method, sources, sources, plan)
        if rank() == 0:
            torch.save({"state": method.state_dict(), "history": history}, out)


def command(*arguments: str) -> None:
    """Run a command of MetaSER."""
    app(arguments, standalone_mode=False)


def _in_two_processes(work: str, *arguments) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, __file__, work, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr


def test_two_processes_train_as_one(tmp_path):
    training(str(tmp_path / "1.pt"))
    _in_two_processes("training", tmp_path / "2.pt")
    one, two = (torch.load(tmp_path / f"{count}.pt", weights_only=True) for count in (1, 2))
    for key, value in one["state"].items():
        torch.testing.assert_close(two["state"][key], value, rtol=1e-9, atol=1e-12)
    for first, second in zip(one["history"], two["history"], strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-10)
        assert second["validation"] == pytest.approx(first["validation"], rel=1e-10)


def test_a_benchmark_shared_by_two_processes_gives_the_rows_of_one(spoken, tmp_path):
    (tmp_path / "small.toml").write_text(PROTOCOL)
    place = ["--data", spoken / "audio", "--tasks", spoken / "tasks", "--cache", tmp_path]
    arguments = list(map(str, ["benchmark", tmp_path / "small.toml", *place, "--out"]))
    command(*arguments, str(tmp_path / "1"))
    _in_two_processes("command", *arguments, tmp_path / "2")
    rows = []
    for processes in "12":
        lines = (tmp_path / processes / "rows.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        rows.append({row["method"]: (row["uar"], row["digest"]) for row in found})
        assert len(found) == 2
    assert rows[0] == rows[1]


def test_a_lone_process_shares_with_nobody():
    tensor = torch.tensor([1.0, 2.0])
    with process_group():
        assert rank() == 0
        assert share([1, 2, 3]) == [1, 2, 3]
        sum_over_processes([tensor])
    assert tensor.tolist() == [1.0, 2.0]


if __name__ == "__main__":
    {"training": training, "command": command}[sys.argv[1]](*sys.argv[2:])
