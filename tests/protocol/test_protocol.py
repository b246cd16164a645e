import copy
import tomllib

import pytest

from metaser.protocol import BUNDLED, Protocol, read_protocol

TEXT = """
name = "trial"
title = "A trial"
description = "Two methods on made-up languages."
classes = ["angry", "happy", "neutral", "sad"]
sources = ["it_synthetic", "fa_synthetic"]
targets = ["ur_synthetic"]
seeds = [0, 1]

[episodes]
shots = [1, 5]
queries = 2
count = 3

[setups.mel]
frontend = { name = "log_mel", bands = 16 }
normalise = "corpus"
backbone = { name = "mlp", hidden = [8] }

[setups.mel.training]
updates = 10
rate = 1

[setups.mel.methods]
metaser = { adapt_steps = 2 }
majority = {}
"""


def _read(tmp_path, *changes):
    text = TEXT
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    path = tmp_path / "trial.toml"
    path.write_text(text)
    return read_protocol(path)


def test_values_arrive_as_written(tmp_path):
    protocol = _read(tmp_path)
    facts = tomllib.loads(TEXT)
    assert protocol.sources == facts["sources"] and protocol.seeds == [0, 1]
    assert protocol.episodes.shots == [1, 5] and protocol.split is None
    setup = protocol.setups["mel"]
    assert setup.methods == facts["setups"]["mel"]["methods"]
    assert setup.training.updates == 10 and setup.training.rate == 1
    assert protocol.speakers == "disjoint" and not protocol.leave_one_language_out


CLASSIFYING = [
    path for path in sorted(BUNDLED.glob("*.toml")) if "kind" not in tomllib.loads(path.read_text())
]


@pytest.mark.parametrize("path", CLASSIFYING, ids=lambda path: path.stem)
def test_bundled_protocols_are_valid_and_named_by_their_file(path):
    protocol = read_protocol(path.stem)
    assert protocol.name == path.stem
    assert Protocol.model_validate(copy.deepcopy(protocol.model_dump())) == protocol


@pytest.mark.parametrize(
    "old, new, words",
    [
        ('title = "A trial"', 'titel = "A trial"', "unknown key 'titel'. Did you mean 'title'"),
        (
            "queries = 2",
            "query = 2",
            r"unknown key 'query' in \[episodes\]. Did you mean 'queries'",
        ),
        ("normalise =", "normalize =", r"'normalize' in \[setups.mel\]. Did you mean 'normalise'"),
        (
            "updates = 10",
            "update = 10",
            r"'update' in \[setups.mel.training\]. Did you mean 'updates'",
        ),
        ("seeds = [0, 1]", "seeds = [0]\nshots = [1]", "unknown key 'shots'. Known: name, title"),
        ("count = 3", "", r"key 'count' is missing in \[episodes\]"),
        (
            "count = 3",
            "count = 0",
            r"count in \[episodes\] must be greater than or equal to 1, not 0",
        ),
        ("count = 3", 'count = "3"', r"count in \[episodes\] must be .*not '3'"),
        ("count = 3", "count = true", r"count in \[episodes\] must be .*not True"),
        ("count = 3", "count = 2.5", r"count in \[episodes\] must be .*not 2.5"),
        ('normalise = "corpus"', 'normalise = "task"', "'speaker' or 'voice', not 'task'"),
        ("seeds = [0, 1]", "seeds = [-1]", r"0 in \[seeds\] must be .*not -1"),
        ("seeds = [0, 1]", "seeds = []", "seeds: .*at least 1 item"),
        ("seeds = [0, 1]", "seeds = [1, 1]", "1 is named twice"),
        ("shots = [1, 5]", "shots = [5, 1, 5]", "5 is named twice"),
        ('"fa_synthetic"]', '"it_synthetic"]', "'it_synthetic' is named twice"),
        ('"neutral", "sad"', '"neutral", "angry"', "'angry' is named twice"),
        ('targets = ["ur_synthetic"]', "", "no targets.*leave_one_language_out"),
        ("[episodes]", "[split]\ntest = 0.3\nfractions = [0.5]\n[episodes]", "either.*or"),
        ('name = "trial"', 'name = "trial', "not valid TOML"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path, old, new, words):
    with pytest.raises(ValueError, match=words) as caught:
        _read(tmp_path, (old, new))
    assert "trial.toml" in str(caught.value)


SPLIT = (
    "[episodes]\nshots = [1, 5]\nqueries = 2\ncount = 3",
    "[split]\ntest = 0.3\nfractions = [1.0]",
)


def test_a_split_says_that_it_ignores_speakers(tmp_path):
    with pytest.raises(ValueError, match="speakers = 'any'"):
        _read(tmp_path, SPLIT)
    aloud = ("seeds = [0, 1]", 'seeds = [0, 1]\nspeakers = "any"')
    assert _read(tmp_path, SPLIT, aloud).split.fractions == [1.0]


def test_an_unknown_protocol_is_told_with_the_known_ones():
    with pytest.raises(FileNotFoundError, match="no protocol 'smoek'.*'smoke'"):
        read_protocol("smoek")
