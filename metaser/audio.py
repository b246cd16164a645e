"""Audio files: find, decode, read as mono float32 at a given rate, measure and identify them."""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from io import FileIO
from pathlib import Path
from typing import Self

import numpy as np
from soundfile import SoundFile, SoundFileError

from metaser.containers import Content, Splice, examine, ffmpeg
from metaser.files import is_system, readable_name
from metaser.mono import at_rate, to_mono

log = logging.getLogger(__name__)

EXTENSIONS = (
    (".wav", ".wave", ".flac", ".mp3", ".mp2", ".ogg", ".oga", ".opus", ".aiff", ".aif", ".aifc")
    + (".au", ".snd", ".caf", ".w64", ".rf64", ".sph")
    + (".m4a", ".m4b", ".aac", ".wma", ".amr", ".mka", ".mp4", ".3gp", ".3g2", ".webm")
)
"""How the names of audio files end; what they hold is told by their first bytes."""

OFTEN_VIDEO = (".mp4", ".3gp", ".3g2", ".webm")
"""Those of them that are as often video, which may lie beside the same clip as sound."""

LOWEST_RATE, HIGHEST_RATE = 1000, 1_000_000
"""Samples per second that a file may have; a header that states others is damaged."""

BLOCK = 2**22
"""Samples, over all channels, that are decoded at once: memory is for what is really there."""


class AudioError(ValueError):
    """A file that cannot be used as audio; the message says why."""


