"""A task folder made from recordings: every source, and every mistake that people make."""

import tomllib
from itertools import product

import numpy as np
import pandas as pd
import pytest
import soundfile
from builders import write_noise
from typer.testing import CliRunner

from metaser import tasks
from metaser.cli import app
from metaser.tasks import label_tables, names
from metaser.tasks import new as new_task

SAID = ["--language", "ha", "--licence", "CC0", "--consent", "all speakers agreed", "--yes"]
SPEAKERS = ("ali", "zara", "musa")
CODES = {"ang": "angry", "hap": "happy", "neu": "neutral", "sad": "sad"}


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def record(tmp_path):
    """Make audio files of noise, each different; returns their folder."""

    def make(names, folder="clips", rate=16000):
        for i, name in enumerate(names):
            rng = np.random.default_rng([i, len(folder)])
            write_noise(tmp_path / "data" / folder / name, rng, rate // 2, rate)
        return tmp_path / "data" / folder

    return make


NAMES = [f"{who}_{code}_{take}.wav" for who, code, take in product(SPEAKERS, CODES, "12")]
TRUTH = {name: (name.split("_")[0], CODES[name.split("_")[1]]) for name in NAMES}


def run(*arguments, answers=None, said=SAID):
    command = ["tasks", "new", "mine", *map(str, arguments), *said]
    return CliRunner().invoke(app, command, input=answers)


def made(data):
    """The clips of the task that was made, as file -> (speaker, class)."""
    task = tasks.read_task("ha_mine", data, ["my_tasks"])
    check = CliRunner().invoke(
        app, ["tasks", "check", "ha_mine", "--tasks", "my_tasks", "--data", str(data)]
    )
    assert check.exit_code == 0, check.output
    table = task.table
    return dict(zip(table["file"], zip(table["speaker"], table["emotion"])))


def test_file_names(record):
    folder = record(NAMES)
    done = run("--audio", folder, "--speaker", "1")
    assert done.exit_code == 0, done.output
    assert "(?P<speaker>[^/_]+)_(?P<emotion>[^/_]+)_[^/_]+" in done.output
    assert "angry ('ang'): 6 clips of 3 speakers, for example ali_ang_1.wav" in done.output
    assert made(folder.parent) == TRUTH
    readme = (folder.parents[1] / "my_tasks/ha_mine/README.md").read_text()
    assert "all speakers agreed" in readme


def test_the_commands_that_are_told_work(record):
    folder = record(NAMES, folder="my clips")
    done = run("--audio", folder, "--speaker", "1")
    assert f"--data {folder.parent}" in done.output
    facts = tomllib.loads((folder.parents[1] / "my_tasks/ha_mine/task.toml").read_text())
    assert facts["audio"] == "my clips"


def test_below_a_data_root_the_whole_path_is_kept(record, tmp_path):
    folder = record(NAMES, folder="west/hausa")
    assert run("--audio", folder, "--speaker", "1", "--data", tmp_path / "data").exit_code == 0
    assert made(tmp_path / "data") == TRUTH


def test_sub_folders_named_by_emotion(record):
    names = {
        f"{emotion}/{who}/{take}.wav": (who, emotion)
        for emotion, who, take in product(("angry", "sad"), SPEAKERS, "12")
    }
    folder = record(list(names))
    done = run("--audio", folder, "--speaker", "folder1")
    assert done.exit_code == 0, done.output
    assert made(folder.parent) == names


def test_letters_before_a_running_number(record):
    names = [f"{who}-{code}0{take}.wav" for who, code, take in product(SPEAKERS, CODES, "12")]
    folder = record(names)
    done = run("--audio", folder, "--speaker", "1")
    assert done.exit_code == 0, done.output
    assert made(folder.parent)["ali-ang01.wav"] == ("ali", "angry")


def test_one_speaker_is_said_and_its_meaning_is_told(record):
    folder = record(NAMES)
    done = run("--audio", folder, "--one-speaker")
    assert done.exit_code == 0, done.output
    assert {speaker for speaker, _ in made(folder.parent).values()} == {"one"}
    readme = (folder.parents[1] / "my_tasks/ha_mine/README.md").read_text()
    assert "nothing about other people" in readme


@pytest.mark.parametrize("kind", ["csv", "semicolons", "xlsx", "jsonl"])
def test_tables(record, kind, tmp_path):
    if kind == "xlsx":
        pytest.importorskip("openpyxl")
    folder = record([f"{i}.wav" for i in range(len(NAMES))])
    table = pd.DataFrame(
        [(f"{i}.wav", *TRUTH[name]) for i, name in enumerate(NAMES)],
        columns=["File name", "Speaker", "Emotion"],
    )
    path = tmp_path / f"labels.{kind if kind != 'semicolons' else 'csv'}"
    if kind == "xlsx":
        table.to_excel(path, index=False)
    elif kind == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False, sep=";" if kind == "semicolons" else ",")
    done = run("--audio", folder, "--table", path)
    assert done.exit_code == 0, done.output
    assert made(folder.parent) == {f"{i}.wav": TRUTH[name] for i, name in enumerate(NAMES)}


