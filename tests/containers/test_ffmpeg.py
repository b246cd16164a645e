"""Sound that libsndfile does not read, by PyAV."""

import io
import sys

import numpy as np
import pytest
import soundfile

from metaser import audio

av = pytest.importorskip("av", reason="needs PyAV: pip install 'metaser[video]'")

RATE = 16000
TONE = np.float32(0.3) * np.sin(2 * np.pi * 440 * np.arange(3 * RATE) / RATE).astype(np.float32)

KINDS = {
    "a.m4a": ("ipod", "aac", RATE),
    "a.mp4": ("mp4", "aac", RATE),
    "a.3gp": ("3gp", "aac", RATE),
    "a.aac": ("adts", "aac", RATE),
    "a.webm": ("webm", "libopus", 48000),
    "a.wma": ("asf", "wmav2", RATE),
    "a.mka": ("matroska", "aac", RATE),
    "a.amr": ("amr", "libopencore_amrnb", 8000),
}


def encode(kind, *waves, layout="mono") -> bytes:
    """Return a file with one stream of sound for each waveform."""
    form, codec, rate = KINDS[kind]
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        streams = [container.add_stream(codec, rate=rate) for _ in waves]
        for stream in streams:
            stream.layout, stream.bit_rate = layout, 12200 if "amr" in codec else 48000
        for stream, wave in zip(streams, waves):
            frame = av.AudioFrame.from_ndarray(np.atleast_2d(wave), "fltp", layout)
            frame.sample_rate = RATE
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_other_formats_are_read_and_found(tmp_path, kind):
    if KINDS[kind][1] not in av.codecs_available:
        pytest.skip(f"this PyAV has no {KINDS[kind][1]}")
    (tmp_path / kind).write_bytes(encode(kind, TONE))
    assert audio.find(tmp_path) == [tmp_path / kind]
    found = audio.read(tmp_path / kind, RATE)
    assert abs(len(found) - len(TONE)) < 0.15 * RATE
    assert audio.duration(tmp_path / kind) == pytest.approx(len(found) / RATE, abs=1e-3)
    spectrum = np.abs(np.fft.rfft(found))
    assert np.argmax(spectrum) * RATE / len(found) == pytest.approx(440, abs=1)
    assert found[RATE : 2 * RATE].std() == pytest.approx(TONE.std(), rel=0.25)
    cut = encode(kind, TONE)
    (tmp_path / kind).write_bytes(cut[: len(cut) // 2])
    with pytest.raises(audio.AudioError, match=kind):
        audio.read(tmp_path / kind)


def test_the_first_bytes_decide_and_two_channels_stay(tmp_path):
    wave = np.stack([TONE, 0.5 * TONE])
    (tmp_path / "a.wav").write_bytes(encode("a.m4a", wave, layout="stereo"))
    samples, rate = audio.decode(tmp_path / "a.wav")
    assert (rate, samples.shape[1]) == (RATE, 2)
    assert samples[:, 1].std() == pytest.approx(0.5 * samples[:, 0].std(), rel=0.05)
    soundfile.write(tmp_path / "b.wav", TONE, RATE)
    (tmp_path / "b.wav").rename(tmp_path / "b.m4a")
    assert len(audio.read(tmp_path / "b.m4a")) == len(TONE)


def test_other_sounds_in_a_file_are_named(tmp_path, caplog):
    (tmp_path / "a.mka").write_bytes(encode("a.mka", TONE, 0 * TONE))
    assert audio.read(tmp_path / "a.mka").std() == pytest.approx(TONE.std(), rel=0.25)
    assert "2 sounds beside one another; the first was read" in caplog.text


def test_without_pyav_the_command_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.m4a").write_bytes(encode("a.m4a", TONE))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(audio.AudioError, match=r"a.m4a: .*pip install 'metaser\[video\]'"):
        audio.read(tmp_path / "a.m4a")


def test_a_film_beside_a_sound_of_the_same_name_is_no_clip(tmp_path):
    for name in ("1.wav", "1.mp4", "2.mp4"):
        (tmp_path / name).touch()
    assert [path.name for path in audio.find(tmp_path)] == ["1.wav", "2.mp4"]
