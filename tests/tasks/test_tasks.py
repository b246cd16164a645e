import json
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import soundfile
from builders import write_noise
from typer.testing import CliRunner

from metaser import tasks
from metaser.cli import app

HEAD = """
language = "sw"
corpus = "Test"
audio = "test"
version = 1
speakers = 2
utterances = 8
licence = "CC0"
homepage = "https://example.org"
reference = "none"
"""
FILES = """
[files]
pattern = '(?P<speaker>s\\d)_(?P<emotion>[a-z])_(?P<take>\\d)'
"""
EMOTION = """
[emotion]
a = "angry"
h = "happy"
n = "neutral"
t = "sad"
"""
TOML = HEAD + FILES + EMOTION
NAMES = [f"s{i}_{code}_1" for i, code in product("12", "ahnt")]


@pytest.fixture
def language(tmp_path):
    """Write a task folder and its audio; returns (task folder, data root)."""

    def make(toml=TOML, names=NAMES, folder="sw_test"):
        place = tmp_path / "tasks" / folder
        place.mkdir(parents=True, exist_ok=True)
        (place / "task.toml").write_text(toml, encoding="utf-8")
        (place / "README.md").write_text("# Test\n")
        rng = np.random.default_rng(0)
        (tmp_path / "data" / "test").mkdir(parents=True, exist_ok=True)
        for name in names:
            write_noise(tmp_path / "data" / "test" / f"{name}.wav", rng)
        return place, tmp_path / "data"

    return make


def run(*arguments):
    return CliRunner().invoke(app, ["tasks", *map(str, arguments)])


def test_a_new_language_is_one_folder_and_no_code(language):
    folder, data = language(names=["deep/er/s1_a_1", *NAMES[1:]])
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "task.toml"]
    task = tasks.read_task("sw_test", data=data, folders=[folder.parent])
    assert (task.name, task.language, task.corpus) == ("sw_test", "sw", "Test")
    assert list(task.table) == ["file", "speaker", "emotion", "unit", "clique", "take"]
    assert list(task.table["file"]) == sorted(task.table["file"])
    assert list(task.table.index) == list(range(8))
    assert task.table["file"][0] == "deep/er/s1_a_1.wav"
    assert task.counts == {"angry": 2, "happy": 2, "neutral": 2, "sad": 2}
    assert task.classes == ("angry", "happy", "neutral", "sad")
    assert (task.clips_found, task.speakers_found, task.unmatched) == (8, 2, ())
    assert not task.synthetic
    assert tasks.check_task(task).problems == ()

    listed = run("--data", data, "--tasks", folder.parent)
    assert listed.exit_code == 0
    assert "sw_test" in listed.output
    assert "Swahili" in listed.output
    checked = run("check", "sw_test", "--data", data, "--tasks", folder.parent)
    assert checked.exit_code == 0, checked.output
    assert "class angry: 2 clips of 2 speakers" in checked.output
    assert "good: the speaker alone tells the emotion in 0 of 100 clips" in checked.output


def test_a_task_is_read_by_path_as_well(language):
    folder, data = language()
    for path in (folder, str(folder), folder / "task.toml"):
        assert len(tasks.read_task(path, data=data).table) == 8


def test_without_audio_the_facts_are_there_and_the_table_is_not(language, tmp_path):
    folder, _ = language()
    (tmp_path / "elsewhere").mkdir()
    for data in (None, tmp_path / "elsewhere"):
        task = tasks.read_task(folder, data=data)
        assert (task.audio, task.table, task.counts) == (None, None, {})
        assert task.utterances == 8