def test_an_audio_folder_with_metadata(record):
    """The layout that `datasets` calls AudioFolder."""
    folder = record([f"train/{name}" for name in NAMES])
    rows = [(f"train/{name}", *TRUTH[name]) for name in NAMES]
    table = pd.DataFrame(rows, columns=["file_name", "speaker_id", "label"])
    table.to_csv(folder / "metadata.csv", index=False)
    done = run("--audio", folder)
    assert done.exit_code == 0, done.output
    assert made(folder.parent) == {f"train/{name}": TRUTH[name] for name in NAMES}


def test_an_audformat_database(record):
    audformat = pytest.importorskip("audformat")
    folder = record([f"wav/{name}" for name in NAMES])
    database = audformat.Database("mine")
    database["files"] = audformat.Table(audformat.filewise_index([f"wav/{name}" for name in NAMES]))
    for i, column in enumerate(("speaker", "emotion")):
        database["files"][column] = audformat.Column()
        database["files"][column].set([TRUTH[name][i] for name in NAMES])
    database.save(str(folder))
    done = run("--audio", folder)
    assert done.exit_code == 0, done.output
    assert made(folder.parent) == {f"wav/{name}": TRUTH[name] for name in NAMES}


def test_a_data_set_saved_to_disk(record, tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = record(NAMES)
    kinds = sorted(CODES.values())
    rows = {
        "audio": [{"bytes": (folder / name).read_bytes(), "path": name} for name in NAMES],
        "speaker": [TRUTH[name][0] for name in NAMES],
        "emotion": [kinds.index(TRUTH[name][1]) for name in NAMES],
    }
    made_up = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))
    made_up = made_up.cast_column("emotion", datasets.ClassLabel(names=kinds))
    made_up.save_to_disk(tmp_path / "saved")
    refused = run("--audio", tmp_path / "saved")
    assert refused.exit_code == 2
    assert "--write-audio" in refused.output
    done = run("--audio", tmp_path / "saved", "--write-audio", tmp_path / "out" / "clips")
    assert done.exit_code == 0, done.output
    assert made(tmp_path / "out") == TRUTH
    written = (tmp_path / "out" / "clips" / NAMES[0]).read_bytes()
    assert written == (folder / NAMES[0]).read_bytes()


def test_other_scripts_stray_spaces_and_spaces_in_paths(record):
    names = [f"злость {i}/Айша {i}.wav" for i in range(2)]
    folder = record(names, folder="мои записи")
    rows = [(name, " Злость " if i else "радость", "Айша") for i, name in enumerate(names)]
    pd.DataFrame(rows, columns=["file", "emotion", "speaker"]).to_csv("t.csv", index=False)
    table = ["--audio", folder, "--table", "t.csv"]
    refused = run(*table)
    assert refused.exit_code == 2
    assert "'Злость' (1 clips)" in refused.output and "--map" in refused.output
    done = run(*table, "--map", "злость=angry", "--map", "радость=happy")
    assert done.exit_code == 0, done.output
    assert made(folder.parent) == {names[0]: ("Айша", "happy"), names[1]: ("Айша", "angry")}


