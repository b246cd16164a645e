"""Tell by its first bytes what a file is, and examine it."""

from typing import BinaryIO

from metaser.containers import chunks, flac, mpeg, ogg
from metaser.containers.content import Content, Piece

FFMPEG = (
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "asf"),
    (0, b"#!AMR", "amr"),
    (0, b"FLV\x01", "flv"),
    (0, b"wvpk", "wv"),
    (0, b"MAC ", "ape"),
    (0, b"ADIF", "aac"),
    *((4, kind, "mov") for kind in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")),
    (8, b"AVI ", "avi"),
)
"""Where the mark of a format stands that libsndfile lacks, the mark, and FFmpeg's reader of it."""


def examine(file: BinaryIO, size: int) -> Content:
    """Find out what an audio file holds.

    Parameters
    ----------
    file : binary file
        Open for reading; it is left at any place.
    size : int
        Its length in bytes.

    Returns
    -------
    Content
        What to read, what to say about it, and what is wrong with it. A file of an unknown kind is
        to be read as it is.
    """
    file.seek(0)
    head = file.read(64)
    start = mpeg.tag_length(head)
    if start:
        file.seek(start)
        head = file.read(64)
    if head.startswith(b"fLaC"):
        return flac.examine(file, size, start)
    if head.startswith(b"OggS"):
        return ogg.examine(file, start)
    for offset, mark, name in FFMPEG:
        if head.startswith(mark, offset):
            return Content(ffmpeg=name)
    if chunks.is_known(head):
        return chunks.examine(file, size, start)
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return Content(ffmpeg="aac")
    found = mpeg.examine(file, start)
    if found is not None:
        return found
    return Content((Piece(((start, size),) if start else ()),))