def find(folder: str | Path) -> list[Path]:
    """Find the audio files below a folder, at any depth, sorted by path.

    Files and folders of the system (`metaser.files.is_system`) are passed over, links are followed.
    So is a file that may be video (``OFTEN_VIDEO``) where a sound of the same name lies beside it.

    Raises
    ------
    FileNotFoundError
        If `folder` is not a folder.
    PermissionError
        If a folder below it cannot be listed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"folder must hold audio files, but there is none at {folder}: correct the path"
        )
    found, seen = [], set()
    for root, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_system(name))
        own = [n for n in names if n.lower().endswith(EXTENSIONS) and not is_system(n)]
        sounds = {Path(n).stem for n in own if not n.lower().endswith(OFTEN_VIDEO)}
        found += [
            Path(root, n)
            for n in own
            if not (n.lower().endswith(OFTEN_VIDEO) and Path(n).stem in sounds)
        ]
    return sorted(found, key=lambda path: path.as_posix())


def _refuse(error: OSError) -> None:
    """Raise what ``os.walk`` would pass over."""
    raise error


@dataclass
class Sound:
    """An audio file that is open for reading.

    Attributes
    ----------
    path : Path
        The file.
    rate, channels : int
        Samples per second, and channels.
    samples : int or None
        Samples per channel; None where only reading tells.
    notes : tuple of str
        What its header states wrongly, or what is not read, each with the remedy.
    """

    path: Path
    rate: int
    channels: int
    samples: int | None
    notes: tuple[str, ...]
    _file: FileIO
    _streams: Sequence[tuple[SoundFile, int]] = ()
    _foreign: ffmpeg.Reading | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream, _slack in self._streams:
            stream.close()
        if self._foreign is not None:
            self._foreign.close()
        self._file.close()

    def blocks(self, most: int = BLOCK) -> Iterator[np.ndarray]:
        """Yield the samples until nothing comes; only once.

        Parameters
        ----------
        most : int
            Samples in a block, over all channels, at most.

        Yields
        ------
        numpy.ndarray
            float32, shape (samples, channels), full scale = 1; not empty.

        Raises
        ------
        AudioError
            If the file is undecodable, truncated, without samples, or holds NaN or infinity.
        """
        empty = True
        try:
            for block in self._decoded(max(most // self.channels, 1)):
                empty = empty and not len(block)
                yield block
        except SoundFileError as error:
            raise AudioError(f"{self.path}: {_undecodable(self.path, error)}") from error
        except ffmpeg.UnreadError as error:
            raise AudioError(f"{self.path}: {error}") from error
        if empty:
            raise AudioError(
                f"{self.path}: the file holds no samples (zero length); fetch it again"
            )

    def read(self, longest: float = math.inf) -> np.ndarray:
        """Return all samples, float32 (samples, channels); see `decode`."""
        blocks, count = [], 0
        if self.samples is not None and self.samples > longest * self.rate:
            raise AudioError(_too_long(self, self.samples, longest))
        for block in self.blocks():
            count += len(block)
            if count > longest * self.rate:
                raise AudioError(_too_long(self, count, longest))
            blocks.append(block)
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def _decoded(self, most: int) -> Iterator[np.ndarray]:
        if self._foreign is not None:
            yield from map(self._finite, self._foreign.blocks())
        for file, slack in self._streams:
            count, stated, whole = 0, file.frames, file.subtype == "PCM_16"
            read = _read_scaled if whole else _read_floats
            while count < stated and len(block := read(file, most)):
                count += len(block)
                yield block if whole else self._finite(block)  # whole numbers are finite
            if count < stated - slack:
                raise AudioError(
                    f"{self.path}: the file is truncated: its header states {stated} samples, "
                    f"{count} could be decoded; fetch it again"
                )

    def _finite(self, block: np.ndarray) -> np.ndarray:
        bad = int(np.count_nonzero(~np.isfinite(block)))
        if bad:
            raise AudioError(
                f"{self.path}: {bad} of {block.size} samples are NaN or infinite; fetch it again"
            )
        return block


def opened(path: str | Path) -> Sound:
    """Open a file for reading, by what it holds and not by what its header states.

    What is noteworthy about it (`Sound.notes`) is said once, as a warning of ``logging``.

    Parameters
    ----------
    path : str or Path
        Audio file of any kind that libsndfile reads, or PyAV where it is installed; the first
        bytes decide, not the name.

    Returns
    -------
    Sound
        To be used in a ``with``, which closes it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    AudioError
        If the file is empty, undecodable or truncated; see also `Sound.blocks`.
    """
    path = Path(path)
    try:
        file = FileIO(path)
        size = os.fstat(file.fileno()).st_size
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise FileNotFoundError(f"no audio file at {path}") from None
    except OSError as error:
        raise AudioError(_unreadable(path, error)) from error
    try:
        if size == 0:
            raise AudioError(f"{path}: the file is empty (0 bytes); fetch it again")
        content = examine(file, size)
        if content.fault:
            raise AudioError(f"{path}: {content.fault}")
        sound = (_foreign if content.ffmpeg else _own)(path, file, content)
        if not LOWEST_RATE <= sound.rate <= HIGHEST_RATE:
            raise AudioError(
                f"{path}: the rate must be from {LOWEST_RATE} to {HIGHEST_RATE} Hz, not "
                f"{sound.rate}; its header is damaged: fetch it again"
            )
    except OSError as error:
        file.close()
        raise AudioError(_unreadable(path, error)) from error
    except AudioError:
        file.close()
        raise
    for note in sound.notes:
        _say(f"{path}: {note}")
    return sound


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path}: cannot be read ({error.strerror}); check its rights and its disk"


def _own(path: Path, file: FileIO, content: Content) -> Sound:
    """Open what a file holds by libsndfile."""
    streams = []
    try:
        for piece in content.pieces:
            file.seek(0)
            source = Splice(file, piece.segments) if piece.segments else file.fileno()
            streams.append((SoundFile(source, closefd=False), piece.slack))
    except SoundFileError as error:
        raise AudioError(f"{path}: {_undecodable(path, error)}") from error
    first = streams[0][0]
    if len(streams) == 1:
        rate, channels = first.samplerate, first.channels
        return Sound(path, rate, channels, first.frames, content.notes, file, streams)
    shapes = dict.fromkeys((one.samplerate, one.channels) for one, _ in streams)
    if len(shapes) > 1:
        listed = ", then ".join(f"{rate} Hz and {channels}" for rate, channels in shapes)
        raise AudioError(
            f"{path}: the streams in one file must have one rate and number of channels, not "
            f"{listed}; cut it into one file for each"
        )
    total = sum(one.frames for one, _ in streams)
    return Sound(path, first.samplerate, first.channels, total, content.notes, file, streams)


def _foreign(path: Path, file: FileIO, content: Content) -> Sound:
    """Open a file by PyAV."""
    try:
        reading = ffmpeg.Reading(file, content.ffmpeg)
    except ffmpeg.UnreadError as error:
        raise AudioError(f"{path}: {error}") from error
    notes = content.notes + reading.notes
    return Sound(path, reading.rate, reading.channels, None, notes, file, (), reading)


@cache
def _say(note: str) -> None:
    """Warn, once."""
    log.warning(readable_name(note))


def decode(path: str | Path, longest: float = math.inf) -> tuple[np.ndarray, int]:
    """Decode a file completely, as it is.

    Parameters
    ----------
    path : str or Path
        Audio file, see `opened`; 8 to 32 bit, any channels.
    longest : float
        Seconds that the file may last.

    Returns
    -------
    samples : numpy.ndarray
        float32, shape (samples, channels), full scale = 1.
    rate : int
        Samples per second.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    AudioError
        If the file is empty, undecodable, truncated, without samples, too long, or holds NaN or
        infinity.
    """
    with opened(path) as sound:
        return sound.read(longest), sound.rate


def _too_long(sound: Sound, count: int, longest: float) -> str:
    more = "" if count == sound.samples else " or more"
    return (
        f"{sound.path} must be at most {longest:g} s long to have one label, not "
        f"{count / sound.rate:.0f} s{more}: cut it, or read it in windows (--window 4 --hop 2)"
    )


def _read_floats(file: SoundFile, most: int) -> np.ndarray:
    """Return the next samples as float32 (samples, channels)."""
    return file.read(most, dtype="float32", always_2d=True)


def _read_scaled(file: SoundFile, most: int) -> np.ndarray:
    """Return the same from 16 bit; to scale them here is twice as fast as by libsndfile."""
    return np.multiply(file.read(most, dtype="int16", always_2d=True), 2.0**-15, dtype=np.float32)


def _undecodable(path: Path, error: Exception) -> str:
    """Return why libsndfile refused a file, guessing the usual mistake."""
    with path.open("rb") as file:
        start = file.read(40)
    if start.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the audio; run `git lfs pull` in the corpus"
    if not start.strip(b"\0"):
        return "this is not audio: the file begins with zeros only; fetch it again"
    reason = getattr(error, "error_string", str(error)).removeprefix("Error : ").strip()
    return f"cannot be decoded ({reason}) The file is damaged or not of a known audio format"


def read(path: str | Path, rate: int = 16000) -> np.ndarray:
    """Read a file as mono at a given rate.

    Offsets are taken away and channels averaged (see ``metaser.mono``). Then the signal is
    resampled by soxr at high quality.

    Parameters
    ----------
    path : str or Path
        Audio file, see `decode`.
    rate : int
        Samples per second of the result.

    Returns
    -------
    numpy.ndarray
        float32, shape (samples,), contiguous, full scale = 1.

    Raises
    ------
    ValueError
        If `rate` is not above 0.
    FileNotFoundError, AudioError
        See `decode`; AudioError also if the clip is too short to leave a sample at `rate`.
    """
    if rate <= 0:
        raise ValueError(f"rate must be above 0 Hz, not {rate}: give the rate to read at")
    samples, own = decode(path)
    return convert(path, samples, own, rate)


def convert(path: str | Path, samples: np.ndarray, own: int, rate: int) -> np.ndarray:
    """Return decoded audio as mono at another rate, see `read`.

    Parameters
    ----------
    path : str or Path
        Where it comes from, for messages.
    samples : numpy.ndarray
        float32, shape (samples, channels).
    own, rate : int
        Samples per second that it has, and that the result has.

    Returns
    -------
    numpy.ndarray
        float32, shape (samples,), contiguous.

    Raises
    ------
    AudioError
        If the clip is too short to leave a sample at `rate`.
    """
    mono, note = to_mono(samples)
    if note:
        _say(f"{path}: {note}")
    mono = at_rate(mono, own, rate)
    if len(mono) == 0:
        raise AudioError(
            f"{path}: {len(samples)} samples at {own} Hz leave none at {rate} Hz; drop the clip"
        )
    return mono


def duration(path: str | Path) -> float:
    """Return the length of a file in seconds.

    It is that of what is there, not what the header states. A file is decoded only where nothing
    else tells.

    Raises
    ------
    FileNotFoundError, AudioError
        See `opened`.
    """
    with opened(path) as sound:
        samples = sound.samples
        if samples is None:
            samples = sum(len(block) for block in sound.blocks())
        return samples / sound.rate


def content_hash(path: str | Path) -> str:
    """Return a digest of the decoded audio: equal for the same samples in another container.

    Returns
    -------
    str
        BLAKE2b, 128 bit, 32 hexadecimal digits, over rate, channels and float32 samples.

    Raises
    ------
    FileNotFoundError, AudioError
        See `decode`.
    """
    return digest(*decode(path))


def digest(samples: np.ndarray, rate: int) -> str:
    """Return the digest of decoded audio (samples, channels), see `content_hash`."""
    state = blake2b(f"{rate} {samples.shape[1]} ".encode(), digest_size=16)
    state.update(np.ascontiguousarray(samples, dtype="<f4").data)
    return state.hexdigest()
