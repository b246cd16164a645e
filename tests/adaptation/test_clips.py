"""A folder of recordings: what is found, what is refused and in which words."""

import numpy as np
import pytest
import soundfile

from metaser.adaptation.clips import Clips, labelled_folder, labelled_table, refuse_two_labels
from metaser.audio import AudioError
from metaser.features.hear import gather, hear, hear_windows, mixed_rates

CLASSES = ("angry", "happy", "neutral", "sad")


class Loudness:
    """A front end that gives one number a clip: its mean magnitude."""

    rate = 8000

    def __call__(self, waveform):
        return np.array([[np.abs(waveform).mean(), len(waveform) / self.rate]], np.float32)


def _write(path, seconds=1.0, rate=8000, value=0.25):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = value * (-1.0) ** np.arange(round(seconds * rate))
    soundfile.write(path, wave, rate, subtype="FLOAT")
    return path


def test_labels_come_from_folders_whatever_case_spaces_and_script(tmp_path):
    root = tmp_path / "Aufnahmen für наш язык"
    for name in (" Angry ", "wütend", "خوش", "sad"):
        _write(root / name / "ali" / "клип 1.wav")
    mapping = {"wütend": "angry", "خوش": "happy"}
    found = labelled_folder(root, CLASSES, mapping)
    assert sorted(found.emotions) == ["angry", "angry", "happy", "sad"]
    assert found.speakers == ("ali",) * 4


def test_a_speaker_is_in_the_name_or_nowhere(tmp_path):
    for name in ("angry/ali_1.wav", "sad/mia_1.wav"):
        _write(tmp_path / name)
    assert labelled_folder(tmp_path, CLASSES).speakers is None
    assert labelled_folder(tmp_path, CLASSES, speaker="^([a-z]+)_").speakers == ("ali", "mia")
    assert len(set(labelled_folder(tmp_path, CLASSES, speaker="one").speakers)) == 1
    assert len(set(labelled_folder(tmp_path, CLASSES, speaker="file").speakers)) == 2
    with pytest.raises(ValueError, match="gives no speaker for ali_1.wav"):
        labelled_folder(tmp_path, CLASSES, speaker="^(m.*)_")
    with pytest.raises(ValueError, match="must be one, file or a regular expression"):
        labelled_folder(tmp_path, CLASSES, speaker="(")
    _write(tmp_path / "sad" / "zoe" / "1.wav")
    with pytest.raises(ValueError, match="but 2 of 3 lie in none: "):
        labelled_folder(tmp_path, CLASSES)


def test_an_unknown_label_is_named_with_the_nearest_class_and_can_be_dropped(tmp_path):
    for name in ("angry", "happi", "bored"):
        _write(tmp_path / name / "1.wav")
    with pytest.raises(ValueError, match=r"not 'happi' Did you mean 'happy'\?.*--label"):
        labelled_folder(tmp_path, CLASSES, drop=["bored"])
    with pytest.raises(ValueError, match="must stand for a class.*not 'cheerful'"):
        labelled_folder(tmp_path, CLASSES, {"happi": "cheerful"})
    found = labelled_folder(tmp_path, CLASSES, {"happi": "happy"}, drop=["bored"])
    assert found.emotions == ("angry", "happy")


def test_empty_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="must lie in a folder"):
        labelled_folder(tmp_path / "absent", CLASSES)
    with pytest.raises(ValueError, match="must hold a sub-folder .* holds no audio files"):
        labelled_folder(tmp_path, CLASSES)
    _write(tmp_path / "loose.wav")
    with pytest.raises(ValueError, match="holds 1 audio files without a label"):
        labelled_folder(tmp_path, CLASSES)
    (tmp_path / "sad").mkdir()
    with pytest.raises(ValueError, match="sad must hold audio files"):
        labelled_folder(tmp_path, CLASSES)


