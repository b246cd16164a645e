"""Tables of text: a row is what stands in its line, or an error names the line."""

import csv
import io

import pytest
import tomli_w
from builders import write_noise
from numpy.random import default_rng

from metaser import tasks
from metaser.tasks.label_tables import read_table
from metaser.tasks.matching import by_table, file_finder, of_clips
from metaser.tasks.text_tables import read_text_table

HEAD = ("file", "text", "speaker", "emotion")
ROWS = [(f"{i}.wav", "hello", f"s{i}", "angry" if i % 2 else "sad") for i in range(6)]


def _write(path, rows=ROWS, separator=",", head=HEAD):
    lines = [separator.join(row) for row in [head, *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("separator", ["\t", "|"])
@pytest.mark.parametrize("quoted", [(1,), (1, 3), (1, 2), (0, 2, 5)])
def test_quotes_that_stay_open_join_no_rows(tmp_path, separator, quoted):
    rows = [(f, '"hello' if i in quoted else t, s, e) for i, (f, t, s, e) in enumerate(ROWS)]
    table = read_text_table(_write(tmp_path / "t.tsv", rows, separator), separator)
    assert [tuple(row) for row in table.to_numpy()] == rows


@pytest.mark.parametrize("quoted", [(1,), (1, 3), (1, 2), (0, 2, 5)])
@pytest.mark.parametrize("form", ['"hello', 'hello"', '"he"llo'])
def test_open_quotes_between_commas_are_read_as_they_stand_or_refused(tmp_path, quoted, form):
    rows = [(f, form if i in quoted else t, s, e) for i, (f, t, s, e) in enumerate(ROWS)]
    path = _write(tmp_path / "t.csv", rows)
    try:
        read = [tuple(row) for row in read_text_table(path).to_numpy()]
    except ValueError as error:
        read = str(error)
    assert read == rows or f"line {quoted[0] + 2}: a quote must be closed" in read


def test_a_closed_quote_hides_separators_and_line_breaks_as_csv_writers_write_it(tmp_path):
    rows = [("a.wav", 'she said "no", twice', "s1", "sad"), ("b.wav", "one\ntwo", "s2", "angry")]
    for separator in ",;\t":
        text = io.StringIO()
        csv.writer(text, delimiter=separator).writerows([HEAD, *rows])
        (tmp_path / "t.csv").write_text(text.getvalue(), newline="")
        table = read_text_table(tmp_path / "t.csv")
        assert [tuple(row) for row in table.to_numpy()] == rows
        assert table.index.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2.wav,hello,s2", "line 4: a row must have 4 cells, as the header has, not 3"),
        ("2.wav,well, hello,s2,sad", "line 4: a row must have 4 cells, as the header has, not 5"),
        ('2.wav,"hello,s2,sad', "line 4: a quote must be closed in its own cell"),
    ],
)
def test_a_row_whose_columns_are_shifted_is_named_by_its_line(tmp_path, line, words):
    path = _write(tmp_path / "t.csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], line, *lines[4:]]))
    with pytest.raises(ValueError, match=words):
        read_text_table(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_what_spreadsheets_write_is_read(tmp_path, encoding, end, separator):
    lines = [separator.join(row) for row in [HEAD, *ROWS]] + [separator * 3, ""]
    (tmp_path / "t.csv").write_bytes(end.join(["sep=" + separator, *lines]).encode(encoding))
    table = read_table(tmp_path / "t.csv")
    assert [tuple(row) for row in table.to_numpy()] == ROWS


def test_two_columns_of_one_name_and_other_bytes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="each column once, but 'emotion' stands"):
        read_text_table(_write(tmp_path / "t.csv", head=("file", "emotion", "x", "emotion")))
    (tmp_path / "t.csv").write_bytes(b"file,emotion\na.wav,sad\nb.wav,w\xfctend\n")
    with pytest.raises(ValueError, match="line 3 is not in UTF-8"):
        read_text_table(tmp_path / "t.csv")
    (tmp_path / "t.jsonl").write_text('{"file": "a.wav", "emotion": null}\n{"file": \n')
    with pytest.raises(ValueError, match="t.jsonl, line 2: a line must be JSON"):
        read_table(tmp_path / "t.jsonl")


FILES = ["01.wav", "sub/01.wav", "sub/02.flac", "caf\u00e9/03.wav", "A/x.wav", "B/x.wav"]


@pytest.mark.parametrize(
    ("entry", "meant"),
    [
        ("01.wav", ["01.wav"]),
        ("01", ["01.wav"]),
        ("sub/01.wav", ["sub/01.wav"]),
        (".\\sub\\01.wav", ["sub/01.wav"]),
        ("./sub//01.wav", ["sub/01.wav"]),
        ("02.wav", ["sub/02.flac"]),
        ("cafe\u0301/03.wav", ["caf\u00e9/03.wav"]),
        ("SUB/02.FLAC", ["sub/02.flac"]),
        ("C:\\Users\\me\\corpus\\sub\\01.wav", ["sub/01.wav"]),
        ("D:\\corpus\\01.wav", ["01.wav"]),
        ("/mnt/other/sub/02.flac", ["sub/02.flac"]),
        ("clips/sub/01.wav", ["sub/01.wav"]),
        ("x.wav", ["A/x.wav", "B/x.wav"]),
        ("C:\\corpus\\C\\x.wav", []),
        ("other/01.wav", []),
        ("1.wav", []),
        ("", []),
    ],
)
def test_a_path_of_another_system_means_the_file_that_it_names_or_none(tmp_path, entry, meant):
    assert file_finder(FILES, tmp_path / "clips")(entry) == meant


def test_rows_go_to_their_own_files_and_others_are_named():
    entries = ["sub/01.wav", "01.wav", "gone.wav"]
    rows = [(f"t, line {i}", {"file": name, "emotion": name}) for i, name in enumerate(entries, 2)]
    found, stray = by_table(rows, FILES)
    assert [row and row["emotion"] for row in found[:3]] == ["01.wav", "sub/01.wav", None]
    assert stray == ["t, line 4 ('gone.wav')"]
    assert of_clips({"01": "a", "sub\\01.wav": "b"}, FILES[:3])[0] == ["a", "b", None]


def test_a_task_says_how_much_of_it_was_found(tmp_path, caplog):
    for i in range(3):
        write_noise(tmp_path / f"data/test/{i}.wav", default_rng(i))
    place = tmp_path / "sw_test"
    place.mkdir()
    facts = {"audio": "test", "version": 1, "speakers": 2, "utterances": 8, "language": "sw"}
    facts |= dict.fromkeys(("corpus", "licence", "homepage", "reference"), "x")
    columns = {"file": "file", "speaker": "speaker", "emotion": "code"}
    facts["table"] = {"file": "t.csv", "place": "task", "columns": columns}
    facts["emotion"] = {"a": "angry", "h": "happy"}
    (place / "task.toml").write_text(tomli_w.dumps(facts), encoding="utf-8-sig")
    (place / "t.csv").write_text("file,speaker,code\n0.wav,s1,a\nb\\1.wav,s2,h\n2.wav,s2,h\n")
    task = tasks.require_audio(tasks.read_task(place, tmp_path / "data"))
    assert task.table["file"].tolist() == ["0.wav", "2.wav"]
    assert "found 2 of 8 clips; 1 audio files are unmatched (1.wav); 1 rows of the table" in (
        caplog.text
    )
    assert "t.csv, line 3" in caplog.text
    (place / "t.csv").write_text("file,speaker,code\n0.wav,s1,a\n1.wav,,h\n2.wav,,h\n")
    with pytest.raises(ValueError, match="must have a speaker, but 2 of 3 have none: 1.wav, 2.wav"):
        tasks.read_task(place, tmp_path / "data")
