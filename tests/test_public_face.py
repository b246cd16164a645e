"""What ``import metaser`` offers: names that load when they are used, and paths as strings."""

import ast
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import metaser

PACKAGE = Path(metaser.__file__).parent
STUB = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
# Public name -> the module that it comes from, "" for a module itself.
NAMES = {
    alias.asname or alias.name: node.module or ""
    for node in STUB.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}

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
count = 2

[setups.plain]
frontend = { name = "statistics" }
normalise = "corpus"
backbone = { name = "mlp", hidden = [8] }

[setups.plain.training]
shots = [1]
queries = 1
held_out = 0.5
updates = 4
validate_every = 2
validation_episodes = 2
meta_batch = 2

[setups.plain.methods]
inner_loop_alone = { method = "metaser", adapt_steps = 2 }
"""


def _python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_list_of_names_holds_imports_and_the_version_alone():
    others = [node for node in STUB.body if not isinstance(node, ast.ImportFrom)]
    assert [ast.unparse(node) for node in others] == ["__version__: str"]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_is_there_and_documented(name):
    value = getattr(metaser, name)
    if inspect.ismodule(value) or inspect.isclass(value) or callable(value):
        documented = value
    else:  # data is explained by the module that it comes from
        documented = importlib.import_module(f"metaser.{NAMES[name]}")
        assert name in inspect.getdoc(documented)
    assert inspect.getdoc(documented)


def test_dir_lists_the_names():
    assert set(dir(metaser)) == {*NAMES, "__version__"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'metaser' has no attribute 'adpat'"):
        _ = metaser.adpat
    assert not hasattr(metaser, "_private")


def test_import_loads_nothing_heavy():
    program = (
        "import sys; before = set(sys.modules); import metaser; dir(metaser)\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = _python(program).split()
    heavy = {"torch", "pandas", "librosa", "numpy", "scipy", "sklearn", "pydantic"}
    assert "metaser" in loaded
    assert not heavy & set(loaded)
    assert len(loaded) < 100


@pytest.mark.parametrize("name", ["read_rows", "write_report", "uar"])
def test_light_names_load_no_torch(name):
    assert _python(f"import sys, metaser; metaser.{name}; print('torch' in sys.modules)") == (
        "False\n"
    )


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "metaser", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert metaser.__version__ in done.stdout


def test_type_checkers_are_told_that_there_are_types():
    assert (PACKAGE / "py.typed").is_file()


@pytest.fixture(scope="module")
def used(spoken, tmp_path_factory) -> SimpleNamespace:
    """Everything that a user does, once and tiny, with paths as strings."""
    place = tmp_path_factory.mktemp("used")
    data, folders, cache = str(spoken / "audio"), str(spoken / "tasks"), str(place / "cache")
    protocol = str(place / "tiny.toml")
    Path(protocol).write_text(PROTOCOL, encoding="utf-8")

    task = metaser.read_task("ur_synthetic", data, folders)
    features = metaser.extract(task, metaser.make_frontend({"name": "statistics"}), cache)
    results = str(place / "results")
    rows = metaser.run_benchmark(protocol, results, data=data, task_folders=folders, cache=cache)
    page, _ = metaser.write_report(results, str(place / "report"))

    path = str(place / "model.safetensors")
    places = {"data": data, "folders": folders, "cache": cache}
    trained = metaser.train_model(path, protocol=protocol, draws=2, **places)

    clips = place / "clips"
    for emotion, group in task.table.groupby("emotion"):
        (clips / str(emotion)).mkdir(parents=True)
        for name in group["file"][:2]:
            (clips / str(emotion) / Path(name).name).symlink_to(task.audio / name)
    adapted = metaser.adapt(path, str(clips))
    adapted_path = str(place / "adapted.safetensors")
    metaser.save_model(adapted, adapted_path)
    file = str(task.audio / task.table["file"].iloc[-1])
    return SimpleNamespace(
        task=task,
        features=features,
        results=results,
        rows=rows,
        page=page,
        trained=trained,
        loaded=metaser.load_model(path),
        adapted=metaser.load_model(adapted_path),
        prediction=metaser.predict(adapted_path, file),
        evaluation=metaser.evaluate(adapted_path, "ur_synthetic", **places),
    )


def test_a_task_is_read_and_extracted(used):
    assert used.task.name == "ur_synthetic"
    assert len(used.features.values) == len(used.task.table)


def test_a_benchmark_is_run_and_reported(used):
    (row,) = (json.loads(line) for line in used.rows.read_text().splitlines())
    assert (row["method"], row["target"]) == ("inner_loop_alone", "ur_synthetic")
    assert len(metaser.score_table(metaser.read_rows(used.results))) == 2
    assert "Tiny" in used.page.read_text(encoding="utf-8")


def test_a_model_is_trained_adapted_and_used(used):
    assert used.trained.header == used.loaded.header
    assert used.loaded.header.adaptation is None
    assert used.adapted.header.adaptation is not None
    assert used.prediction["emotion"].iloc[0] in used.task.classes
    assert used.evaluation.left_out == 8
    assert 0 <= used.evaluation.uar.value <= 1
