"""FLAC: how long it is by its last frame, and streams behind one another."""

from typing import BinaryIO

from metaser.containers.content import Content, Piece

BLOCK = 2**16
"""Bytes that are searched at once; the allocator hands out larger ones slowly."""

TAIL = 2**15
"""Bytes at the end in which the last frame is looked for first; most frames are shorter."""

SIZES = {1: 192, **{k: 576 << (k - 2) for k in range(2, 6)}, **{k: 1 << k for k in range(8, 16)}}
"""Samples of a frame by its code; codes 6 and 7 give the number itself."""

STREAM = b"fLaC\x00\x00\x00\x22"
MARKS = (STREAM, b"fLaC\x80" + STREAM[5:])
"""How each stream begins: further blocks follow the first one, or not."""


def _crc_table() -> tuple[int, ...]:
    """Return the table of the checksum of frame headers, polynomial 0x07."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value << 1 ^ 0x07) & 0xFF if value & 0x80 else value << 1
        table.append(value)
    return tuple(table)


CRC = _crc_table()


def examine(file: BinaryIO, size: int, start: int) -> Content:
    """Find the streams of a FLAC file, see `metaser.containers.examine`."""
    file.seek(start)
    head = file.read(BLOCK)
    if len(head) < 42 or head[4] & 0x7F or head[5:8] != STREAM[5:8]:
        return Content()
    if _is_right(file, size, start, head):
        return Content((Piece(((start, size),) if start else ()),))
    starts = sorted({at for mark in MARKS for at in _find(file, start, size, mark)})
    pieces, notes = [], []
    if len(starts) > 1:
        notes.append(f"it holds {len(starts)} FLAC streams behind one another; all were read")
    for begin, end in zip(starts, [*starts[1:], size]):
        file.seek(begin)
        head = file.read(42)
        stated = int.from_bytes(head[21:26], "big") & 0xFFFFFFFFF
        total = _total(file, begin, end, head, stated)
        if total is None:
            if not stated:
                return Content(
                    fault="the file holds no whole frame of FLAC; it is truncated: fetch it again"
                )
        elif total != stated:
            own = int.from_bytes(head[21:26], "big") - stated + total
            changed = head[:21] + own.to_bytes(5, "big") + head[26:]
            pieces.append(Piece((changed, (begin + len(head), end))))
            if stated > total:
                return Content(
                    fault=f"the file is truncated: its header states {stated} samples, {total} are "
                    "there; fetch it again"
                )
            if stated:
                notes.append(
                    f"its header states {stated} samples, but {total} are there; all were read"
                )
            continue
        pieces.append(Piece(((begin, end),) if begin or end < size else ()))
    return Content(tuple(pieces), tuple(notes))


def _is_right(file: BinaryIO, size: int, start: int, head: bytes) -> bool:
    """Return whether there is one stream, as long as it states; quick for a short file."""
    stated = int.from_bytes(head[21:26], "big") & 0xFFFFFFFFF
    if size - start > len(head):
        alone = not _find(file, start + 4, size, head[:12])
        return alone and _total(file, start, size, head, stated) == stated
    longest = int.from_bytes(head[15:18], "big")
    at = len(head)
    low = max(at - longest, 42) if longest else 42
    while (at := head.rfind(b"\xff\xf8", low, at)) >= 0:
        if _frame_end(head[at : at + 16], head) == stated:
            return head.find(head[:12], 4) < 0
    return False


def _find(file: BinaryIO, place: int, size: int, mark: bytes) -> list[int]:
    """Return where a mark stands from a place on."""
    found = []
    before = b""
    file.seek(place)
    while place < size and (block := file.read(BLOCK)):
        text = before + block if before else block
        at = -1
        while (at := text.find(mark, at + 1)) >= 0:
            found.append(place - len(before) + at)
        before, place = text[1 - len(mark) :], place + len(block)
    return found


def _total(file: BinaryIO, begin: int, end: int, head: bytes, stated: int) -> int | None:
    """Return the samples of a stream by the last frame in it; None if no frame was found.

    A number that agrees with the header is preferred: sound may hold what looks like a frame.
    """
    longest = int.from_bytes(head[15:18], "big")
    for reach in (longest + 64 if longest else TAIL, 256 * BLOCK):
        low = max(begin + 42, end - reach)
        file.seek(low)
        tail = file.read(end - low)
        found = []
        for mark in (b"\xff\xf8", b"\xff\xf9"):
            at = len(tail)
            while (at := tail.rfind(mark, 0, at)) >= 0:
                total = _frame_end(tail[at : at + 16], head)
                if total == stated:
                    return stated
                if total is not None:
                    found.append((at, total))
        if found:
            return max(found)[1]
    return None


def _frame_end(frame: bytes, head: bytes) -> int | None:
    """Return the number of samples up to the end of a frame; None if none begins here."""
    if len(frame) < 6 or frame[1] & 0xFE != 0xF8:
        return None
    code, rate, fixed = frame[2] >> 4, frame[2] & 15, not frame[1] & 1
    channels = frame[3] >> 4
    if not code or rate == 15 or channels > 10 or frame[3] & 1:
        return None
    own_channels = (head[20] >> 1 & 7) + 1
    if own_channels != (channels + 1 if channels < 8 else 2):
        return None
    first = frame[4]
    more = 0 if first < 0x80 else (7 if first == 0xFE else 8 - (first ^ 0xFF).bit_length()) - 1
    if more < 0 or first == 0xFF or (first >= 0x80 and not more):
        return None
    number = first if not more else first & (0x3F >> more)
    for byte in frame[5 : 5 + more]:
        number = number << 6 | byte & 0x3F
    at = 5 + more
    if code in (6, 7):
        width = code - 5
        samples = int.from_bytes(frame[at : at + width], "big") + 1
        at += width
    else:
        samples = SIZES[code]
    at += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    check = 0
    for byte in frame[:at]:
        check = CRC[check ^ byte]
    if at >= len(frame) or check != frame[at]:
        return None
    block = int.from_bytes(head[8:10], "big")
    return number * block + samples if fixed else number + samples
