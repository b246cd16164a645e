import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from metaser.rows import append_row, cut_torn_line, read_rows


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "rows.jsonl"
    for number in range(3):
        append_row(path, {"seed": number, "text": "sanità\u2028 \n", "uar": [0.5, number]})
    return path


def test_rows_come_back_as_they_were(path):
    assert read_rows(path) == [
        {"seed": number, "text": "sanità\u2028 \n", "uar": [0.5, number]} for number in range(3)
    ]
    assert len(path.read_text().splitlines()) == 3


def test_no_file_is_no_rows(tmp_path):
    assert read_rows(tmp_path / "rows.jsonl") == []
    cut_torn_line(tmp_path / "rows.jsonl")
    assert not list(tmp_path.iterdir())


def test_nan_is_written_as_null(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, {"uar": [0.5, math.nan], "cost": {"seconds": math.nan}, "shots": None})
    written = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert written == {"uar": [0.5, None], "cost": {"seconds": None}, "shots": None}


def test_what_json_cannot_hold_leaves_the_file_as_it_was(path):
    before = path.read_bytes()
    for value in (math.inf, object()):
        with pytest.raises((ValueError, TypeError)):
            append_row(path, {"uar": value})
    assert path.read_bytes() == before


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_last_line_that_is_cut_short_is_told_left_out_and_removed(path, kept):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:kept])
    with pytest.warns(UserWarning, match="line 3.*cut short.*measured again"):
        assert [row["seed"] for row in read_rows(path)] == [0, 1]
    cut_torn_line(path)
    assert path.read_bytes() == b"".join(lines[:2])
    append_row(path, {"seed": 9})
    assert [row["seed"] for row in read_rows(path)] == [0, 1, 9]


def test_whole_files_are_not_cut(path):
    before = path.read_bytes()
    cut_torn_line(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", ["{", "[1, 2]", "", "nonsense"])
def test_any_other_broken_line_is_refused_by_its_number(path, line):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + line + "\n" + lines[1])
    with pytest.raises(ValueError, match="rows.jsonl: line 2 .*delete it"):
        read_rows(path)


def test_rows_written_at_once_stay_whole(path):
    long = "x" * 20000
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: append_row(path, {"seed": seed, "text": long}), range(3, 63)))
    assert sorted(row["seed"] for row in read_rows(path)) == list(range(63))


def test_a_disk_that_fills_up_loses_no_row(tmp_path):
    """A limit on the size of files stands for the full disk: the write that hits it is partial."""
    path = tmp_path / "rows.jsonl"
    program = (
        "import resource, sys; from pathlib import Path; from metaser.rows import append_row\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "for number in range(100): append_row(Path(sys.argv[1]), {'number': number})\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    stopped = subprocess.run(command, capture_output=True, text=True)
    assert stopped.returncode != 0 and "OSError" in stopped.stderr
    assert 980 < path.stat().st_size <= 1000
    assert path.read_bytes().endswith(b"\n")  # the part of a row that was written is cut off
    assert f"{path} must be written, but cannot be (File too large)" in stopped.stderr
    whole = path.read_bytes().count(b"\n")
    append_row(path, {"number": whole})
    assert [row["number"] for row in read_rows(path)] == list(range(whole + 1))