def test_an_unknown_label_is_asked_for(record):
    names = [name.replace("ang", "xyz") for name in NAMES]
    folder = record(names)
    answers = ["1", "angri", "angry", "ha", "CC0", "they agreed", "y"]
    done = run("--audio", folder, answers="\n".join(answers) + "\n", said=[])
    assert done.exit_code == 0, done.output
    assert "Did you mean 'angry'?" in done.output
    assert made(folder.parent)["ali_xyz_1.wav"] == ("ali", "angry")
    assert "they agreed" in (folder.parents[1] / "my_tasks/ha_mine/README.md").read_text()


def test_what_only_the_user_knows_is_not_guessed(record):
    folder = record(NAMES)
    refused = run("--audio", folder, "--speaker", "1", said=["--yes", "--language", "ha"])
    assert refused.exit_code == 2
    assert "--licence, --consent" in refused.output
    refused = run("--audio", folder)
    assert (
        "who speaks? Say --speaker FIELD or --one-speaker; fields that may be it are 1 (words)"
        in (refused.output)
    )


def test_the_same_audio_is_declared_and_two_labels_of_it_are_refused(record):
    folder = record(NAMES)
    samples, rate = soundfile.read(folder / "ali_ang_1.wav")
    soundfile.write(folder / "ali_ang_2.wav", samples, rate)
    done = run("--audio", folder, "--speaker", "1")
    assert done.exit_code == 0, done.output
    facts = tasks.read_facts(folder.parents[1] / "my_tasks/ha_mine")
    assert facts.duplicates.files == [["ali_ang_1", "ali_ang_2"]]
    soundfile.write(folder / "ali_sad_1.wav", samples, rate)
    refused = run("--audio", folder, "--speaker", "1", "--into", "again")
    assert refused.exit_code == 2
    assert "the same audio has two labels: ali_ang_1.wav (ang" in refused.output
    assert not (folder.parents[1] / "again").exists()


def test_nothing_is_overwritten_and_nothing_is_left_behind(record, tmp_path):
    folder = record(NAMES)
    assert run("--audio", folder, "--speaker", "1").exit_code == 0
    before = (tmp_path / "my_tasks/ha_mine/task.toml").read_text()
    again = run("--audio", folder, "--one-speaker")
    assert again.exit_code == 2 and "is there already" in again.output
    assert (tmp_path / "my_tasks/ha_mine/task.toml").read_text() == before
    soundfile.write(folder / NAMES[0], np.zeros(8000), 16000)  # silence fails the check
    refused = run("--audio", folder, "--speaker", "1", "--into", "other")
    assert refused.exit_code == 2
    assert "nothing was written" in refused.output and "silent" in refused.output
    assert not list((tmp_path / "other").glob("*")) and not list((tmp_path / "other").glob(".*"))