def test_data_root_comes_from_the_environment(language, monkeypatch, tmp_path):
    folder, data = language()
    monkeypatch.setenv("METASER_DATA", str(data))
    assert len(tasks.read_task(folder).table) == 8
    monkeypatch.setenv("METASER_DATA", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match="METASER_DATA"):
        tasks.read_task(folder)
    with pytest.raises(FileNotFoundError, match="--data"):
        tasks.read_task(folder, data=tmp_path / "none")


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        (TOML.replace("licence", "license"), "unknown key 'license'. Did you mean 'licence'?"),
        (TOML.replace("licence", "license"), "the key 'licence' is missing"),
        (
            TOML.replace("pattern", "patern"),
            "unknown key 'patern' in [files]. Did you mean 'pattern'",
        ),
        (
            TOML.replace("[emotion]", "synthetic = true\n[emotion]"),
            "belongs at the top of the file",
        ),
        (
            TOML + "[duplicates]\nfile = []",
            "unknown key 'file' in [duplicates]. Did you mean 'files'",
        ),
        (
            TOML.replace("utterances = 8", "utterances = '8'"),
            "utterances must be a valid integer, not '8'",
        ),
        (
            TOML.replace("speakers = 2", "speakers = 0"),
            "speakers must be greater than or equal to 1, not 0",
        ),
        (
            TOML.replace('language = "sw"', "language = false"),
            "language must be a valid string, not False",
        ),
        (TOML.replace('"sw"', '"xx"'), "language 'xx' is not a code of ISO 639"),
        (TOML.replace('"sw"', '"eng"'), "'eng' has a code of two letters, 'en'"),
        (TOML.replace('"sw"', '"Urdu"'), "Urdu has 'ur'"),
        (TOML.replace('"sw"', '"SW"'), "small letters"),
        (TOML.replace('"sw"', '"ur"'), "expected ur_<corpus>"),
        (TOML.replace('"test"', '"../test"'), "below the data root"),
        (TOML.replace("(?P<speaker>", "(?P<speaker"), "no regular expression"),
        (TOML.replace("(?P<speaker>", "(?P<who>"), "gives no 'speaker'"),
        (TOML.replace("(?P<emotion>", "(?P<label>"), "gives no 'emotion'"),
        (TOML.replace("(?P<take>", "(?P<unit>"), "reserved name 'unit'"),
        (TOML.replace("(?P<take>", "(?P<file>"), "reserved name 'file'"),
        (HEAD + FILES + "speaker = '{take}'\n" + EMOTION, "keep one"),
        (TOML.replace("(?P<speaker>", "(?P<who>").replace("[emo", "speaker='{wo}'\n[emo"), "'wo'"),
        (HEAD + EMOTION, "either [files] with a pattern or [table]"),
        (HEAD + FILES + "[table]\nfile='a.csv'\n" + EMOTION, "columns or the pattern of a line"),
        (TOML.replace('"angry"', '"angy"'), "Did you mean 'angry'?"),
        (TOML + 'drop = ["a"]', "both mapped and dropped"),
        (TOML.replace('"angry"', "1"), "a in [emotion] must be a valid string, not 1"),
        (TOML + '[duplicates]\nfiles = [["s1_a_1", "oops"]]', "names 'oops'"),
        (TOML + '[duplicates]\nfiles = [["s1_a_1"]]', "[duplicates.files]"),
        (TOML + "[ratings]\narousal = [1, 5]", "[ratings] names 'arousal'"),
        (TOML + "= broken", "task.toml"),
    ],
)
def test_a_wrong_task_file_says_what_is_wrong(language, toml, words):
    folder, data = language(toml)
    with pytest.raises(ValueError) as caught:
        tasks.read_task(folder, data=data)
    assert words in str(caught.value)
    assert str(folder / "task.toml") in str(caught.value)
    checked = run("check", folder, "--data", data)
    assert checked.exit_code == 1
    assert "Traceback" not in checked.output
    assert isinstance(checked.exception, SystemExit)


def test_unmapped_label_names_code_count_and_example(language):
    folder, data = language(TOML.replace("= 8", "= 10"), [*NAMES, "s1_x_1", "s1_x_2"])
    with pytest.raises(ValueError, match=r"sw_test.*'x' of 2 clips, for example s1_x_1.wav"):
        tasks.read_task(folder, data=data)
    task = tasks.read_task(folder, data=data, strict=False)
    assert len(task.table) == 8
    checked = run("check", folder, "--data", data)
    assert checked.exit_code == 1
    assert "'x' of 2 clips" in checked.output
    assert "class sad: 2 clips" in checked.output


