"""The speed benchmark's contenders compute the same gradient, and its command keeps what it has."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "speed" / "meta_learning.py"
SPEC = importlib.util.spec_from_file_location("meta_learning", PATH)
speed = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = speed
SPEC.loader.exec_module(speed)


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("contender", [c for c in speed.CONTENDERS if c != speed.COMPILED])
def test_every_contender_gives_the_gradient_of_the_plain_loop(contender, order):
    reason = speed.failure(contender, "mlp", order)
    if reason == "not installed":
        pytest.skip(f"{contender} is absent: pip install -r benchmarks/speed/requirements.txt")
    assert reason is None


@pytest.mark.parametrize("net", ["conv1d", "conv2d", "lstm"])
def test_metaser_gives_the_gradient_of_the_plain_loop_on_every_net(net):
    assert speed.failure("metaser", net, "first") is None


def test_a_contender_that_computes_something_else_is_named_with_its_error(monkeypatch):
    def first_order_always(model, steps, second_order):
        return speed.plain(model, steps, second_order=False)

    monkeypatch.setitem(speed.CONTENDERS, "wrong", first_order_always)
    assert speed.failure("wrong", "mlp", "first") is None
    assert speed.failure("wrong", "mlp", "second").startswith("another gradient: ")


def test_absent_and_failing_contenders_stay_in_the_table_with_the_reason():
    cell = {"net": "mlp", "order": "first", "meta_batch": 4, "steps": 1}
    contenders = {
        "learn2learn": {"failure": None, "seconds": [0.02, 0.04], "first_call": 1.0},
        "higher": {"failure": "not installed"},
        "metaser": {"failure": None, "seconds": [0.01, 0.01], "memory": 2**20, "first_call": 1.0},
    }
    result = {"cell": cell, "machine": {"threads": 1}, "flops": 10**7, "matrix_peak": [10.0**10]}
    text = speed.report([{**result, "contenders": contenders}])
    assert "| [1]" in text and "[1] not installed" in text
    (line,) = [line for line in text.splitlines() if "| metaser " in line and "| mlp" in line]
    assert [cell.strip() for cell in line.split("|")[5:10]] == [
        "metaser",
        "x3.00",
        "100",
        "1.00",
        "10",
    ]


def test_the_command_measures_each_cell_once(tmp_path, monkeypatch, capsys):
    out, markdown = tmp_path / "out.jsonl", tmp_path / "out.md"
    options = "--nets mlp --orders second --meta-batches 2 --steps 1 --contenders metaser"
    options = [*options.split(), "--rounds", "1", "--seconds", "0.01"]
    command = [str(PATH), *options, "--out", str(out), "--markdown", str(markdown)]
    run = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert row["flops"] > 0 and run.stdout == markdown.read_text()
    measured = row["contenders"]["metaser"]
    assert measured["failure"] is None and len(measured["seconds"]) == 1
    assert 0 < measured["memory"] < 2**28

    before = out.read_bytes()
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(speed, "set_up", lambda options: None)
    monkeypatch.setattr(speed, "measure", None)
    speed.main()
    assert capsys.readouterr().out == run.stdout and out.read_bytes() == before
