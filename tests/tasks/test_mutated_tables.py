"""Whatever stands in a task's files, it is read rightly or refused in words.

An error that a user can mend is a ValueError or an OSError; the command prints it as one line.
"""

import contextlib
import csv
import io
import unicodedata
from itertools import repeat
from pathlib import Path

import pytest
import tomli_w
from builders import write_noise
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from numpy.random import default_rng

from metaser import tasks
from metaser.protocol.schema import BUNDLED, read_protocol
from metaser.tasks.identity import is_known, one_spelling, plain_text
from metaser.tasks.label_tables import read_table
from metaser.tasks.matching import file_finder
from metaser.tasks.text_tables import read_text_table

FEW, MANY = 60, 3000
PLAIN = {"deadline": None, "derandomize": True, "database": None}
PLAIN["suppress_health_check"] = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
"""The same tries in every run, in a folder that is made once for all of them."""

few = settings(max_examples=FEW, **PLAIN)
many = settings(max_examples=MANY, **PLAIN)

LETTERS = st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/\\")
NAMES = st.text(LETTERS, min_size=1, max_size=8).filter(
    lambda name: name.strip() == name and name.strip(".~") and not name.startswith("~")
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join).map(lambda path: f"{path}.wav")

TASK = {
    "language": "sw",
    "corpus": "Test",
    "audio": "test",
    "version": 1,
    "speakers": 2,
    "utterances": 8,
    "licence": "CC0",
    "homepage": "https://example.org",
    "reference": "none",
    "table": {
        "file": "t.csv",
        "place": "task",
        "columns": {"file": "file", "speaker": "speaker", "emotion": "code"},
    },
    "emotion": {"a": "angry", "h": "happy", "drop": ["x"]},
    "duplicates": {"files": [["0", "1"]], "speakers": [["s1", "s2"]]},
    "examples": {"0.wav": {"speaker": "s1", "emotion": "angry"}},
}
TABLE = 'file,speaker,code,text\n0.wav,s1,a,"one, two"\n1.wav,s2,h,\nb\\2.wav,s2,x,"say ""no"""\n'


def _mutated(content: bytes, cuts: list[tuple[int, int, bytes]]) -> bytes:
    """Replace stretches by other bytes."""
    for place, length, put in cuts:
        start = place % (len(content) + 1)
        content = content[:start] + put + content[start + length :]
    return content


PIECES = st.sampled_from(
    [b"", b"(?P<", b'"', b"'", b",", b";", b"\t", b"\n", b"\r", b"\0", b"=", b"[", b"]", b"{"]
    + [
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xe9",
        b"true",
        b"-1",
        b"1e999",
        b"nan",
        b"[[",
        b"#",
        b"(?P<",
    ]
) | st.binary(max_size=4)
CUTS = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 12), PIECES), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    for i in range(3):
        write_noise(folder / f"data/test/{i}.wav", default_rng(i), 800)
    (folder / "sw_test").mkdir()
    return folder


def _read_mutated_task(place, cuts, what):
    toml, table = tomli_w.dumps(TASK).encode(), TABLE.encode()
    (place / "sw_test/task.toml").write_bytes(_mutated(toml, cuts) if what == "toml" else toml)
    (place / "sw_test/t.csv").write_bytes(_mutated(table, cuts) if what == "table" else table)
    for strict in (True, False):
        with contextlib.suppress(ValueError, OSError):
            task = tasks.read_task(place / "sw_test", place / "data", strict=strict)
            assert what == "toml" or all(map(_of_one_line, repeat(place), task.table.itertuples()))


def _of_one_line(place, row):
    """Whether a line of the table names both the file of a row and its speaker."""
    text = (place / "sw_test/t.csv").read_bytes().decode("utf-8-sig", "replace")
    lines = unicodedata.normalize("NFC", text).replace("\r", "\n").split("\n")
    return any(Path(row.file).stem in line and row.speaker in line for line in lines)


@pytest.mark.parametrize("what", ["toml", "table"])
@few
@given(cuts=CUTS)
def test_a_mutated_task_is_read_or_refused(place, what, cuts):
    _read_mutated_task(place, cuts, what)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["toml", "table"])
@many
@given(cuts=CUTS)
def test_many_mutated_tasks_are_read_or_refused(place, what, cuts):
    _read_mutated_task(place, cuts, what)


def _read_mutated_protocol(place, name, cuts):
    (place / "p.toml").write_bytes(_mutated((BUNDLED / f"{name}.toml").read_bytes(), cuts))
    with contextlib.suppress(ValueError, OSError):
        read_protocol(place / "p.toml")


@few
@given(cuts=CUTS)
def test_a_mutated_protocol_is_read_or_refused(place, cuts):
    _read_mutated_protocol(place, "smoke", cuts)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smoke", "unseen_language_2"])
@many
@given(cuts=CUTS)
def test_many_mutated_protocols_are_read_or_refused(place, name, cuts):
    _read_mutated_protocol(place, name, cuts)


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".xlsx"])
@few
@given(content=st.binary(max_size=200) | CUTS.map(lambda cuts: _mutated(TABLE.encode(), cuts)))
@example(content=b"PK\x03\x04")
@example(content=b"{}")
@example(content=b'{"file": ' * 50)
def test_any_bytes_are_a_table_or_refused(place, kind, content):
    path = place / f"t{kind}"
    path.write_bytes(content)
    with contextlib.suppress(ValueError, OSError):
        assert all(isinstance(cell, str) for row in read_table(path).to_numpy() for cell in row)


@few
@given(
    rows=st.lists(st.tuples(NAMES, st.text(LETTERS | st.sampled_from('",\n;')), NAMES), min_size=1),
    separator=st.sampled_from(",;\t|"),
)
def test_what_csv_writes_is_read_as_it_was_or_refused_by_its_line(place, rows, separator):
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows([("file", "text", "speaker"), *rows])
    (place / "t.csv").write_bytes(text.getvalue().encode())
    tidy = [tuple(unicodedata.normalize("NFC", cell).strip() for cell in row) for row in rows]
    try:
        read = [tuple(row) for row in read_text_table(place / "t.csv", separator).to_numpy()]
    except ValueError as error:
        read = str(error)
    assert read == tidy or "line " in read


@few
@given(files=st.lists(PATHS, min_size=1, max_size=6, unique_by=plain_text))
def test_every_file_is_found_by_its_own_path_on_any_system(files):
    find = file_finder(files, Path("/data/corpus"))
    for file in files:
        windows = file.replace("/", "\\")
        forms = [file, windows, f"./{file}", f".\\{windows}", f"/data/corpus/{file}"]
        forms += [unicodedata.normalize("NFD", file), f"corpus/{file}"]
        for form in forms[: None if file.count("/") < 2 else 3]:
            assert file in find(form)
        assert find(file) == [file]


@few
@given(name=NAMES, spaces=st.sampled_from(["", " ", "  "]), form=st.sampled_from(["NFC", "NFD"]))
def test_a_person_is_the_same_in_any_spelling(name, spaces, form):
    assume(is_known(name))
    other = f"{spaces}{unicodedata.normalize(form, name)}{spaces}"
    first, second, third = one_spelling([name, other, f"{name}x"])
    assert first == second != third
    assert plain_text(first) == plain_text(name)
