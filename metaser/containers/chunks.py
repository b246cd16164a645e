"""WAV, AIFF and their relatives: how much sound is there, whatever the size of its chunk says."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from metaser.containers.content import Content, Piece, Segment

STREAMED = 0x7FFFF000
"""Sizes in 32 bits from here on mean that the size was not known: the file was streamed."""

UNKNOWN = 2**61
"""The same for sizes in 64 bits."""

HEADER = 128
"""Bytes by which a size may be too large, because it counts a header."""

W64 = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"


@dataclass(frozen=True)
class Kind:
    """How a format writes its chunks.

    Attributes
    ----------
    name : bytes
        What the chunk of sound begins with.
    first : int
        Place of the first chunk.
    width : int
        Bytes of a chunk's name.
    size : str
        Format of its size, which stands behind the name (see `struct`).
    whole : bool
        Whether the size counts name and size, too.
    align : int
        Chunks begin at multiples of so many bytes.
    """

    name: bytes = b"data"
    first: int = 12
    width: int = 4
    size: str = "<I"
    whole: bool = False
    align: int = 2

    @property
    def head(self) -> int:
        """Bytes of a chunk's name and size."""
        return self.width + struct.calcsize(self.size)


KINDS = {
    b"RIFF": Kind(),
    b"RF64": Kind(),
    b"BW64": Kind(),
    b"RIFX": Kind(size=">I"),
    b"FORM": Kind(name=b"SSND", size=">I"),
    b"caff": Kind(first=8, size=">q", align=1),
    W64[:4]: Kind(first=40, width=16, size="<q", whole=True, align=8),
}
"""Formats by their first four bytes."""

TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICS")
"""How what programs append to a file without a chunk begins."""


def is_known(head: bytes) -> bool:
    """Return whether a file of chunks begins so, or one of AU, which has but a header."""
    return head[:4] in KINDS or head[:4] == b".snd"


def examine(file: BinaryIO, size: int, start: int) -> Content:
    """Find the sound of a file of chunks, see `metaser.containers.examine`."""
    file.seek(start)
    mark = file.read(4)
    as_it_is = Content((Piece(((start, size),) if start else ()),))
    if mark == b".snd":
        head = file.read(8)
        if len(head) < 8:
            return as_it_is
        offset, stated = struct.unpack(">II", head)
        return _judge(file, Sound(start + offset, stated, start + 8, ">I"), size, as_it_is, None)
    kind = KINDS[mark]
    place64 = None
    for at, name, length in _chunks(file, start + kind.first, size, kind):
        if name[:4] == b"ds64" and mark in (b"RF64", b"BW64"):
            place64 = at + 16
        if name[:4] != kind.name:
            continue
        within = at + kind.head
        if place64 is not None and length == 0xFFFFFFFF:
            file.seek(place64)
            length = int.from_bytes(file.read(8), "little")
            sound = Sound(within, length, place64, "<Q")
        else:
            sound = Sound(within, length, at + kind.width, kind.size)
        return _judge(file, sound, size, as_it_is, kind)
    return as_it_is


def _chunks(file: BinaryIO, at: int, size: int, kind: Kind) -> Iterator[tuple[int, bytes, int]]:
    """Yield place, name and length of each chunk."""
    while at + kind.head <= size:
        file.seek(at)
        head = file.read(kind.head)
        length: int = struct.unpack_from(kind.size, head, kind.width)[0]
        if kind.whole:
            length -= kind.head
        yield at, head[: kind.width], length
        if length < 0:
            return
        at += kind.head + length
        at += -at % kind.align


@dataclass(frozen=True)
class Sound:
    """A chunk of sound.

    Attributes
    ----------
    start : int
        Where its samples begin.
    stated : int
        Its length in bytes, as stated.
    place : int
        Where in the file that is written.
    format : str
        Format of the length (see `struct`).
    """

    start: int
    stated: int
    place: int
    format: str


def _judge(
    file: BinaryIO, sound: Sound, size: int, as_it_is: Content, kind: Kind | None
) -> Content:
    """Compare the length of a chunk of sound with what is there."""
    there = size - sound.start
    wide = struct.calcsize(sound.format)
    unknown = sound.stated < 0 or sound.stated >= (STREAMED if wide == 4 else UNKNOWN)
    unknown = unknown or sound.stated == 0xFFFFFFFF
    if there <= 0 and (sound.stated > 0 or unknown):
        return Content(fault=_cut(sound.stated, 0))
    note = ""
    if sound.stated == there:
        return as_it_is
    if unknown:
        pass
    elif sound.stated > there:
        if sound.stated - there not in (*range(HEADER), sound.start, sound.start - 8):
            return Content(fault=_cut(sound.stated, there))
        note = (
            f"its header states {sound.stated} bytes of audio, {there} are there: it counts itself,"
            " too; all were read"
        )
    elif _is_no_sound(file, sound.start + sound.stated, size, kind):
        return as_it_is
    else:
        note = (
            f"its header states {sound.stated} bytes of audio, but {there} are there; all were "
            "read: write it anew, for example by `ffmpeg -i clip.wav new.wav`"
        )
    counted = there + (kind.head if kind is not None and kind.whole else 0)
    if wide == 4 and counted > STREAMED:
        counted = 0xFFFFFFFF
    number = struct.pack(sound.format, counted)
    begin = as_it_is.pieces[0].segments[0][0] if as_it_is.pieces[0].segments else 0
    assert isinstance(begin, int)
    head: tuple[Segment, ...] = ((begin, sound.place),)
    if counted == 0xFFFFFFFF and kind is KINDS[b"RIFF"]:  # above 4 GiB: as RF64, with a long size
        long = struct.pack("<4s4x4s4sIQQQI", b"RF64", b"WAVE", b"ds64", 28, size, there, 0, 0)
        head = (long, (begin + kind.first, sound.place))
    segments = (*head, number, (sound.place + wide, size))
    return Content((Piece(segments),), (note,) if note else ())


def _cut(stated: int, there: int) -> str:
    return (
        f"the file is truncated: its header states {stated} bytes of audio, {there} are there; "
        "fetch it again"
    )


def _is_no_sound(file: BinaryIO, at: int, size: int, kind: Kind | None) -> bool:
    """Return whether what stands behind the sound is chunks, a tag or padding."""
    file.seek(at)
    rest = file.read(64)
    if size - at < 4 or rest.startswith(TAGS) or (size - at <= 4096 and not _sounds(file, at)):
        return True
    if kind is None:
        return False
    for place, name, length in _chunks(file, at + -at % kind.align, size, kind):
        plain = all(32 <= byte < 127 for byte in name[:4])
        return plain and place + kind.head + length <= size + 1
    return False


def _sounds(file: BinaryIO, at: int) -> bool:
    """Return whether there is anything but zeros from a place on."""
    file.seek(at)
    return bool(file.read().strip(b"\0"))
