"""Ogg: whole pages, streams behind and beside one another, and lengths by the packets."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import BinaryIO

from metaser.containers.content import Content, Piece, Segment

CODECS = {b"OpusHead": "opus", b"\x01vorbis": "vorbis", b"\x7fFLAC": "flac", b"Speex   ": "speex"}
"""Kinds of sound by how their first packet begins."""

FIRST, LAST = 2, 4
"""Marks of the first and the last page of a stream."""

UNSET = 2**64 - 1
"""Position of a page on which no packet ends."""

REFLECTED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
"""Each byte with its bits in reverse: Ogg's checksum is that of zlib in the other direction."""


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes
    ----------
    start, body, end : int
        Where it, its packets and the next page begin in the file.
    flags : int
        Whether it goes on with a packet (1), is the first (2) or the last (4) of its stream.
    position : int
        Samples up to its end, as it states.
    serial, number : int
        Its stream, and its place there.
    lacing : bytes
        Lengths of the parts of its packets; a packet ends with one below 255.
    """

    start: int
    body: int
    end: int
    flags: int
    position: int
    serial: int
    number: int
    lacing: bytes


def examine(file: BinaryIO, start: int) -> Content:
    """Find the streams of an Ogg file, see `metaser.containers.examine`."""
    file.seek(0)
    data = file.read()
    pages, fault = _pages(data, start)
    if fault:
        return Content(fault=fault)
    pieces: list[Piece] = []
    notes: list[str] = []
    links = _links(pages)
    for link in links:
        streams = _sound(data, link)
        if not streams:
            continue
        serial, codec = streams[0]
        if codec == "speex":
            return Content(ffmpeg="ogg")
        if len(streams) > 1:
            notes.append(
                f"it holds {len(streams)} sounds beside one another; the first was read: write the "
                "others to files of their own to read them, too"
            )
        own = [page for page in link if page.serial == serial]
        segments, more = _stream(data, own, codec)
        notes += more
        alone = segments is None and len(links) == 1 and len(own) == len(pages) and not start
        pieces.append(Piece() if alone else Piece(segments or _as_they_are(own)))
    if not pieces:
        return Content(fault="the file is an Ogg file without sound; leave it out")
    if len(pieces) > 1:
        notes.append(f"it holds {len(pieces)} Ogg streams behind one another; all were read")
    return Content(tuple(pieces), tuple(dict.fromkeys(notes)))


def _pages(data: bytes, at: int) -> tuple[list[Page], str]:
    """Return all pages, or why they cannot all be had."""
    pages: list[Page] = []
    while at < len(data):
        if data[at : at + 4] != b"OggS":
            behind = data.find(b"OggS", at)
            if behind < 0 and not data[at:].strip(b"\0"):
                break
            cut = behind < 0 and b"OggS".startswith(data[at : at + 4])
            return pages, _truncated() if cut else _damaged(at)
        body = at + 27 + data[at + 26] if at + 27 <= len(data) else len(data) + 1
        lacing = data[at + 27 : body]
        end = body + sum(lacing)
        if body > len(data) or end > len(data):
            behind = data.find(b"OggS", at + 4)
            return pages, _truncated() if behind < 0 else _damaged(at)
        stated = int.from_bytes(data[at + 22 : at + 26], "little")
        if checksum(data[at : at + 22] + bytes(4) + data[at + 26 : end]) != stated:
            return pages, _damaged(at)
        position, serial, number = (
            int.from_bytes(data[at + low : at + high], "little")
            for low, high in ((6, 14), (14, 18), (18, 22))
        )
        pages.append(Page(at, body, end, data[at + 5], position, serial, number, lacing))
        at = end
    return pages, ""


def _truncated() -> str:
    return "the file is truncated: its last page of Ogg is not there completely; fetch it again"


def _damaged(at: int) -> str:
    return f"the file is damaged: there is no whole page of Ogg at byte {at}; fetch it again"


def checksum(page: bytes) -> int:
    """Return the checksum of a page whose own is zero."""
    reflected = zlib.crc32(page.translate(REFLECTED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{reflected:032b}"[::-1], 2)


def _links(pages: Sequence[Page]) -> list[list[Page]]:
    """Cut the pages where first pages come behind others."""
    links: list[list[Page]] = [[]]
    for before, page in pairwise([pages[0], *pages]):
        if page.flags & FIRST and not before.flags & FIRST:
            links.append([])
        links[-1].append(page)
    return links


def _sound(data: bytes, link: Sequence[Page]) -> list[tuple[int, str]]:
    """Return serial number and kind of the streams that are sound."""
    found = []
    for page in link:
        if page.flags & FIRST:
            kinds = [kind for mark, kind in CODECS.items() if data.startswith(mark, page.body)]
            found += [(page.serial, kind) for kind in kinds]
    return found


def _as_they_are(pages: Sequence[Page]) -> tuple[Segment, ...]:
    """Return the stretches of the file in which some pages lie."""
    stretches: list[tuple[int, int]] = []
    for page in pages:
        if stretches and stretches[-1][1] == page.start:
            stretches[-1] = (stretches[-1][0], page.end)
        else:
            stretches.append((page.start, page.end))
    return tuple(stretches)


def _stream(
    data: bytes, pages: Sequence[Page], codec: str
) -> tuple[tuple[Segment, ...] | None, list[str]]:
    """Return the segments of a stream, None if its pages are right as they are, and notes."""
    notes = []
    ended = pages[-1].flags & LAST
    if not ended:
        notes.append(
            "its Ogg stream has no end mark, as where a recorder was stopped; all that is there "
            "was read: compare its length with that of the recording"
        )
    lengths = _packet_lengths(data, pages, codec)
    ends = None if lengths is None else _positions(pages, lengths)
    sound = [page for page in pages if page.position not in (0, UNSET)]
    gaps = sum(after.number - before.number != 1 for before, after in pairwise(sound))
    if gaps and (ends is not None or lengths is None):
        notes.append(
            f"pages of Ogg are missing at {gaps} places; all that is there was read: fetch the "
            "file again"
        )
    elif ends is not None:
        notes.append(
            "its Ogg stream states another length than its sound has; all was read: convert it by "
            "`ffmpeg -i clip.ogg new.ogg`"
        )
    elif ended and not gaps:
        return None, notes
    return _rewritten(data, pages, ends), notes


def _packet_lengths(data: bytes, pages: Sequence[Page], codec: str) -> list[int] | None:
    """Return the samples that end on each page; None where that cannot be told."""
    measure: Callable[[bytes], int] | None = None
    heads: list[bytes] = []
    counts, begun = [], b""
    wanted = {"opus": 2, "vorbis": 3}.get(codec)
    if wanted is None:
        return None
    for page in pages:
        at, count = page.body, 0
        for part in page.lacing:
            begun += data[at : at + part] if len(heads) < wanted else data[at : at + min(part, 4)]
            at += part
            if part == 255:
                continue
            if len(heads) < wanted:
                heads.append(begun)
                if len(heads) == wanted:
                    measure = _opus_length if codec == "opus" else _vorbis_length(heads)
                    if measure is None:
                        return None
            elif measure is not None:
                count += measure(begun)
            begun = b""
        counts.append(count)
    return counts


def _opus_length(packet: bytes) -> int:
    """Return the samples of a packet at 48 kHz (RFC 6716, section 3.1)."""
    if not packet:
        return 0
    config, code = packet[0] >> 3, packet[0] & 3
    if config < 12:
        samples = (480, 960, 1920, 2880)[config & 3]
    elif config < 16:
        samples = (480, 960)[config & 1]
    else:
        samples = (120, 240, 480, 960)[config & 3]
    if code < 3:
        return samples * (1, 2, 2)[code]
    return samples * (packet[1] & 63) if len(packet) > 1 else 0


def _vorbis_length(heads: Sequence[bytes]) -> Callable[[bytes], int] | None:
    """Return what tells the samples of each packet in turn, from the three header packets.

    The sizes of both blocks stand in the first; which mode uses which stands at the end of the
    third, and is read from there, as FFmpeg does.
    """
    if len(heads[0]) < 29:
        return None
    sizes = 1 << (heads[0][28] & 15), 1 << (heads[0][28] >> 4)
    bits = "".join(f"{byte:08b}" for byte in reversed(heads[2][-400:]))
    at = bits.find("1") + 1  # the framing bit
    flags: list[int] = []
    modes = 0
    while at + 47 <= len(bits) and len(flags) < 64:
        mapping, window = int(bits[at : at + 8], 2), int(bits[at + 8 : at + 40], 2)
        if mapping > 63 or window:
            break
        flags.append(int(bits[at + 40]))
        at += 41
        if int(bits[at : at + 6], 2) == len(flags) - 1:
            modes = len(flags)
    if not modes:
        return None
    flags = flags[:modes][::-1]
    mask = (1 << (modes - 1).bit_length()) - 1
    before = 0

    def measure(packet: bytes) -> int:
        nonlocal before
        if not packet or packet[0] & 1 or packet[0] >> 1 & mask >= modes:
            return 0
        size = sizes[flags[packet[0] >> 1 & mask]]
        samples = (before + size) // 4 if before else 0
        before = size
        return samples

    return measure


def _positions(pages: Sequence[Page], lengths: Sequence[int]) -> list[int] | None:
    """Return the position at the end of each page; None if the pages state them rightly.

    The first page may state less, which cuts the beginning, and so may the last.
    """
    ends, total = [], 0
    for length in lengths:
        total += length
        ends.append(total)
    stating = [index for index, page in enumerate(pages) if page.position != UNSET and ends[index]]
    if not stating:
        return ends if total else None
    last = stating[-1]
    differences = {pages[index].position - ends[index] for index in stating[:-1]}
    begin = differences.pop() if differences else min(pages[last].position - ends[last], 0)
    trimmed = ends[last] + begin - pages[last].position
    fits = not differences and -lengths[stating[0]] <= begin <= 0
    if fits and 0 <= trimmed <= max(lengths[last], 5760):
        return None
    return ends


def _rewritten(
    data: bytes, pages: Sequence[Page], ends: Sequence[int] | None
) -> tuple[Segment, ...]:
    """Return the pages with other positions, numbered anew, and with an end mark."""
    segments: list[Segment] = []
    for number, page in enumerate(pages):
        flags = page.flags & ~LAST | LAST * (number == len(pages) - 1)
        position = page.position
        if ends is not None:
            position = ends[number] if min(page.lacing, default=255) < 255 else UNSET
        changed = replace(page, flags=flags, position=position, number=number)
        segments += [_head(data, changed), (page.body, page.end)]
    return tuple(segments)


def _head(data: bytes, page: Page) -> bytes:
    """Return the header of a page."""
    numbers = page.position.to_bytes(8, "little") + page.serial.to_bytes(4, "little")
    head = b"OggS\0" + bytes([page.flags]) + numbers + page.number.to_bytes(4, "little")
    tail = bytes([len(page.lacing)]) + page.lacing
    check = checksum(head + bytes(4) + tail + data[page.body : page.end])
    return head + check.to_bytes(4, "little") + tail
