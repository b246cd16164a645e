"""A folder of recordings: what is found, what is refused and in which words."""

import numpy as np
import pytest
import soundfile

from metaser.adaptation.clips import Clips, labelled_folder, refuse_two_labels
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
    with pytest.raises(ValueError, match="fits none, such as 'ali_1'"):
        labelled_folder(tmp_path, CLASSES, speaker=r"^(\d+)$")
    with pytest.raises(ValueError, match="must be one, file or a regular expression"):
        labelled_folder(tmp_path, CLASSES, speaker="(")
    _write(tmp_path / "sad" / "zoe" / "1.wav")
    with pytest.raises(ValueError, match="but 2 of 3 lie in no folder of a speaker, such as"):
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