def test_dropped_codes_are_counted_and_left_out(language):
    toml = TOML.replace("= 8", "= 10") + 'drop = ["x"]'
    folder, data = language(toml, [*NAMES, "s1_x_1", "s1_x_2"])
    task = tasks.read_task(folder, data=data)
    assert (len(task.table), task.clips_found, task.left_out) == (8, 10, {"x": 2})
    assert tasks.check_task(task).problems == ()


@pytest.mark.parametrize(
    ("declared", "words"),
    [("utterances = 7", "found 8 clips, more than the 7"), ("speakers = 1", "found 2 speakers")],
)
def test_more_than_declared_is_an_error(language, declared, words):
    key = declared.split()[0]
    toml = "\n".join(declared if line.startswith(key) else line for line in TOML.splitlines())
    folder, data = language(toml)
    with pytest.raises(ValueError, match=words):
        tasks.read_task(folder, data=data)
    checked = run("check", folder, "--data", data, "--subset")
    assert checked.exit_code == 1
    assert words in checked.output


def test_fewer_than_declared_is_visible_and_fails_the_check_unless_intended(language):
    folder, data = language(TOML.replace("= 8", "= 80").replace("= 2", "= 3"))
    task = tasks.read_task(folder, data=data)
    assert (task.clips_found, task.utterances) == (8, 80)
    assert (task.speakers_found, task.speakers) == (2, 3)
    checked = run("check", folder, "--data", data)
    assert checked.exit_code == 1
    assert "8 of 80 clips: a subset; pass --subset if this is intended" in checked.output
    assert "2 of 3 speakers" in checked.output
    checked = run("check", folder, "--data", data, "--subset")
    assert checked.exit_code == 0
    assert "8 of 80 clips" in checked.output


def test_a_corpus_unpacked_twice_is_refused(language):
    folder, data = language(TOML.replace("= 8", "= 80"), [*NAMES, "again/s1_a_1"])
    with pytest.raises(ValueError, match=r"more than once.*again/s1_a_1.wav and s1_a_1.wav"):
        tasks.read_task(folder, data=data)


def test_a_copy_is_noticed_though_the_pattern_allows_a_folder(language):
    toml = TOML.replace("(?P<speaker>", "(?:[^/]+/)?(?P<speaker>").replace("= 8", "= 80")
    folder, data = language(toml, [*NAMES, "again/s1_a_1"])
    with pytest.raises(ValueError, match="more than once"):
        tasks.read_task(folder, data=data)


def test_ignored_files_are_not_looked_at_but_counted(language):
    toml = TOML.replace("[emotion]", 'ignore = ["copies/*", "song_*"]\n[emotion]')
    extra = ["copies/s1_a_1", "deep/copies/x/s1_a_1", "song_1", "b/song_2"]
    folder, data = language(toml, [*NAMES, *extra])
    task = tasks.read_task(folder, data=data)
    assert (task.clips_found, task.unmatched, task.ignored) == (8, (), 4)
    assert "files ignored: 4" in tasks.check_task(task).text()


def test_the_pattern_begins_at_a_name_and_ends_at_the_end(language):
    names = [*NAMES, "xs1_a_2", "s1_a_2x", "s1_a_2/more"]
    folder, data = language(TOML.replace("= 8", "= 80"), names)
    task = tasks.read_task(folder, data=data)
    assert task.clips_found == 8
    assert task.unmatched == ("s1_a_2/more.wav", "s1_a_2x.wav", "xs1_a_2.wav")
    checked = run("check", folder, "--data", data, "--subset")
    assert checked.exit_code == 1
    assert "unmatched files (3): s1_a_2/more.wav, s1_a_2x.wav" in checked.output


def test_no_audio_and_no_clip_at_all(language):
    folder, data = language(names=[])
    with pytest.raises(ValueError, match=r"holds no audio file.*https://example.org"):
        tasks.read_task(folder, data=data)
    folder, data = language(TOML + '[examples]\n"s1_a_1.wav" = {}', names=["x", "y"])
    with pytest.raises(ValueError, match=r"none of 2 audio files.*x.wav.*such as s1_a_1.wav"):
        tasks.read_task(folder, data=data)
    task = tasks.read_task(folder, data=data, strict=False)
    assert len(task.table) == 0
    assert run("check", folder, "--data", data).exit_code == 1