@pytest.mark.parametrize("name", ["notes.txt", "film.mkv"])
def test_what_is_not_audio_is_named(tmp_path, name):
    _write(tmp_path / "sad" / "1.wav")
    (tmp_path / "sad" / name).write_bytes(b"something else")
    with pytest.raises(ValueError, match=f"must be audio .*{name}: move"):
        labelled_folder(tmp_path, CLASSES)


def test_text_in_an_audio_name_is_refused_when_heard(tmp_path):
    path = tmp_path / "1.wav"
    path.write_text("no audio at all, only words")
    with pytest.raises(AudioError, match="cannot be decoded"):
        list(hear([path], Loudness()))


def test_rates_are_brought_to_one_and_told(tmp_path):
    files = [_write(tmp_path / "1.wav", rate=8000), _write(tmp_path / "2.wav", rate=16000)]
    heard = list(hear(files, Loudness()))
    assert [one.frames[0, 1] for one in heard] == [1.0, 1.0]
    assert "1 at 8000 Hz, 1 at 16000 Hz" in mixed_rates(heard)
    assert mixed_rates(heard[:1]) == ""


def test_the_same_audio_is_refused(tmp_path):
    files = (_write(tmp_path / "1.wav"), _write(tmp_path / "2.wav"), _write(tmp_path / "3.wav"))
    contents = [one.content for one in hear(files, Loudness())]
    with pytest.raises(ValueError, match="same audio with two labels, sad and angry"):
        refuse_two_labels(Clips(files[:2], ("sad", "angry")), contents[:2])
    with pytest.raises(ValueError, match="same audio: keep one"):
        refuse_two_labels(Clips(files, ("sad", "sad", "sad")), contents)


def test_a_long_clip_asks_for_windows(tmp_path):
    with pytest.raises(AudioError, match="at most 60 s long.*not 70 s.*--window"):
        list(hear([_write(tmp_path / "long.wav", seconds=70)], Loudness()))


def test_windows_lie_where_they_say(tmp_path):
    ramp = np.repeat(np.arange(10), 8000) / 10  # a step a second
    ramp *= (-1.0) ** np.arange(len(ramp))
    soundfile.write(tmp_path / "long.wav", ramp, 8000, subtype="FLOAT")
    heard = list(hear_windows([tmp_path / "long.wav"], Loudness(), 4, 2))
    assert [(one.start, one.end) for one in heard] == [(0, 4), (2, 6), (4, 8), (6, 10)]
    for one in heard:
        middle = np.mean([second / 10 for second in range(int(one.start), int(one.end))])
        assert one.frames[0, 0] == pytest.approx(middle, abs=1e-6)


def test_a_short_file_is_one_window_and_a_short_rest_is_left_out(tmp_path):
    short, rest = _write(tmp_path / "a.wav", 1.0), _write(tmp_path / "b.wav", 5.0)
    ends = [one.end for one in hear_windows([short, rest], Loudness(), 4, 4)]
    assert ends == [1.0, 4.0]
    for window, hop in ((4, 5), (0, 0), (90, 2)):
        with pytest.raises(ValueError, match="must have 0 < hop <= window <= 60"):
            hear_windows([short], Loudness(), window, hop)


def test_a_long_recording_is_held_in_portions(tmp_path):
    largest = []

    class Counting(Loudness):
        def many(self, waveforms):
            largest.append(sum(map(len, waveforms)) / self.rate)
            return list(map(self, waveforms))

    path = _write(tmp_path / "long.wav", seconds=900)
    heard = list(hear_windows([path], Counting(), 4, 2))
    assert len(heard) == 449 and len(largest) > 10 and max(largest) <= 120
    assert gather(heard).values.shape == (449, 1, 2)


