"""Mutated audio of every container, read in a process of its own:  python fuzz.py TRIES SEED

The process may have 1 GiB beside what it starts with. It writes a line for each try that ended in
anything but sound or the project's own error, and at the end the number of tries.
"""

import io
import logging
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import soundfile

from metaser import audio
from metaser.features.hear import hear, hear_windows

RATE = 16000
SECONDS = 20.0
"""A try that takes longer hangs."""

GIBIBYTE = 2**30

LIBSNDFILE = (
    [(form, "PCM_16") for form in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST")]
    + [("WAV", kind) for kind in ("PCM_U8", "PCM_24", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM")]
    + [("WAV", "MS_ADPCM"), ("WAV", "GSM610"), ("CAF", "ALAC_16"), ("AIFF", "IMA_ADPCM")]
    + [("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS")]
    + [("MP3", "MPEG_LAYER_III")]
)

PYAV = (("mp4", "aac"), ("webm", "libopus"), ("adts", "aac"), ("asf", "wmav2"), ("3gp", "aac"))


class Itself:
    """A front end that gives the sound as it is."""

    rate = RATE

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        return waveform[:1, None]


def seeds() -> dict[str, bytes]:
    """Return a short file of every kind, mono and stereo."""
    rng = np.random.default_rng(0)
    wave = 0.1 * rng.standard_normal((RATE // 2, 2)) * np.linspace(0, 1, RATE // 2)[:, None]
    files = {}
    for form, kind in LIBSNDFILE:
        for channels in (1, 2) if kind != "GSM610" else (1,):
            file = io.BytesIO()
            soundfile.write(file, wave[:, :channels], RATE, format=form, subtype=kind)
            files[f"{form} {kind} {channels}"] = file.getvalue()
    try:
        import av
    except ImportError:
        return files
    for form, codec in PYAV:
        file = io.BytesIO()
        with av.open(file, "w", format=form) as container:
            stream = container.add_stream(codec, rate=48000 if codec == "libopus" else RATE)
            stream.layout, stream.bit_rate = "mono", 32000
            sound = np.ascontiguousarray(wave[None, :, 0], np.float32)
            frame = av.AudioFrame.from_ndarray(sound, "fltp", "mono")
            frame.sample_rate = RATE
            container.mux([*stream.encode(frame), *stream.encode(None)])
        files[f"{form} {codec}"] = file.getvalue()
    return files


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Return a file that is damaged in one to four places, mostly near its beginning or end."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        near = rng.choice([64, 512, len(changed)])
        at = int(rng.integers(0, max(min(near, len(changed)), 1)))
        if rng.random() < 0.2:
            at = max(len(changed) - 1 - at, 0)
        size = int(rng.integers(1, 9))
        match rng.integers(0, 8):
            case 0:
                changed[at : at + 1] = bytes([rng.integers(0, 256)])
            case 1:
                changed[at : at + size] = rng.bytes(size)
            case 2:
                changed[at : at + size] = rng.choice([b"\xff", b"\x7f", b"\0", b"\x80"]) * size
            case 3:
                del changed[at:]
            case 4:
                del changed[at : at + int(rng.integers(1, 4000))]
            case 5:
                changed[at:at] = rng.bytes(int(rng.integers(1, 4000)))
            case 6:
                changed[at:at] = changed[: int(rng.integers(0, len(changed) + 1))]
            case _:
                changed += content
    return bytes(changed)


def try_once(path: Path) -> None:
    """Read a file whole, as a clip and in windows; its own errors are right."""
    for read in (
        lambda: audio.read(path),
        lambda: audio.duration(path),
        lambda: list(hear([path], Itself())),
        lambda: list(hear_windows([path], Itself(), 0.25, 0.125)),
    ):
        try:
            read()
        except audio.AudioError as error:
            if str(path) not in str(error):
                raise


def main(tries: int, seed: int) -> None:
    """Try, and say what went wrong."""
    logging.disable()
    files = seeds()
    for content in files.values():  # loads all that is needed, before memory is bounded
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(content)
            audio.read(file.name)
            list(hear([Path(file.name)], Itself()))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + GIBIBYTE,) * 2)
    rng, names = np.random.default_rng(seed), sorted(files)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutated"
        for number in range(tries):
            name = names[number % len(names)]
            path.write_bytes(mutate(files[name], rng))
            sys.stderr.write(f"{number} {name}\n")
            start = time.monotonic()
            try:
                try_once(path)
            except Exception:
                trace = traceback.format_exc()
                print("FAILED", number, name, trace.replace("\n", "\\n"), flush=True)
            if time.monotonic() - start > SECONDS:
                print("HANGS", number, name, time.monotonic() - start, flush=True)
    print("tried", tries, len(names), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