def test_units_join_speakers_and_duplicates_cliques_duplicates_only(language):
    toml = TOML.replace("= 8", "= 16").replace("= 2", "= 4") + (
        '[duplicates]\nfiles = [["s1_a_1", "s2_h_1"], ["s3_a_1", "s3_h_1", "absent/s9_a_1"]]\n'
        'speakers = [["s3", "s4"], ["s1", "s8"]]'
    )
    names = [f"s{i}_{code}_1" for i, code in product("1234", "ahnt")]
    folder, data = language(toml, names)
    task = tasks.read_task(folder, data=data)
    unit = task.table.groupby("speaker")["unit"].unique().map(list)
    assert list(unit) == [[0], [0], [1], [1]]
    clique = dict(zip(task.table["file"], task.table["clique"], strict=True))
    assert clique["s1_a_1.wav"] == clique["s2_h_1.wav"]
    assert clique["s3_a_1.wav"] == clique["s3_h_1.wav"]
    assert task.table["clique"].nunique() == 14
    assert sorted(set(task.table["clique"])) == list(range(14))
    assert task.duplicates == 3


def test_a_dropped_clip_still_joins_its_duplicates(language):
    toml = TOML.replace("= 8", "= 9").replace("= 2", "= 3") + (
        'drop = ["x"]\n[duplicates]\nfiles = [["s1_a_1", "s9_x_1"], ["s9_x_1", "s2_a_1"]]'
    )
    folder, data = language(toml, [*NAMES, "s9_x_1"])
    assert tasks.read_task(folder, data=data).table["unit"].nunique() == 1


def test_units_agree_with_naive_merging(language):
    rng = np.random.default_rng(7)
    names = [f"s{i}_{code}_1" for i, code in product("012345678", "ahnt")]
    pairs = [list(map(str, rng.choice(names, 2, replace=False))) for _ in range(6)]
    toml = TOML.replace("= 8", "= 36").replace("= 2", "= 9")
    folder, data = language(f"{toml}[duplicates]\nfiles = {json.dumps(pairs)}", names)
    table = tasks.read_task(folder, data=data).table
    groups = [{name} for name in names]
    alike = [[name for name in names if name.startswith(f"s{i}_")] for i in range(9)]
    for together in [*pairs, *alike]:
        touched = [group for group in groups if group & set(together)]
        groups = [group for group in groups if group not in touched] + [set().union(*touched)]
    found = table.groupby("unit")["file"].agg(lambda files: {file[:-4] for file in files})
    assert sorted(map(sorted, found)) == sorted(map(sorted, groups))


def test_equal_file_names_in_speaker_folders(language):
    files = "[files]\npattern = '(?P<speaker>DC|JK)[/_](?P<emotion>[a-z])(?P<take>\\d)'\n"
    toml = HEAD.replace("= 8", "= 5") + files + EMOTION
    toml += '[duplicates]\nfiles = [["DC/a1", "JK/a1"]]'
    folder, data = language(toml, ["All/DC/a1", "All/JK/a1", "JK/a2", "JK_a3", "DC_a2"])
    task = tasks.read_task(folder, data=data)
    assert task.counts == {"angry": 5}
    assert task.duplicates == 1
    assert task.table["unit"].nunique() == 1
    assert task.table["clique"].nunique() == 4


def test_speaker_template(language):
    toml = TOML.replace("(?P<speaker>s", "s(?P<who>").replace("[emo", "speaker = 'P{who}'\n[emo")
    folder, data = language(toml)
    table = tasks.read_task(folder, data=data).table
    assert set(table["speaker"]) == {"P1", "P2"}
    assert set(table["who"]) == {"1", "2"}


TABLE = """
[table]
file = "labels.csv"
separator = ";"
columns = { file = "clip", speaker = "Speaker", emotion = "label", arousal = "act" }
"""
RATED = HEAD + TABLE + EMOTION + "[ratings]\narousal = [1, 5]\n"