def test_empty_folders_and_other_files(record, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "it is empty" in run("--audio", tmp_path / "empty").output
    (tmp_path / "empty" / "talk.mkv").write_bytes(b"film")
    refused = run("--audio", tmp_path / "empty")
    assert refused.exit_code == 2 and ".mkv" in refused.output and "ffmpeg" in refused.output
    folder = record(NAMES)
    (folder / "ali_ang_1.wav").write_text("not audio at all, only text")
    refused = run("--audio", folder, "--speaker", "1")
    assert refused.exit_code == 2
    assert "1 files cannot be used" in refused.output and "ali_ang_1.wav" in refused.output


def test_mixed_rates_are_no_obstacle_but_told(record, tmp_path):
    folder = record(NAMES)
    rng = np.random.default_rng(1)
    write_noise(folder / NAMES[0], rng, 4000, 8000)
    done = run("--audio", folder, "--speaker", "1")
    assert done.exit_code == 0, done.output


def test_files_without_a_label_are_left_out_only_when_told(record):
    folder = record([*NAMES, "noise.wav"])
    arguments = ["--audio", folder, "--speaker", "1"]
    refused = run(*arguments)
    assert refused.exit_code == 2 and "noise.wav" in refused.output
    done = run(*arguments, "--ignore-rest")
    assert done.exit_code == 0, done.output
    assert made(folder.parent) == TRUTH
    assert tasks.read_task("ha_mine", folder.parent, ["my_tasks"]).ignored == 1


@pytest.mark.parametrize(
    "header, arguments, words",
    [
        ("datei,emotion,speaker", [], "known to be the file"),
        ("file,emotoin,speaker", [], "Did you mean 'emotoin'?"),
        ("file,emotion,spaeker", [], "Did you mean 'spaeker'?"),
        ("file,emotion,speaker", ["--emotion", "emotin"], "Did you mean 'emotion'?"),
    ],
)
def test_tables_with_other_columns(record, header, arguments, words):
    folder = record(NAMES)
    rows = [f"{name},{TRUTH[name][1]},{TRUTH[name][0]}" for name in NAMES]
    (folder / "metadata.csv").write_text("\n".join([header, *rows]))
    refused = run("--audio", folder, *arguments)
    assert refused.exit_code == 2
    assert words in refused.output, refused.output


@pytest.mark.parametrize(
    "row, words",
    [
        ("ali_ang_9.wav,angry,ali", "names 1 files that are not below"),
        ("notes.txt,angry,ali", "no audio that MetaSER reads"),
        ("ali_ang_1.wav,sad,ali", "describes 1 files twice, differently"),
    ],
)
def test_tables_with_wrong_rows(record, row, words):
    folder = record(NAMES)
    (folder / "notes.txt").write_text("notes")
    rows = [f"{name},{TRUTH[name][1]},{TRUTH[name][0]}" for name in NAMES]
    (folder / "metadata.csv").write_text("\n".join(["file,emotion,speaker", *rows, row]))
    refused = run("--audio", folder)
    assert refused.exit_code == 2
    assert words in refused.output, refused.output
    assert not (folder.parents[1] / "my_tasks").exists()


def test_files_are_named_by_any_end_of_the_path(record):
    folder = record(["a/1.wav", "b/1.wav", "b/2.wav"])
    files = new_task.find_audio(folder)

    def clips(*names):
        table = pd.DataFrame({"file": names, "emotion": "sad"})
        columns = {"file": "file", "emotion": "emotion"}
        found = new_task.from_table(folder, files, table, columns, one_speaker=True)
        return list(found.table["file"]), found.rest

    assert clips("2") == (["b/2.wav"], ("a/1.wav", "b/1.wav"))
    assert clips("clips/a/1.flac", "b\\1.wav", str(folder / "b/2.wav"))[0] == files
    with pytest.raises(ValueError, match="may be a/1.wav or b/1.wav"):
        clips("1.wav")


def test_labels_that_do_not_occur_and_patterns_without_groups(record):
    folder = record(NAMES)
    refused = run("--audio", folder, "--speaker", "1", "--map", "angg=angry")
    assert "no clip has the label 'angg'. Did you mean 'ang'?" in refused.output
    refused = run("--audio", folder, "--pattern", r"(?P<speaker>\w+?)_.*")
    assert refused.exit_code == 2 and "gives no 'emotion'" in refused.output
    refused = run("--audio", folder, "--pattern", r"(?P<emotion>[a-z]+)\d(?P<speaker>x)")
    assert "matches none of 24 files" in refused.output
    record(["1.wav", "2.wav"], folder="numbers")
    refused = run("--audio", folder.parent / "numbers", "--one-speaker")
    assert refused.exit_code == 2 and "--table" in refused.output


@pytest.mark.parametrize(
    "form, sure, may_be",
    [
        ("{0}_{1}_{2}_{3}.wav", None, ["1", "2", "4"]),  # CREMA-D: actors are numbers, texts words
        ("spk{0}_{1}_{2}_{3}.wav", "1", ["1", "2", "4"]),
        ("s{0}/{2}/{1}_{3}.wav", "folder2", ["folder2", "1", "2"]),
        ("day{0}/{2}/{1}_{3}.wav", None, ["folder2", "1", "2"]),
        ("s{0}_f{0}_{2}_{3}.wav", None, ["1", "2", "4"]),  # two that are named alike
    ],
)
def test_a_speaker_is_proposed_only_where_a_field_alone_is_named_so(form, sure, may_be):
    parts = product(("1001", "1002", "1003"), ("DFA", "IEO"), ("ANG", "SAD"), ("LO", "HI"))
    fields = names.name_fields([form.format(*some) for some in parts])
    evidence = names.speaker_fields(fields, names.emotion_field(fields))
    assert (names.sure_speaker(evidence), list(evidence)) == (sure, may_be)


def _table(folder, speakers, emotions=None):
    emotions = emotions or [TRUTH[name][1] for name in NAMES]
    table = pd.DataFrame({"file": NAMES, "speaker": speakers, "emotion": emotions})
    table.to_csv(folder / "metadata.csv", index=False)


@pytest.mark.parametrize("nobody", ["", "NaN", "unknown"])
def test_a_speaker_who_is_not_known_is_nobody(record, nobody):
    folder = record(NAMES)
    _table(folder, [nobody if i < 2 else TRUTH[name][0] for i, name in enumerate(NAMES)])
    refused = run("--audio", folder)
    assert refused.exit_code == 2
    assert f"2 of 24 audio files have no speaker: {NAMES[0]}, {NAMES[1]}" in refused.output
    done = run("--audio", folder, "--ignore-rest")
    assert done.exit_code == 0, done.output
    assert made(folder.parent) == {name: TRUTH[name] for name in NAMES[2:]}
    _table(folder, [nobody] * len(NAMES))
    assert "it names nobody" in run("--audio", folder, "--into", "other").output
    assert run("--audio", folder, "--into", "other", "--one-speaker").exit_code == 0


def test_one_person_in_several_spellings_is_one(record):
    folder = record(NAMES)
    spelt = ["Zoe\u0301", "zo\u00e9 ", "ZO\u00c9", "musa"]
    _table(folder, [spelt[i % 4] for i in range(len(NAMES))])
    done = run("--audio", folder)
    assert done.exit_code == 0, done.output
    assert "one person in several spellings: ZOÉ = Zoé = zoé" in done.output
    assert {speaker for speaker, _ in made(folder.parent).values()} == {"ZOÉ", "musa"}


def test_clips_without_a_label_are_left_out_when_told(record):
    folder = record(NAMES)
    emotions = [TRUTH[name][1] for name in NAMES]
    _table(folder, [TRUTH[name][0] for name in NAMES], ["", "", *emotions[2:]])
    refused = run("--audio", folder)
    assert refused.exit_code == 2 and "2 of 24 audio files have no emotion" in refused.output
    assert run("--audio", folder, "--ignore-rest").exit_code == 0
    assert made(folder.parent) == {name: TRUTH[name] for name in NAMES[2:]}


@pytest.mark.parametrize("missing", [None, -1])
def test_a_data_set_with_rows_that_have_no_label(record, tmp_path, missing):
    datasets = pytest.importorskip("datasets")
    folder = record(NAMES[:4])
    rows = {
        "audio": [{"bytes": (folder / n).read_bytes(), "path": n} for n in NAMES[:4]],
        "speaker": [None, 7, 8, 7],
        "emotion": [0, missing, 1, 0],
    }
    kinds = {
        "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        "speaker": datasets.Value("int64"),
        "emotion": datasets.ClassLabel(names=["angry", "sad"]),
    }
    made_up = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    made_up.cast_column("audio", datasets.Audio(decode=False)).save_to_disk(tmp_path / "saved")
    table, _ = label_tables.read_dataset(tmp_path / "saved", tmp_path / "out")
    assert table["emotion"].tolist() == ["angry", "", "sad", "angry"]
    assert table["speaker"].tolist() == ["", "7", "8", "7"]


def test_empty_and_unreadable_tables(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("")
    with pytest.raises(ValueError, match="it is empty"):
        label_tables.read_table(path)
    path.write_bytes("file,emotion\nä.wav,sad".encode("latin-1"))
    with pytest.raises(ValueError, match="not in UTF-8"):
        label_tables.read_table(path)


@pytest.mark.parametrize(
    "code, name",
    [(" Anger ", "angry"), ("HAP", "happy"), ("pleasant surprise", "surprised"), ("x", None)],
)
def test_codes_that_are_known(code, name):
    assert names.guess_class(code) == name
    assert names.guess_class(code, {code.strip().lower(): "bored"}) == "bored"
