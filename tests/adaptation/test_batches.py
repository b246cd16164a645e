"""`metaser predict` on many files: each has a row or a named reason."""

import codecs
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from builders import write_noise
from typer.testing import CliRunner

from metaser.cli import app

MODEL = "starter-light"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for name in ("a.wav", "b é.wav", "c.wav"):
        write_noise(folder / name, np.random.default_rng(len(name)), 16000)
    return folder


def _predict(*arguments, stdin=None, csv):
    command = ["predict", MODEL, *map(str, arguments), "--csv", str(csv)]
    done = CliRunner().invoke(app, command, input=stdin)
    rows = pd.read_csv(csv)["file"].tolist() if csv.is_file() else []
    return done, [os.path.basename(name) for name in rows]


@pytest.mark.parametrize("window", [(), ("--window", "1")])
def test_the_rest_is_written_and_what_failed_is_named(clips, tmp_path, window):
    folder = tmp_path / "batch"
    shutil.copytree(clips, folder)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "film.mkv").write_bytes(b"film")
    (folder / "aa.wav").write_text("no sound")
    (folder / ".DS_Store").write_text("")
    absent = tmp_path / "absent.wav"
    done, rows = _predict(folder, absent, *window, csv=tmp_path / "x.csv")
    assert sorted(set(rows)) == ["a.wav", "b é.wav", "c.wav"]
    assert done.exit_code == 1
    assert "4 of 7 files were not predicted" in done.output
    for name in ("empty.wav", "film.mkv", "aa.wav", "absent.wav"):
        assert name in done.output
    assert ".DS_Store" not in done.output


def test_where_nothing_can_be_read_there_is_no_table(tmp_path):
    (tmp_path / "a.wav").write_text("no sound")
    done, rows = _predict(tmp_path, csv=tmp_path / "x.csv")
    assert (done.exit_code, rows) == (2, [])
    assert "a.wav" in done.output and not (tmp_path / "x.csv").exists()


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\0"])
def test_names_on_standard_input_come_as_any_system_writes_them(clips, tmp_path, mark, end):
    names = [str(clips / name).encode() for name in ("c.wav", "b é.wav")]
    done, rows = _predict("-", stdin=mark + end.join([*names, b""]), csv=tmp_path / "x.csv")
    assert done.exit_code == 0, done.output
    assert rows == ["c.wav", "b é.wav"]


def test_wrong_windows_are_an_error_of_the_command_and_not_of_each_file(clips, tmp_path):
    done, _ = _predict(clips, "--window", "1", "--hop", "2", csv=tmp_path / "x.csv")
    assert done.exit_code == 2 and "0 < hop <= window" in done.output


def test_a_name_that_is_no_utf8_has_a_row_or_a_reason(clips, tmp_path):
    odd = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    shutil.copy(clips / "a.wav", odd)
    done, rows = _predict(tmp_path, clips, csv=tmp_path / "x.csv")
    assert set(rows) >= {"a.wav", "b é.wav", "c.wav"}
    assert ("caf\\udce9.wav" in rows) != ("caf\\udce9.wav" in done.output)