def test_labels_from_a_table(language):
    folder, data = language(
        RATED + '[examples]\n"x2.wav" = {speaker = "q"}', ["sub/x1", "x2", "x3"]
    )
    table = data / "test" / "labels.csv"
    table.write_text("clip;Speaker;label;act;more\nx1.wav;p;a;1;\nx2;q;n;4;\ngone.wav;q;n;5;\n")
    task = tasks.read_task(folder, data=data)
    assert list(task.table["file"]) == ["sub/x1.wav", "x2.wav"]
    assert list(task.table["speaker"]) == ["p", "q"]
    assert list(task.table["emotion"]) == ["angry", "neutral"]
    assert list(task.table["arousal"]) == [-1.0, 0.5]
    assert task.unmatched == ("x3.wav",)
    assert run("check", folder, "--data", data, "--subset").exit_code == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "found no table 'labels.csv'"),
        ("clip;speaker;label;act\n", "the column 'Speaker', but has clip, speaker"),
        ("clip;Speaker;label;act\nx1;p;a;9\n", "outside of [1.0, 5.0], for example 9.0 of x1.wav"),
        (
            "clip;Speaker;label;act\nx1;p;a;1\nx1;p;h;1\n",
            "describes 'x1.wav' twice, differently (labels.csv, line 2",
        ),
        ("clip;Speaker;label;act\nx1;p;a;high\n", "the rating arousal of x1.wav must be a number"),
        ("", "it is empty"),
    ],
)
def test_wrong_tables(language, content, words):
    folder, data = language(RATED, ["x1"])
    if content is not None:
        (data / "test" / "labels.csv").write_text(content)
    with pytest.raises(ValueError) as caught:
        tasks.read_task(folder, data=data)
    assert words in str(caught.value)
    assert run("check", folder, "--data", data).exit_code == 1


RATED_APART = """
[ratings]
valence = [-3, 3]

[ratings_table]
file = "rated.csv"
columns = { file = "clip", valence = "val" }
"""


def test_ratings_from_a_table_of_their_own(language):
    folder, data = language(TOML + RATED_APART)
    (folder / "rated.csv").write_text("clip,val\ns1_a_1.wav,3\ns1_h_1,-1.5\ns2_a_1,\n")
    task = tasks.read_task(folder, data=data)
    valence = task.table.set_index("file")["valence"]
    assert valence["s1_a_1.wav"] == 1 and valence["s1_h_1.wav"] == -0.5
    assert valence.drop(["s1_a_1.wav", "s1_h_1.wav"]).isna().all()
    assert task.ratings == {"valence": [-3, 3]}
    shown = run("check", folder, "--data", data).output
    assert "rating valence: 2 of 8 clips" in shown


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "found no table of ratings 'rated.csv'"),
        ("clip,val\ns1_a_1,4\n", "for example 4.0 of s1_a_1.wav"),
        ("clip,val\ns1_a_1,good\n", "not 'good'"),
        ("clip,val\nother,1\n", "names none of the clips"),
        ("clip,vale\ns1_a_1,1\n", "Did you mean 'vale'?"),
    ],
)
def test_wrong_tables_of_ratings(language, content, words):
    folder, data = language(TOML + RATED_APART)
    if content is not None:
        (folder / "rated.csv").write_text(content)
    with pytest.raises(ValueError) as caught:
        tasks.read_task(folder, data=data)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('valence = "val"', 'speaker = "val"'), "gives 'speaker', and so does something else"),
        (('file = "clip", ', ""), "gives no 'file'"),
    ],
)
def test_ratings_tables_that_cannot_be_meant(language, change, words):
    folder, _ = language(TOML + RATED_APART.replace(*change))
    with pytest.raises(ValueError, match=words):
        tasks.read_facts(folder)


