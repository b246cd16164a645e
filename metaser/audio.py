"""Audio files: find, decode, read as mono float32 at a given rate, measure and identify them."""

import os
import re
from hashlib import blake2b
from pathlib import Path

import numpy as np
import soundfile
import soxr

from metaser.files import is_system

EXTENSIONS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".aif", ".au", ".caf", ".w64")

_STATED_SIZE = re.compile(
    r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE
)
_UNKNOWN_SIZE = 0x7FFFF000  # streamed files state a size near 2 or 4 GiB


class AudioError(ValueError):
    """A file that cannot be used as audio; the message says why."""


def find(folder: str | Path) -> list[Path]:
    """Find the audio files below a folder, at any depth, sorted by path.

    Files and folders of the system (`metaser.files.is_system`) are passed over, links are followed.

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
        found += [
            Path(root, name)
            for name in names
            if name.lower().endswith(EXTENSIONS) and not is_system(name)
        ]
    return sorted(found, key=lambda path: path.as_posix())


def _refuse(error: OSError) -> None:
    """Raise what ``os.walk`` would pass over."""
    raise error


def decode(path: str | Path) -> tuple[np.ndarray, int]:
    """Decode a file completely, as it is.

    Parameters
    ----------
    path : str or Path
        Audio file of any kind that libsndfile reads; 8 to 32 bit, any rate, any channels.

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
        If the file is empty, undecodable, truncated, without samples, or holds NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no audio file at {path}")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: the file is empty (0 bytes); fetch it again")
    try:
        with soundfile.SoundFile(path) as file:
            stated, log, rate = file.frames, file.extra_info, file.samplerate
            samples = _read_samples(file)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: {_undecodable(path, error)}") from error
    for declared, present in _STATED_SIZE.findall(log):
        if int(present) + 1 < int(declared) < _UNKNOWN_SIZE:
            raise AudioError(
                f"{path}: the file is truncated: its header states {declared} bytes of audio, "
                f"{present} are there; fetch it again"
            )
    if path.suffix.lower() in (".ogg", ".opus") and not _ogg_ends(path):
        raise AudioError(
            f"{path}: the file is truncated: its Ogg stream has no end; fetch it again"
        )
    if len(samples) < stated:
        raise AudioError(
            f"{path}: the file is truncated: its header states {stated} samples, "
            f"{len(samples)} could be decoded; fetch it again"
        )
    if len(samples) == 0:
        raise AudioError(f"{path}: the file holds no samples (zero length); fetch it again")
    bad = int(np.count_nonzero(~np.isfinite(samples)))
    if bad:
        raise AudioError(
            f"{path}: {bad} of {samples.size} samples are NaN or infinite; fetch it again"
        )
    return samples, rate


def _read_samples(file: soundfile.SoundFile) -> np.ndarray:
    """Return all samples as float32 (samples, channels); 16-bit ones are scaled here.

    That is twice as fast as by libsndfile.
    """
    if file.subtype != "PCM_16":
        return file.read(dtype="float32", always_2d=True)
    return np.multiply(file.read(dtype="int16", always_2d=True), 2.0**-15, dtype=np.float32)


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


def _ogg_ends(path: Path) -> bool:
    """Return whether the last page of an Ogg file is marked as the end and is there completely."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2**17))
        tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < 27 or not page[5] & 4:
        return False
    segments = page[26]
    return len(page) >= 27 + segments + sum(page[27 : 27 + segments])


def read(path: str | Path, rate: int = 16000) -> np.ndarray:
    """Read a file as mono at a given rate.

    Channels are averaged, then the signal is resampled by soxr at high quality.

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
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)
    if own != rate:
        mono = soxr.resample(mono, own, rate)
    if len(mono) == 0:
        raise AudioError(
            f"{path}: {len(samples)} samples at {own} Hz leave none at {rate} Hz; drop the clip"
        )
    return np.ascontiguousarray(mono, dtype=np.float32)


def duration(path: str | Path) -> float:
    """Return the length of a file in seconds, read from its header alone.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    AudioError
        If the header cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no audio file at {path}")
    try:
        header = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: {_undecodable(path, error)}") from error
    return header.frames / header.samplerate


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
