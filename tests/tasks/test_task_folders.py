"""Conformance: every folder in tasks/ keeps the same rules; real audio is used where it is."""

import re
from collections import Counter

import pandas as pd
import pytest

from metaser import tasks
from metaser.tasks import labels

NAMES = sorted(tasks.list_tasks())
EXPECTED = [
    "ar_baved",
    "bn_banglaser",
    "de_emodb",
    "en_cremad",
    "en_iemocap",
    "en_ravdess",
    "en_savee",
    "en_tess",
    "fa_shemo",
    "id_indowave",
    "it_emovo",
    "pl_nemo",
    "tr_turev",
    "ur_urdu",
]

# The labels of the corpora's own tables, in English, as canonical classes.
OWN_LABELS = {
    "anger": "angry",
    "boredom": "bored",
    "disgust": "disgusted",
    "fear": "fearful",
    "happiness": "happy",
    "joy": "happy",
    "pleasant_surprise": "surprised",
    "sadness": "sad",
    "surprise": "surprised",
}
OWN_LEVELS = {"low": "level_low", "neutral": "level_normal", "high": "level_high"}

# Original distributions name clips so; the same folder has to read them.
ORIGINALS = {
    "ar_baved": ["0/0-m-21-0-1-105.wav", "6/103-f-22-6-2-8.wav"],
    "bn_banglaser": ["BanglaSER/03-01-05-01-03-02-25.wav"],
    "de_emodb": ["wav/03a01Fa.wav", "EMO-DB/wav/16b10Td.wav"],
    "en_cremad": ["AudioWAV/1001_DFA_ANG_XX.wav", "1040_ITH_SAD_X.wav"],
    "en_ravdess": ["Actor_01/03-01-05-01-01-01-01.wav", "a/b/Actor_24/03-01-08-02-02-02-24.wav"],
    "en_savee": ["AudioData/DC/a01.wav", "ALL/KL_su15.wav", "DC_sa03.wav"],
    "en_tess": ["TESS/OAF_Pleasant_surprise/OAF_back_ps.wav", "OAF_neutral/OA_bite_neutral.wav"],
    "fa_shemo": ["female/F01A01.wav", "M56W09.wav"],
    "id_indowave": ["IndoWaveSentiment/Actor_10/10-05-02-03.wav"],
    "it_emovo": ["EMOVO/f1/dis-f1-b1.wav", "m3/gio-m3-n5.wav"],
    "pl_nemo": ["samples/EB0_anger_10.wav"],
    "tr_turev": ["Sound Source/Sad/1157_hl_algi.wav"],
    "ur_urdu": ["Angry/SM1_F1_A01.wav", "Happy/SF6_F10_H034.wav"],
}


def test_all_corpora_of_the_first_version_are_there():
    assert set(EXPECTED) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_task_file_is_valid_and_has_examples(name):
    facts = tasks.read_facts(tasks.find_task(name))
    assert len(facts.examples) >= 2
    assert facts.homepage.startswith("http")
    for example in facts.examples.values():
        assert {"speaker", "emotion"} <= set(example)


@pytest.mark.parametrize("name", NAMES)
def test_check_without_audio_finds_nothing_wrong(name):
    assert tasks.check_task(tasks.read_task(name)).problems == ()


@pytest.mark.parametrize("name", NAMES)
def test_readme_is_short_and_tells_what_is_needed(name):
    text = (tasks.find_task(name) / "README.md").read_text(encoding="utf-8")
    assert 10 <= len(text.splitlines()) <= 25
    for word in ("**Obtain**", "**Licence**", "**Classes**", "**Hazards**", "Citation:"):
        assert word in text


@pytest.mark.parametrize("name", sorted(ORIGINALS))
def test_names_of_the_original_distribution_are_read(name, tmp_path):
    facts = tasks.read_facts(tasks.find_task(name))
    for original in ORIGINALS[name]:
        path = tmp_path / facts.audio / original
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    task = tasks.read_task(name, data=tmp_path)
    assert sorted(task.table["file"]) == sorted(ORIGINALS[name])