def test_iemocap_reads_its_published_evaluation_files(tmp_path):
    corpus = tmp_path / "iemocap" / "IEMOCAP_full_release" / "Session1"
    (corpus / "dialog" / "EmoEvaluation" / "Categorical").mkdir(parents=True)
    lines = [
        "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]",
        "",
        "[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]",
        "C-E2:\tNeutral;\t()",
        "[10.0100 - 11.3925]\tSes01F_impro01_M001\texc\t[4.5000, 3.5000, 2.5000]",
        "[14.8872 - 18.0175]\tSes01F_impro01_M002\txxx\t[2.5000, 2.5000, 2.5000]",
        "A-E3:\tval 3; act 2; dom  2;\t(\xe9)",
    ]
    evaluation = corpus / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"
    evaluation.write_bytes("\n".join(lines).encode("latin-1"))
    (evaluation.parent / "._Ses01F_impro01.txt").write_bytes(b"\x00\x05\x16\x07")
    wavs = [f"sentences/wav/Ses01F_impro01/Ses01F_impro01_{n}" for n in ("F000", "M001", "M002")]
    for name in [*wavs, "dialog/wav/Ses01F_impro01"]:
        (corpus / f"{name}.wav").parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(corpus / f"{name}.wav", np.full(8000, 0.1), 16000)
    task = tasks.read_task("en_iemocap", data=tmp_path)
    assert list(task.table["speaker"]) == ["Ses01F", "Ses01M"]
    assert list(task.table["emotion"]) == ["neutral", "excited"]
    assert list(task.table["valence"]) == ["2.5000", "4.5000"]
    assert task.left_out == {"xxx": 1}
    assert task.unmatched == ()
    assert task.ignored == 1


def _overwrite(data, name, samples, rate=16000, **options):
    soundfile.write(data / "test" / f"{name}.wav", samples, rate, **options)


def test_check_hears_every_clip(language):
    folder, data = language()
    rng = np.random.default_rng(1)
    _overwrite(data, NAMES[0], np.zeros(8000))
    _overwrite(data, NAMES[1], np.full(8000, np.nan), subtype="FLOAT")
    _overwrite(data, NAMES[2], np.zeros(0))
    (data / "test" / f"{NAMES[3]}.wav").write_bytes(b"")
    path = data / "test" / f"{NAMES[4]}.wav"
    path.write_bytes(path.read_bytes()[:5000])
    _overwrite(data, NAMES[5], rng.normal(size=1600) * 0.1)
    checked = run("check", folder, "--data", data)
    assert checked.exit_code == 1
    lines = checked.output.splitlines()
    unusable = next(line for line in lines if "unusable files (4)" in line)
    for words in ("NaN", "zero length", "0 bytes", "truncated"):
        assert words in unusable
    assert any("silent files" in line and NAMES[0] in line for line in lines)
    assert any("note: clips shorter than 0.3 s (1)" in line and NAMES[5] in line for line in lines)


def test_check_accepts_every_proper_format(language):
    folder, data = language()
    rng = np.random.default_rng(1)
    _overwrite(data, NAMES[0], rng.normal(size=22050) * 0.1, 44100, subtype="PCM_24")
    _overwrite(data, NAMES[1], rng.normal(size=8000) * 0.1, subtype="PCM_U8")
    _overwrite(data, NAMES[2], rng.normal(size=(24000, 2)) * 0.1, 48000)
    checked = run("check", folder, "--data", data)
    assert checked.exit_code == 0, checked.output
    assert checked.output.count("note: ") == 1
    assert checked.output.endswith("  usable; one thing to know\n")


def test_check_finds_undeclared_duplicates_by_content(language):
    folder, data = language()
    samples, rate = soundfile.read(data / "test" / "s1_a_1.wav")
    soundfile.write(data / "test" / "s2_h_1.flac", samples, rate)
    (data / "test" / "s2_h_1.wav").unlink()
    checked = run("check", folder, "--data", data)
    assert checked.exit_code == 1
    assert "s1_a_1.wav = s2_h_1.flac" in checked.output
    (folder / "task.toml").write_text(TOML + '[duplicates]\nfiles = [["s1_a_1", "s2_h_1"]]')
    assert run("check", folder, "--data", data).exit_code == 0


