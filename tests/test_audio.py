import os

import numpy as np
import pytest
import soundfile

from metaser import audio


@pytest.fixture
def tone():
    """One second of a 440 Hz tone at 16 kHz, on the grid of 8-bit samples."""
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    return (np.round(wave * 128) / 128).astype(np.float32)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_reads_every_sample_format_alike(tmp_path, tone, subtype):
    soundfile.write(tmp_path / "a.wav", tone, 16000, subtype=subtype)
    read = audio.read(tmp_path / "a.wav")
    assert read.dtype == np.float32
    assert read.shape == (16000,)
    np.testing.assert_array_equal(read, tone)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.flac", {}),
        ("a.ogg", {}),
        ("a.mp3", {}),
        ("a.aiff", {}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("A.WAV", {}),
    ],
)
def test_reads_every_container(tmp_path, tone, name, options):
    soundfile.write(tmp_path / name, tone, 16000, **options)
    read = audio.read(tmp_path / name)
    assert np.corrcoef(read[: len(tone)], tone[: len(read)])[0, 1] > 0.98
    assert audio.find(tmp_path) == [tmp_path / name]


def test_stereo_is_averaged(tmp_path, tone):
    soundfile.write(tmp_path / "a.wav", np.stack([tone, -tone / 2], axis=1), 16000, subtype="FLOAT")
    np.testing.assert_allclose(audio.read(tmp_path / "a.wav"), tone / 4, atol=1e-7)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates_are_resampled(tmp_path, tone, rate):
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    soundfile.write(tmp_path / "a.wav", wave, rate)
    read = audio.read(tmp_path / "a.wav", rate=16000)
    assert len(read) == 16000
    inner = slice(2000, 14000)
    ideal = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    np.testing.assert_allclose(read[inner], ideal[inner], atol=2e-3)


def test_silent_audio_is_read(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(1600), 16000)
    assert not audio.read(tmp_path / "a.wav").any()


def _empty(path, tone):
    path.write_bytes(b"")


def _no_samples(path, tone):
    soundfile.write(path, np.zeros(0), 16000)


def _cut(path, tone):
    soundfile.write(path, tone, 16000)
    os.truncate(path, 9000)


def _not_a_number(path, tone):
    wave = tone.copy()
    wave[100:103] = np.nan
    soundfile.write(path, wave, 16000, subtype="FLOAT")


def _text(path, tone):
    path.write_text("no audio at all")


def _pointer(path, tone):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def _zeros(path, tone):
    path.write_bytes(bytes(5000))


def _one_sample(path, tone):
    soundfile.write(path, tone[:1], 192000)


BROKEN = [
    (_empty, "empty (0 bytes)"),
    (_no_samples, "no samples (zero length)"),
    (_cut, "truncated: its header states 32000 bytes of audio, 8956 are there"),
    (_not_a_number, "3 of 16000 samples are NaN or infinite"),
    (_text, "cannot be decoded"),
    (_pointer, "Git LFS pointer"),
    (_zeros, "zeros only"),
    (_one_sample, "leave none at 16000 Hz"),
]


@pytest.mark.parametrize(
    ("make", "words"), BROKEN, ids=lambda value: getattr(value, "__name__", "")
)
def test_unusable_files_say_why_and_where(tmp_path, tone, make, words):
    path = tmp_path / "clip.wav"
    make(path, tone)
    with pytest.raises(audio.AudioError) as caught:
        audio.read(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.99])
@pytest.mark.parametrize("name", ["a.flac", "a.mp3", "a.ogg", "a.aiff"])
def test_truncation_is_noticed_in_other_containers(tmp_path, name, share):
    rng = np.random.default_rng(0)
    path = tmp_path / name
    soundfile.write(path, rng.normal(size=48000) * 0.1, 16000)
    audio.read(path)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(audio.AudioError):
        audio.read(path)


def test_streamed_wav_with_unknown_size_is_no_truncation(tmp_path, tone):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone, 16000, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    np.testing.assert_allclose(audio.read(path), tone, atol=1e-4)


def test_missing_file_and_bad_rate(tmp_path, tone):
    with pytest.raises(FileNotFoundError, match="gone.wav"):
        audio.read(tmp_path / "gone.wav")
    with pytest.raises(FileNotFoundError, match="gone.wav"):
        audio.duration(tmp_path / "gone.wav")
    soundfile.write(tmp_path / "a.wav", tone, 16000)
    with pytest.raises(ValueError, match="rate must be above 0 Hz"):
        audio.read(tmp_path / "a.wav", rate=0)


def test_duration_in_seconds(tmp_path, tone):
    soundfile.write(tmp_path / "a.wav", np.zeros((22050, 2)), 44100)
    assert audio.duration(tmp_path / "a.wav") == 0.5
    (tmp_path / "b.wav").write_text("nothing")
    with pytest.raises(audio.AudioError, match="cannot be decoded"):
        audio.duration(tmp_path / "b.wav")


def test_content_hash_knows_audio_not_containers(tmp_path, tone):
    soundfile.write(tmp_path / "a.wav", tone, 16000, subtype="PCM_16")
    soundfile.write(tmp_path / "b.flac", tone, 16000)
    soundfile.write(tmp_path / "c.wav", tone, 22050, subtype="PCM_16")
    soundfile.write(tmp_path / "d.wav", np.append(tone[:-1], 0.25), 16000, subtype="PCM_16")
    soundfile.write(tmp_path / "e.wav", tone.reshape(-1, 2), 16000, subtype="PCM_16")
    digests = [audio.content_hash(path) for path in audio.find(tmp_path)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4
    assert all(len(digest) == 32 for digest in digests)


def test_find_is_deep_sorted_and_passes_over_hidden_files(tmp_path, tone):
    for name in ["b/2.flac", "a/x/1.WAV", "._a.wav", ".cache/3.wav", "notes.txt", "b/10.mp3"]:
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "root" / "loop").symlink_to(tmp_path / "root")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "4.wav").touch()
    (tmp_path / "root" / "c").symlink_to(tmp_path / "other")
    found = [
        path.relative_to(tmp_path / "root").as_posix() for path in audio.find(tmp_path / "root")
    ]
    assert found == ["a/x/1.WAV", "b/10.mp3", "b/2.flac", "c/4.wav"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        audio.find(tmp_path / "nowhere")


def test_real_clips_agree_with_their_published_durations(corpora):
    import pandas as pd

    folders = [path.parent for path in sorted(corpora.glob("*/metadata.csv"))]
    if not folders:
        pytest.skip("the corpora here have no metadata.csv")
    for folder in folders:
        clips = pd.read_csv(folder / "metadata.csv").iloc[::97]
        for clip in clips.itertuples():
            path = folder / clip.file
            assert audio.duration(path) == pytest.approx(clip.duration_s, abs=1e-3)
            assert len(audio.read(path)) == round(audio.duration(path) * 16000)