@pytest.mark.parametrize("name", EXPECTED)
def test_classes_are_canonical_except_levels(name):
    classes = set(tasks.read_task(name).classes)
    if name == "ar_baved":
        assert not classes & set(labels.CLASSES)
    else:
        assert classes <= set(labels.CLASSES)


def test_classes_that_must_not_be_merged():
    assert "neutral" not in tasks.read_task("tr_turev").classes
    assert "sad" not in tasks.read_task("id_indowave").classes
    iemocap = tasks.read_facts(tasks.find_task("en_iemocap")).emotion.mapping
    assert [code for code, name in iemocap.items() if name == "happy"] == ["hap"]


def _present(name, corpora):
    task = tasks.read_task(name, data=corpora)
    if task.table is None:
        pytest.skip(f"no audio of {name} below {corpora}")
    return task


@pytest.mark.parametrize("name", EXPECTED)
def test_real_corpus_passes_the_check(name, corpora):
    check = tasks.check_task(_present(name, corpora), subset=True)
    assert check.problems == ()


@pytest.mark.parametrize("name", EXPECTED)
def test_speakers_and_emotions_agree_with_the_corpus_table(name, corpora):
    task = _present(name, corpora)
    if not (task.audio / "metadata.csv").is_file():
        pytest.skip(f"no metadata.csv in {task.audio}")
    told = pd.read_csv(task.audio / "metadata.csv", dtype=str).set_index("file")
    own = OWN_LEVELS if name == "ar_baved" else OWN_LABELS
    told = told.loc[sorted(told.index)]
    assert list(task.table["file"]) == list(told.index)
    speakers = [re.sub("^(Actor_|b(?=[0-9]))", "", who) for who in told["speaker"]]
    assert list(task.table["speaker"]) == speakers
    assert list(task.table["emotion"]) == [own.get(label, label) for label in told["emotion"]]


@pytest.mark.parametrize("name", ["it_emovo", "ur_urdu"])
def test_published_overlaps_never_straddle_a_split(name, corpora):
    task = _present(name, corpora)
    if not (task.audio / "overlaps.csv").is_file():
        pytest.skip(f"no overlaps.csv in {task.audio}")
    rows = task.table.set_index("file")
    for pair in pd.read_csv(task.audio / "overlaps.csv").itertuples():
        assert rows["clique"][pair.file_a] == rows["clique"][pair.file_b]
        assert rows["unit"][pair.file_a] == rows["unit"][pair.file_b]


def test_removed_duplicates_are_declared():
    ravdess = tasks.read_facts(tasks.find_task("en_ravdess")).duplicates
    assert ["03-01-03-01-02-01-07", "03-01-03-01-02-02-07"] in ravdess.files
    baved = tasks.read_facts(tasks.find_task("ar_baved")).duplicates
    assert ["46", "53"] in baved.speakers
    assert len(baved.files) == 27


def test_shemo_reads_its_list_of_names(shemo_list, tmp_path):
    told = pd.read_csv(shemo_list, dtype=str)
    folder = tmp_path / "shemo"
    for gender in told["gender"].unique():
        (folder / gender).mkdir(parents=True)
    for clip in told.itertuples():
        (folder / clip.gender / clip.file).touch()
    task = tasks.read_task("fa_shemo", data=tmp_path)
    assert (task.clips_found, task.speakers_found) == (task.utterances, task.speakers)
    assert task.unmatched == ()
    told = told.assign(key=told["gender"] + "/" + told["file"]).sort_values("key")
    assert list(task.table["file"]) == list(told["key"])
    assert list(task.table["speaker"]) == list(told["speaker"])
    assert list(task.table["gender"]) == [gender[0].upper() for gender in told["gender"]]
    expected = [OWN_LABELS.get(label, label) for label in told["emotion"]]
    assert list(task.table["emotion"]) == expected
    assert task.counts == dict(Counter(expected))
    assert task.table["unit"].nunique() == 87