def test_check_verifies_examples(language):
    wrong = """
[examples]
"x/s1_a_1.wav" = { speaker = "s1", emotion = "happy", takes = "1" }
"S1.wav" = { speaker = "s1" }
"""
    folder, _ = language(TOML + wrong)
    checked = run("check", folder)
    assert checked.exit_code == 1
    assert "gives emotion 'angry', expected 'happy'" in checked.output
    assert "gives no 'takes'" in checked.output
    assert "example 'S1.wav' is not matched" in checked.output


def test_check_notes_classes_of_one_speaker(language):
    names = [*NAMES[:4], *NAMES[5:]]
    folder, data = language(TOML.replace("= 8", "= 7"), names)
    checked = run("check", folder, "--data", data)
    assert checked.exit_code == 0
    assert "class angry comes from one speaker only" in checked.output


def test_check_of_absent_audio(language, tmp_path):
    folder, _ = language()
    assert run("check", folder).exit_code == 0
    (tmp_path / "elsewhere").mkdir()
    checked = run("check", folder, "--data", tmp_path / "elsewhere")
    assert checked.exit_code == 1
    assert "no audio of Test" in checked.output


def test_options_may_stand_before_the_command(language):
    folder, data = language()
    checked = run("--data", data, "--tasks", folder.parent, "check", "sw_test")
    assert checked.exit_code == 0, checked.output
    assert "8 of 8" in checked.output


def test_names_and_folders_that_do_not_exist(language, tmp_path):
    folder, data = language()
    for arguments, words in [
        (["check", "en_ravdes"], "Did you mean 'en_ravdess'?"),
        (["check", tmp_path], "holds no task.toml"),
        (["check", folder, "--data", tmp_path / "no"], "is not a folder"),
        (["--data", tmp_path / "no"], "is not a folder"),
        (["--tasks", tmp_path / "no"], "does not exist"),
        (["--tasks", data], "holds no task folder"),
    ]:
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert words in result.stderr
        assert result.stderr.count("\n") == 1


def test_two_tasks_of_one_name_are_refused(language, tmp_path):
    folder, _ = language(folder="sw_test")
    twin = tmp_path / "more" / "sw_test"
    twin.mkdir(parents=True)
    (twin / "task.toml").write_text(TOML)
    with pytest.raises(ValueError, match="two task folders are named sw_test"):
        tasks.list_tasks([folder.parent, twin.parent])
    assert "sw_test" in tasks.list_tasks([folder.parent, folder, folder.parent])


def test_a_broken_folder_does_not_hide_the_others(language):
    folder, _ = language(TOML.replace("licence", "license"))
    listed = run("--tasks", folder.parent)
    assert listed.exit_code == 1
    assert "broken" in listed.output
    assert "ur_urdu" in listed.output
    assert "Did you mean 'licence'?" in listed.stderr


def test_listing_says_what_is_present_and_where_to_get_the_rest(language):
    folder, data = language(TOML.replace("= 8", "= 9"))
    listed = run("--data", data, "--tasks", folder.parent)
    text = " ".join(listed.output.replace("│", " ").split())
    for words in ("8 of 9 clips", "angry 2, happy 2", "present, a subset", "CC0"):
        assert words in text
    assert "sail.usc.edu/iemocap" in text
    assert "no data root" in run().output


def test_an_installed_copy_brings_its_own_task_folders(tmp_path):
    package = tmp_path / "metaser"
    package.mkdir()
    source = Path(tasks.__file__).parents[1]
    for name in ("__init__.py", "__init__.pyi", "audio.py", "files.py", "mono.py", "naming.py"):
        shutil.copy(source / name, package)
    for room in ("containers", "tasks"):
        shutil.copytree(source / room, package / room)
    (package / "aboard" / "tasks" / "sw_test").mkdir(parents=True)
    (package / "aboard" / "tasks" / "sw_test" / "task.toml").write_text(TOML)
    code = "from metaser.tasks import list_tasks, read_task; print(list(list_tasks()))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "['sw_test']\n", done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["tasks"], ["tasks", "--help"], ["--version"]])
def test_light_use_is_light(arguments):
    code = (
        "import sys\nfrom metaser.cli import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'librosa', 'matplotlib', 'sklearn', 'numba'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
