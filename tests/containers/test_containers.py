"""Files whose headers lie: all that is there is read, and what is missing is noticed."""

import io
import logging
import os
import struct
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from metaser import audio
from metaser.containers import mpeg, ogg

RATE = 16000


def _talk(seconds=3.0, seed=0) -> np.ndarray:
    """Noise whose level changes, then quiet, so that an MP3 of variable rate varies."""
    rng = np.random.default_rng(seed)
    wave = 0.1 * rng.standard_normal(round(seconds * RATE))
    wave[len(wave) // 3 :] *= 1e-3
    return wave.astype(np.float32)


def _bytes(wave, form, subtype=None, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format=form, subtype=subtype, **options)
    return file.getvalue()


def _read(path, content) -> tuple[np.ndarray, list[str]]:
    """Decode bytes as a file; return mono samples and what was said about it."""
    path.write_bytes(content)
    audio._say.cache_clear()
    with audio.opened(path) as sound:
        notes = list(sound.notes)
        blocks = np.concatenate(list(sound.blocks(5000)))
    np.testing.assert_allclose(audio.decode(path)[0], blocks, atol=1e-6)  # whole and in blocks
    assert audio.duration(path) == len(blocks) / RATE
    return blocks[:, 0], notes


SIZES = {  # where the size of the sound stands, how, and by how much it is larger than the sound
    "WAV": (lambda b: b.index(b"data") + 4, "<I", 0),
    "WAVEX": (lambda b: b.index(b"data") + 4, "<I", 0),
    "RF64": (lambda b: b.index(b"ds64") + 16, "<Q", 0),
    "AIFF": (lambda b: b.index(b"SSND") + 4, ">I", 8),
    "AU": (lambda b: 8, ">I", 0),
    "CAF": (lambda b: b.index(b"data") + 4, ">q", 4),
    "W64": (lambda b: b.rindex(b"data") + 16, "<q", 24),
}


def _with_size(content, form, change) -> bytes:
    place, code, extra = SIZES[form]
    content, at = bytearray(content), place(content)
    (stated,) = struct.unpack_from(code, content, at)
    struct.pack_into(code, content, at, change(stated - extra, code) + extra)
    return bytes(content)


@pytest.mark.parametrize("subtype", ["PCM_16", "ULAW", "FLOAT"])
@pytest.mark.parametrize("form", SIZES)
@pytest.mark.parametrize(
    "change, said",
    [
        (lambda size, code: size, 0),
        (lambda size, code: 0, 1),
        (lambda size, code: size // 8 * 4, 1),
        (lambda size, code: size - 44, 1),
        (lambda size, code: size + 44, 1),
        (lambda size, code: {"I": 0xFFFFFFF0, "Q": 2**63, "q": 2**62}[code[1]], 0),
    ],
    ids=["right", "zero", "half", "header less", "header more", "unknown"],
)
def test_all_samples_are_read_whatever_size_is_stated(tmp_path, form, subtype, change, said):
    wave = _talk()
    content = _bytes(wave, form, subtype)
    expected = soundfile.read(io.BytesIO(content), dtype="float32")[0]
    found, notes = _read(tmp_path / "a.bin", _with_size(content, form, change))
    np.testing.assert_array_equal(found, expected)
    assert len(notes) == said and all("all were read" in note for note in notes)


@pytest.mark.parametrize("form", SIZES)
def test_a_chunk_or_a_tag_behind_the_sound_is_not_sound(tmp_path, form):
    wave, content = _talk(), _bytes(_talk(), form, "PCM_16")
    tag = b"TAG" + b"song".ljust(125) if form != "W64" else b""
    found, notes = _read(tmp_path / "a.bin", content + tag)
    assert len(found) == len(wave) and not notes


@pytest.mark.parametrize("form", ["WAV", "AIFF"])
def test_a_chunk_behind_the_sound_is_passed_over(tmp_path, form):
    chunk = b"note" + struct.pack(SIZES[form][1], 6000) + bytes(range(1, 201)) * 30
    found, notes = _read(tmp_path / "a.bin", _bytes(_talk(), form, "PCM_16") + chunk)
    assert len(found) == len(_talk()) and not notes


FORMS = [(form, "PCM_16") for form in SIZES] + [
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


@pytest.mark.parametrize("form, subtype", FORMS)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_cut_file_is_refused_whole_and_in_blocks(tmp_path, form, subtype, share):
    content = _bytes(_talk(), form, subtype)
    path = tmp_path / "a.wav"
    path.write_bytes(content[: int(len(content) * share)])
    for read in (audio.decode, _in_blocks):
        with pytest.raises(audio.AudioError, match="a.wav"):
            read(path)


def _in_blocks(path) -> int:
    with audio.opened(path) as sound:
        return sum(len(block) for block in sound.blocks(1000))


@pytest.mark.parametrize("form, subtype", FORMS[-4:])
def test_streams_behind_one_another_are_all_read(tmp_path, form, subtype):
    first, second = (_bytes(_talk(seconds), form, subtype) for seconds in (2, 1))
    alone = [_read(tmp_path / "a", content)[0] for content in (first, second)]
    found, notes = _read(tmp_path / "a", first + second)
    np.testing.assert_allclose(found, np.concatenate(alone), atol=1e-4)
    assert len(notes) == 1 and "2" in notes[0] and "behind one another; all were read" in notes[0]
    other = io.BytesIO()
    soundfile.write(other, _talk(), 24000, format=form, subtype=subtype)
    with pytest.raises(audio.AudioError, match="one.* rate"):
        _read(tmp_path / "a", first + other.getvalue())


def _flac_total(content: bytes, total: int) -> bytes:
    content = bytearray(content)
    content[21] = content[21] & 0xF0 | total >> 32
    content[22:26] = (total & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize("seconds", [0.01, 1.0, 20.0])
@pytest.mark.parametrize("share, said", [(1, 0), (0, 0), (0.5, 1)])
def test_a_flac_is_as_long_as_its_last_frame_says(tmp_path, seconds, share, said):
    wave = _talk(seconds)
    content = _bytes(wave, "FLAC")
    expected = soundfile.read(io.BytesIO(content), dtype="float32")[0]
    found, notes = _read(tmp_path / "a", _flac_total(content, int(share * len(wave))))
    np.testing.assert_array_equal(found, expected)
    assert len(notes) == said
    with pytest.raises(audio.AudioError, match="truncated"):
        _read(tmp_path / "a", _flac_total(content, 2 * len(wave)))
    with pytest.raises(audio.AudioError, match="truncated|damaged"):
        _read(tmp_path / "a", _flac_total(content, 0)[:-10])


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_is_read_to_its_last_frame_without_a_count(tmp_path, mode):
    wave = _talk(20)
    content = _bytes(wave, "MP3", bitrate_mode=mode, compression_level=0.3)
    counting = mpeg.read_header(content, 0)
    assert content[counting.side : counting.side + 4] in (b"Xing", b"Info")
    whole, _ = _read(tmp_path / "a", content)
    assert len(whole) == len(wave)
    without = content[counting.length :]
    found, notes = _read(tmp_path / "a", without)
    late = 576  # the delay of the encoder, of which the first frame told
    assert not notes and 0 <= len(found) - len(wave) - late < 1152
    np.testing.assert_allclose(found[late : late + 9000], whole[:9000], atol=1e-3)
    few = bytearray(content)
    few[counting.side + 8 : counting.side + 12] = (9).to_bytes(4, "big")
    again, notes = _read(tmp_path / "a", bytes(few))
    assert len(again) >= len(wave) and "states 9 frames" in notes[0]
    with pytest.raises(audio.AudioError, match="last frame"):
        _read(tmp_path / "a", without[:-7])
    tagged = b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + without + b"TAG" + bytes(125)
    np.testing.assert_allclose(_read(tmp_path / "a", tagged)[0], found, atol=1e-6)


def _pages(content) -> list[ogg.Page]:
    return ogg._pages(content, 0)[0]


def _built(content, pages) -> bytes:
    """Pages with their own checksums, as another program wrote them."""
    return b"".join(ogg._head(content, page) + content[page.body : page.end] for page in pages)


OGG = {
    "no end mark": lambda p: replace(p, flags=p.flags & ~ogg.LAST),
    "late start": lambda p: replace(p, position=p.position + 10**6 * bool(p.position)),
    "no positions": lambda p: replace(p, position=ogg.UNSET if p.position else 0),
    "positions of zero": lambda p: replace(p, position=0),
    "end too late": lambda p: replace(p, position=p.position << (p.flags & ogg.LAST)),
    "end too early": lambda p: replace(p, position=p.position >> (p.flags & ogg.LAST) // 4),
}


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("kind", OGG)
def test_whole_pages_of_ogg_are_read_whatever_they_state(tmp_path, subtype, kind):
    content = _bytes(_talk(12), "OGG", subtype)
    expected, notes = _read(tmp_path / "a", content)
    assert not notes and len(expected) == 12 * RATE
    pages = _pages(content)
    assert _built(content, pages) == content  # the checksum is that of libogg
    found, notes = _read(tmp_path / "a", _built(content, map(OGG[kind], pages)))
    np.testing.assert_allclose(found[: len(expected)], expected, atol=1e-6)
    assert 0 <= len(found) - len(expected) < 2048 and len(notes) == 1


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_what_ogg_lacks_is_said(tmp_path, subtype):
    content = _bytes(_talk(12), "OGG", subtype)
    pages = _pages(content)
    _, notes = _read(tmp_path / "a", _built(content, pages[:-1]))
    assert ["no end mark" in note for note in notes] == [True]
    _, notes = _read(tmp_path / "a", _built(content, pages[:5] + pages[6:]))
    assert ["missing at 1 places" in note for note in notes] == [True]
    beside = [replace(page, serial=7) for page in pages]
    pairs = [page for pair in zip(pages, beside) for page in pair]
    found, notes = _read(tmp_path / "a", _built(content, pairs))
    assert len(found) == 12 * RATE and "2 sounds beside one another" in notes[0]
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    with pytest.raises(audio.AudioError, match="damaged"):
        _read(tmp_path / "a", bytes(changed))


def test_a_note_is_said_once_and_a_name_does_not_matter(tmp_path, caplog):
    audio._say.cache_clear()
    path = tmp_path / "a.ogg"
    path.write_bytes(_with_size(_bytes(_talk(), "WAV"), "WAV", lambda size, code: 0))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert len(audio.read(path)) == len(_talk())
    assert len(caplog.records) == 1 and str(path) in caplog.text


def test_a_wav_of_more_than_four_gibibytes_is_as_long_as_it_is(tmp_path):
    content = bytearray(_bytes(np.zeros(RATE), "WAV"))
    size = 2**32 + 20 * RATE  # its size counts from 0 again
    struct.pack_into("<I", content, 40, 20 * RATE)
    (tmp_path / "a.wav").write_bytes(content)
    os.truncate(tmp_path / "a.wav", 44 + size)  # takes no room on the disk
    assert audio.duration(tmp_path / "a.wav") == size / 2 / RATE


def test_a_damaged_rate_is_refused(tmp_path):
    content = bytearray(_bytes(_talk(), "WAV"))
    struct.pack_into("<I", content, 24, 3)
    with pytest.raises(audio.AudioError, match="rate must be from 1000 to 1000000 Hz, not 3;"):
        _read(tmp_path / "a.wav", bytes(content))
