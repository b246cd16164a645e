"""Two processes that share a meta-batch arrive where one process arrives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metaser.distributed import process_group, rank, share, sum_over_processes

SCRIPT = """
import sys

import numpy as np
import pandas as pd
import torch

from metaser.backbones import MLP
from metaser.distributed import process_group, rank
from metaser.episodes import TaskSampler
from metaser.features import Features
from metaser.methods.maml import MAML
from metaser.model import Model
from metaser.tasks import Task
from metaser.training import Source, Training, train

CLASSES = ("angry", "sad")


def source(name, seed):
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


torch.set_num_threads(1)
sources = [source("aa_one", 0), source("bb_two", 1)]
torch.manual_seed(0)
known = {"speaker": 8, "corpus": 2}
model = Model(MLP(3, (5,)), 2)
method = MAML(model, second_order=True, terms={"adversary": 0.5}, domains=known).double()
plan = Training(updates=4, meta_batch=5, validate_every=2, validation_episodes=3)
with process_group():
    history = train(method, sources, sources, plan)
    if rank() == 0:
        torch.save({"state": method.state_dict(), "history": history}, sys.argv[1])
"""


def _train(tmp_path: Path, processes: int) -> dict:
    script, out = tmp_path / "script.py", tmp_path / f"{processes}.pt"
    script.write_text(SCRIPT)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    launch = launch if processes > 1 else []
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, *launch, str(script), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return torch.load(out, weights_only=True)


def test_two_processes_train_as_one(tmp_path):
    one, two = (_train(tmp_path, processes) for processes in (1, 2))
    for key, value in one["state"].items():
        torch.testing.assert_close(two["state"][key], value, rtol=1e-9, atol=1e-12)
    for first, second in zip(one["history"], two["history"], strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-10)
        assert second["validation"] == pytest.approx(first["validation"], rel=1e-10)


def test_a_lone_process_shares_with_nobody():
    tensor = torch.tensor([1.0, 2.0])
    with process_group():
        assert rank() == 0
        assert share([1, 2, 3]) == [1, 2, 3]
        sum_over_processes([tensor])
    assert tensor.tolist() == [1.0, 2.0]


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


def test_a_benchmark_shared_by_two_processes_gives_the_rows_of_one(spoken, tmp_path):
    (tmp_path / "small.toml").write_text(PROTOCOL)
    rows = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        script = "from metaser.cli import app; app()"
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        launch = [sys.executable, *launch, "--no-python"] if processes > 1 else []
        place = ["--data", spoken / "audio", "--tasks", spoken / "tasks", "--cache", tmp_path]
        subprocess.run(
            [
                *launch,
                sys.executable,
                "-c",
                script,
                "benchmark",
                tmp_path / "small.toml",
                *place,
                "--out",
                out,
            ],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
            check=True,
            timeout=180,
        )
        found = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
        rows.append({row["method"]: (row["uar"], row["digest"]) for row in found})
        assert len(found) == 2
    assert rows[0] == rows[1]
