"""MP3 and its relatives: how many frames there are, whatever a first frame or the size says."""

from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

from metaser.containers.content import Content, Piece

RATES = ((11025, 12000, 8000), (0, 0, 0), (22050, 24000, 16000), (44100, 48000, 32000))
"""Samples per second by the codes of version (2.5, reserved, 2, 1) and rate."""

KBIT = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Kilobits per second by version 1 or not and layer, for the codes from 1 on."""

NEAR = 2**16
"""Bytes at the beginning in which the first frame is looked for."""

JUNK = 2**12
"""Bytes between or behind the frames that go without saying: a tag, some zeros."""


@dataclass(frozen=True)
class Frame:
    """What the header of a frame says.

    Attributes
    ----------
    kind : tuple of int
        Version, layer and rate: a decoder cannot go on where these change.
    length : int
        Bytes of the frame.
    samples : int
        Samples per channel.
    side : int
        Bytes of the header and of the side information behind it.
    """

    kind: tuple[int, int, int]
    length: int
    samples: int
    side: int


def tag_length(head: bytes) -> int:
    """Return how many bytes an ID3 tag takes whose first ten bytes these are; 0 for none."""
    if len(head) < 10 or head[:3] != b"ID3" or max(head[6:10]) > 127:
        return 0
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return 10 + size + (10 if head[5] & 16 else 0)


def read_header(data: bytes, at: int) -> Frame | None:
    """Return what the header at a place says, or None if there is no frame."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE0 != 0xE0:
        return None
    version, layer = data[at + 1] >> 3 & 3, 4 - (data[at + 1] >> 1 & 3)
    bits, code, padding = data[at + 2] >> 4, data[at + 2] >> 2 & 3, data[at + 2] >> 1 & 1
    if version == 1 or layer == 4 or code == 3 or not 0 < bits < 15:
        return None
    first, rate = version == 3, RATES[version][code]
    kbit = KBIT[first, layer][bits - 1]
    if layer == 1:
        return Frame((version, layer, rate), (12000 * kbit // rate + padding) * 4, 384, 4)
    samples = 576 if layer == 3 and not first else 1152
    mono = data[at + 3] >> 6 == 3
    side = 4 + ((17 if mono else 32) if first else (9 if mono else 17))
    return Frame((version, layer, rate), samples * 125 * kbit // rate + padding, samples, side)


def examine(file: BinaryIO, start: int) -> Content | None:
    """Find the streams of an MP3 file, see `metaser.containers.examine`; None if it is none."""
    file.seek(start)
    first = _first(file.read(NEAR))
    if first is None:
        return None
    file.seek(0)
    data = file.read()
    frames, skipped, incomplete = _frames(data, start + first)
    if incomplete:
        return Content(
            fault="the file is truncated: its last frame is not there completely; fetch it again"
        )
    pieces, notes = [], []
    streams = _streams(data, frames)
    rates = {stream[0][1].kind[2] for stream in streams}
    if len(rates) > 1:
        listed = " and ".join(f"{rate} Hz" for rate in sorted(rates))
        return Content(
            fault=f"the file must have one sampling rate, but its streams have {listed}; cut it "
            "into one file for each"
        )
    if len(streams) > 1:
        notes.append(f"it holds {len(streams)} MP3 streams behind one another; all were read")
    if skipped > JUNK:
        notes.append(f"{skipped} bytes in it are no frames of MP3 and were passed over")
    for stream in streams:
        segments, note, fault = _piece(data, stream)
        if fault:
            return Content(fault=fault)
        notes += [note] * bool(note)
        pieces.append(Piece(segments, 2 * stream[0][1].samples))
    if len(pieces) == 1 and len(pieces[0].segments) == 1 and not first:
        pieces = [Piece()]
    return Content(tuple(pieces), tuple(notes))


def _first(data: bytes) -> int | None:
    """Return where the first of three frames in a row begins, or of all that there are."""
    at = -1
    while (at := data.find(b"\xff", at + 1)) >= 0:
        place, frame = at, read_header(data, at)
        for number in range(3):
            if frame is None:
                break
            place += frame.length
            if number == 2 or (at == 0 and place == len(data)):
                return at
            after = read_header(data, place)
            frame = after if after is not None and after.kind == frame.kind else None
    return None


def _frames(data: bytes, at: int) -> tuple[list[tuple[int, Frame]], int, bool]:
    """Return the places of all frames, the bytes passed over, and whether the last one is cut."""
    frames: list[tuple[int, Frame]] = []
    skipped = 0
    while at < len(data):
        frame = read_header(data, at)
        if frame is not None:
            if at + frame.length > len(data):
                return frames, skipped, True
            frames.append((at, frame))
            at += frame.length
            continue
        begin, at = at, _behind_tag(data, at)
        if at > begin:
            continue
        at = _resynchronise(data, begin + 1)
        skipped += at - begin
    return frames, skipped, False


def _behind_tag(data: bytes, at: int) -> int:
    """Return where a tag ends that begins here; ``at`` itself for none."""
    if data.startswith(b"TAG", at):
        return at + 128
    if data.startswith(b"ID3", at):
        return at + tag_length(data[at : at + 10])
    if data.startswith(b"APETAGEX", at):
        return at + 32 + int.from_bytes(data[at + 12 : at + 16], "little")
    return at


def _resynchronise(data: bytes, at: int) -> int:
    """Return where two frames in a row or a tag begin, or the end of the data."""
    while at < len(data):
        found = [data.find(mark, at) for mark in (b"\xff", b"TAG", b"ID3", b"APETAGEX")]
        at = min((place for place in found if place >= 0), default=len(data))
        frame = read_header(data, at)
        if frame is not None:
            after = read_header(data, at + frame.length)
            if after is not None and after.kind == frame.kind:
                return at
        elif at < len(data) and _behind_tag(data, at) > at:
            return at
        at += 1
    return len(data)


def _streams(data: bytes, frames: list[tuple[int, Frame]]) -> list[list[tuple[int, Frame]]]:
    """Cut the frames where another stream begins: with a frame that counts, or of another kind."""
    streams = [[frames[0]]]
    for (_, before), (place, frame) in pairwise(frames):
        if frame.kind != before.kind or _count_place(data, place, frame) is not None:
            streams.append([])
        streams[-1].append((place, frame))
    return streams


def _count_place(data: bytes, at: int, frame: Frame) -> int | None:
    """Return where a first frame states the number of frames; None if it does not.

    0 stands for a first frame that counts in another way, or not at all.
    """
    if data[at + frame.side : at + frame.side + 4] in (b"Xing", b"Info"):
        return at + frame.side + 8 if data[at + frame.side + 7] & 1 else 0
    return 0 if data[at + 36 : at + 40] == b"VBRI" else None


def _piece(
    data: bytes, stream: list[tuple[int, Frame]]
) -> tuple[tuple[bytes | tuple[int, int], ...], str, str]:
    """Return the segments of a stream, a note and a fault, each "" if there is none."""
    place, frame = stream[0]
    end = stream[-1][0] + stream[-1][1].length
    whole = ((place, end),)
    counting = _count_place(data, place, frame)
    there = len(stream) - (counting is not None)
    if not there:
        return whole, "", ""
    if counting:
        stated = int.from_bytes(data[counting : counting + 4], "big")
        if stated in (there, there + 1):
            return whole, "", ""
        if stated > there:
            return (
                (),
                "",
                (
                    f"the file is truncated: its header states {stated} frames of MP3, {there} are "
                    "there; fetch it again"
                ),
            )
        count = there.to_bytes(4, "big")
        changed = ((place, counting), count, (counting + 4, end))
        return (
            changed,
            (f"its header states {stated} frames of MP3, but {there} are there; all were read"),
            "",
        )
    if frame.kind[1] != 3:
        return whole, "", ""
    begin = stream[1][0] if counting == 0 else place
    return (_counting_frame(data, stream[-1], there), (begin, end)), "", ""


def _counting_frame(data: bytes, sample: tuple[int, Frame], count: int) -> bytes:
    """Return a frame that states the number of frames, of the kind of a given one."""
    place, _ = sample
    head = bytes([0xFF, data[place + 1] | 1, data[place + 2] & 0x0C | 0x90, data[place + 3]])
    frame = read_header(head, 0)
    assert frame is not None  # its version, layer and rate are those of a frame
    body = bytes(frame.side - 4) + b"Info" + (1).to_bytes(4, "big") + count.to_bytes(4, "big")
    return (head + body).ljust(frame.length, b"\0")