@pytest.mark.parametrize("depth", ["", "/session1", "/2024/april"])
def test_the_first_folder_is_the_speaker_under_any_spelling(tmp_path, depth):
    for i, who in enumerate(["José", "JOSÉ", "Jose\u0301 ", "mia"]):
        _write(tmp_path / f"{('angry', 'sad')[i % 2]}/{who}{depth}/{i}.wav")
    told = []
    found = labelled_folder(tmp_path, CLASSES, tell=told.append)
    assert sorted(found.speakers) == ["JOSÉ"] * 3 + ["mia"]
    assert "one speaker in several spellings: JOSÉ = José" in told
    assert any("the folders inside theirs are not" in line for line in told) == bool(depth)


def test_a_clip_outside_of_its_speakers_folder_is_named(tmp_path):
    for name in ("angry/ali/1.wav", "angry/mia/1.wav", "sad/ali/2.wav", "sad/stray.wav"):
        _write(tmp_path / name)
    with pytest.raises(ValueError, match="but 1 of 4 lie in none: sad/stray.wav; move"):
        labelled_folder(tmp_path, CLASSES)


def test_folders_of_sessions_are_no_speakers(tmp_path):
    for name in ("angry/session1/ali_1.wav", "sad/Session 2/mia_1.wav"):
        _write(tmp_path / name)
    with pytest.raises(ValueError, match="must be named by speaker, not Session 2, session1"):
        labelled_folder(tmp_path, CLASSES)
    assert labelled_folder(tmp_path, CLASSES, speaker="^([a-z]+)_").speakers == ("ali", "mia")
    by_path = labelled_folder(tmp_path, CLASSES, speaker=r"/(\w+)_\d$")
    assert by_path.speakers == ("ali", "mia")


def test_files_of_the_system_are_passed_over_and_others_are_not(tmp_path):
    for name in ("angry/1.wav", "sad/2.wav", "sad/$RECYCLE.BIN/3.wav"):
        _write(tmp_path / name)
    for name in ("angry/.ipynb_checkpoints/x.txt", "sad/Thumbs.db", "__MACOSX/sad/._2.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert [path.name for path in labelled_folder(tmp_path, CLASSES).files] == ["1.wav", "2.wav"]
    (tmp_path / "sad/notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"1 are not by their name, such as .*notes.txt"):
        labelled_folder(tmp_path, CLASSES)


TABLE = "file,speaker,emotion\na.wav,{},angry\nb/a.wav,{},sad\nc.wav,{},{}\n"


def test_a_table_labels_clips_as_folders_do(tmp_path):
    for name in ("a.wav", "b/a.wav", "c.wav", "d.wav"):
        _write(tmp_path / name)
    table = tmp_path / "labels.csv"
    table.write_text(TABLE.format("ali", "ALI", "mia", "Angry"))
    found = labelled_table(table, CLASSES)
    assert [path.relative_to(tmp_path).as_posix() for path in found.files] == [
        "a.wav",
        "b/a.wav",
        "c.wav",
    ]
    assert found.emotions == ("angry", "sad", "angry")
    assert found.speakers == ("ALI", "ALI", "mia")
    table.write_text(
        TABLE.format("", "", "", "")
    )  # as `metaser select` writes it, one not filled in
    with pytest.raises(ValueError, match="1 of 3 have none: c.wav.*--drop ''"):
        labelled_table(table, CLASSES)
    found = labelled_table(table, CLASSES, drop=[""])
    assert (found.speakers, found.emotions) == (None, ("angry", "sad"))
    table.write_text(TABLE.format("ali", "", "mia", "sad"))
    with pytest.raises(ValueError, match="but 1 of 3 have no speaker: b/a.wav"):
        labelled_table(table, CLASSES)
    table.write_text(TABLE.format("ali", "ali", "mia", "bored"))
    with pytest.raises(ValueError, match="every label must be named by a class.*not 'bored'"):
        labelled_table(table, CLASSES)
    table.write_text("file,emotion\na.wav,sad\ngone.wav,sad\n")
    with pytest.raises(ValueError, match=r"names 1 files .*'gone.wav' \(line 3\)"):
        labelled_table(table, CLASSES)
