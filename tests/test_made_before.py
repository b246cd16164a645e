"""Files made before the modules moved into rooms are read unchanged, and digests stay the same.

``made_before`` holds a model trained on made-up speech, the same model adapted, the rows of a small
run, a store of features, and digests (``golden.json``). All were made by the code as it stood
before the move, except for ``store_codes``: what the names of stores say of the code, since words
no longer count there.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from metaser.adaptation.model_file import load
from metaser.batch import Padded
from metaser.features import cache, store
from metaser.frontends import FAMILIES
from metaser.protocol import Protocol
from metaser.protocol.build import settings, training_key
from metaser.report import read_rows, write

HERE = Path(__file__).parent / "made_before"
GOLDEN = json.loads((HERE / "golden.json").read_text(encoding="utf-8"))
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
OLDER = ("icassp2021", "tuning", "tuning_steps")
"""Results whose digests still held default values: they are older than these files, too."""


@pytest.mark.parametrize("name", ["model", "adapted"])
def test_a_model_file_scores_as_it_did(name):
    file = load(HERE / f"{name}.safetensors")
    rng = np.random.default_rng(0)
    values = rng.standard_normal((5, 1, file.header.channels["audio"])).astype(np.float32)
    frames = Padded(torch.from_numpy(values), torch.ones(5, 1, dtype=torch.bool))
    with torch.no_grad():
        scores = file.predictor({"audio": frames})
    torch.testing.assert_close(scores, torch.tensor(GOLDEN["scores"][name]))


def test_rows_are_read_and_reported(tmp_path):
    rows = read_rows(HERE)
    assert set(rows["method"]) == {"metaser", "logistic_regression", "majority"}
    page, _ = write(HERE, tmp_path)
    assert "A trial" in page.read_text(encoding="utf-8")


def test_a_store_is_read():
    index = json.loads((HERE / "store" / "index.json").read_text(encoding="utf-8"))
    values = store.read(HERE / "store", index["contents"])
    assert len(values) == len(index["contents"])
    whole = np.fromfile(HERE / "store" / "values.f32", np.float32)
    assert np.array_equal(np.asarray(values)[:, 0], whole.reshape(len(values), -1))


@pytest.fixture
def name_of_store(monkeypatch):
    """Name the store of a modality and front end, whatever the versions of libraries."""
    monkeypatch.setattr(cache, "version", lambda package: "1")
    cache.code_digest.cache_clear()

    def name_of(name):
        modality, frontend = name.split()
        made = FAMILIES[modality][frontend]()
        return cache.store_name(getattr(made, "extracted", made), None)

    yield name_of
    cache.code_digest.cache_clear()


@pytest.mark.parametrize("name", GOLDEN["store_names"])
def test_stores_keep_the_names_of_front_ends_and_arguments(name, name_of_store):
    """The last part of a name, the code, is that of 0.1.0 no more: words no longer count."""
    before, _, code = GOLDEN["store_names"][name].rpartition("-")
    now, _, own_code = name_of_store(name).rpartition("-")
    assert now == before
    assert own_code != code


@pytest.mark.skipif(
    sys.version_info[:2] != tuple(GOLDEN["store_codes"]["python"]),
    reason="another version of Python may write the same code in another form",
)
@pytest.mark.parametrize("name", GOLDEN["store_names"])
def test_stores_are_not_outdated_unawares(name, name_of_store):
    """This fails when the code of a front end changes: every user then extracts anew.

    Where that is meant, say so in the changelog and take over the new code here.
    """
    assert name_of_store(name).rpartition("-")[2] == GOLDEN["store_codes"][name]


def _protocol(results: Path) -> Protocol:
    protocol = json.loads((results / "run.json").read_text(encoding="utf-8"))["protocol"]
    for setup in protocol["setups"].values():  # what was chosen is no part of a protocol any more
        setup.pop("sources_for", None)
    return Protocol.model_validate(protocol)


MEASURED = [path.parent for path in sorted(RESULTS.glob("*/run.json"))]


@pytest.mark.parametrize(
    "results", [r for r in MEASURED if r.name not in OLDER], ids=lambda path: path.name
)
def test_committed_rows_keep_the_digests_of_their_settings(results):
    protocol = _protocol(results)
    lines = (results / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines):
        if row["method"] in protocol.setups[row["setup"]].methods:
            setup = protocol.setups[row["setup"]]
            assert row["settings"] == settings(protocol, setup, row["method"])


def test_trainings_keep_the_names_of_their_checkpoints():
    for name, key in GOLDEN["trainings"].items():
        folder, setup, method = name.split()
        assert training_key(method, _protocol(RESULTS / folder).setups[setup]) == key


@pytest.mark.parametrize(
    "path", sorted(RESULTS.rglob("*.jsonl")), ids=lambda path: str(path.relative_to(RESULTS))
)
def test_every_committed_row_says_version_seed_and_task_version(path):
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        assert re.fullmatch(r"\d+\.\d+\.\d+.*", row.get("metaser") or row["version"])
        assert row.get("seeds", row.get("seed")) not in (None, [])
        assert row["task_version"] >= 1
