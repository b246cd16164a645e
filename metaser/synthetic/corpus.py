"""Speak a made-up emotional corpus in many languages: synthetic data for tests, demo and notebooks.

**Everything made here is synthetic.** eSpeak NG reads short everyday sentences aloud; four emotions
(angry, happy, neutral, sad) are imitated by prosody alone. Scores on this speech show that a
pipeline learns and adapts; they say nothing about how people express emotion.

The direction of each cue follows published acoustic correlates of vocal emotion [1]_ [2]_ [3]_
[4]_:

=========  ==========================================================================
angry      higher pitch, wider pitch range, faster, louder, more energy at high frequencies
happy      higher pitch, wider pitch range, mostly faster, louder than neutral
sad        lower pitch, narrower pitch range, slower, softer, less energy at high frequencies
=========  ==========================================================================

The sizes of the effects, and the breath noise, tremor and pitch slope, are choices of this module.
In addition to the audio every clip has a transcript and a video of a mouth. Each has a cue of its
own, so that fusion can be tested. The transcript begins with an interjection that is not spoken; it
belongs to the clip's emotion with a known probability (``TOLD``). The lips open with the voice, the
wider the higher the arousal, and their corners rise with the valence, both with known noise
(``FACE_NOISE``).

Each clip draws its own strength of each cue, each speaker prefers some cues, each language weights
and shifts the cues in its own way, and each corpus has one recording situation (level, noise, band
limits, reverberation). So the classes overlap, and adapting to a language improves the scores.

The engine is a separate, optional program library, loaded at run time and never shipped with
MetaSER (``pip install "metaser[synthetic]"`` installs it through ``espeakng-loader``). The source
headers of eSpeak NG state GPL version 3 or later; the wheel itself has no licence file.

References
----------
.. [1] Murray and Arnott (1993), "Toward the simulation of emotion in synthetic speech", Journal of
   the Acoustical Society of America 93(2):1097-1108.
.. [2] Banse and Scherer (1996), "Acoustic profiles in vocal emotion expression", Journal of
   Personality and Social Psychology 70(3):614-636.
.. [3] Juslin and Laukka (2003), "Communication of emotions in vocal expression and music
   performance", Psychological Bulletin 129(5):770-814.
.. [4] Schröder (2001), "Emotional speech synthesis: a review", Eurospeech.
"""

import difflib
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from metaser.files import written
from metaser.synthetic.face import FACE_NOISE, draw_faces, film
from metaser.synthetic.folder import VERSION, corpus_name, write_table, write_task
from metaser.synthetic.texts import EMOTIONS, LANGUAGES, TEXTS, draw_interjection, draw_words
from metaser.synthetic.voice import CUES, RATE, Engine, draw_situation, draw_speakers, record, say

STAMP = "synthetic.json"
"""The file that marks a complete corpus and holds its arguments."""

AROUSAL = {"angry": 0.8, "happy": 0.6, "neutral": 0.0, "sad": -0.6}
VALENCE = {"angry": -0.7, "happy": 0.8, "neutral": 0.0, "sad": -0.7}
PROTOTYPES = {
    "angry": np.array([0.8, 0.7, 0.7, 1.2, 1.2, -0.3, 0.2, 0.4]),
    "happy": np.array([1.0, 1.0, 0.5, 0.6, 0.4, 0.0, 0.0, 0.6]),
    "neutral": np.zeros(len(CUES)),
    "sad": np.array([-0.6, -0.9, -0.9, -1.0, -0.9, 0.5, 0.5, -0.5]),
}
LANGUAGE_SPREAD = 0.3  # log-sd of a language's weight of a cue
LANGUAGE_BEND = np.array([0.5, 0.5, 0.5, 0.5, 0.7, 1.2, 0.6, 0.8])  # sd of its shifts, in units
CLIP_STRENGTH = 0.3  # sd of a clip's overall strength around 1
CLIP_NOISE = 0.3  # sd of each cue from clip to clip, in units
MOOD = 0.3  # sd of the shift that the arousal cues of a clip have in common, in units
MOODY = np.array([1, 1, 1, 1, 1, 0, 0, 0])  # 1 for an arousal cue
_MISSING = (
    "the package espeakng-loader must be installed for eSpeak NG to speak the made-up languages. "
    'Run: pip install "metaser[synthetic]"'
)


def generate(
    folder: str | os.PathLike,
    languages: Iterable[str] | None = None,
    speakers: int = 8,
    sentences: int = 6,
    seed: int = 0,
) -> Path:
    """Speak a synthetic corpus per language, with task folders, below ``folder``.

    Writes ``audio/<corpus>/<speaker>_<emotion>_<text>_<take>.wav`` (16 kHz, 16 bit, mono, about 1
    to 3 s), next to them ``transcripts.csv`` and ``lips.npz``, and
    ``tasks/<language>_synthetic/`` with ``task.toml``, ``README.md`` and ``cues.csv`` (the cues
    that each clip was made from). The folder gets its name only when it is complete. A second call
    with the same arguments uses it again, one with other arguments is refused. On one machine the
    same arguments give the same bytes, whatever other languages or calls there are, because each
    corpus has a new process.

    Parameters
    ----------
    folder : path
        Where to write the corpora. New, empty, or written by an earlier call.
    languages : iterable of str, optional
        ISO 639 codes from ``LANGUAGES``, in any order; all of them by default.
    speakers : int
        Speakers per language, at least 2, alternately female and male.
    sentences : int
        Clips per emotion and speaker, at least 1: the eight texts in turn, then further takes.
    seed : int
        Seed of all random numbers, at least 0.

    Returns
    -------
    Path
        ``folder``.

    Raises
    ------
    ValueError
        If a language is unknown, a number is out of range, or the folder holds something else.
    ModuleNotFoundError
        If ``espeakng-loader`` is not installed.
    RuntimeError
        If the engine fails.
    """
    folder = Path(folder)
    arguments = _arguments(languages, speakers, sentences, seed)
    if _reusable(folder, arguments):
        return folder
    if importlib.util.find_spec("espeakng_loader") is None:
        raise ModuleNotFoundError(_MISSING)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        with written(folder):
            for language in arguments["languages"]:
                _speak_elsewhere(partial, language, speakers, sentences, seed)
            (partial / STAMP).write_text(json.dumps(arguments, indent=1) + "\n", encoding="utf-8")
            _publish(partial, folder, arguments)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _arguments(
    languages: Iterable[str] | None, speakers: int, sentences: int, seed: int
) -> dict[str, Any]:
    """The arguments, checked, in the form of the stamp."""
    codes = sorted(LANGUAGES) if languages is None else sorted(set(languages))
    if not codes:
        raise ValueError(
            f"languages must not be empty: name one or more of {', '.join(LANGUAGES)}, or None for "
            "all of them"
        )
    for code in codes:
        if code not in LANGUAGES:
            near = difflib.get_close_matches(code, LANGUAGES, n=1, cutoff=0.1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"a made-up language must be one of {', '.join(LANGUAGES)}, not {code!r}.{hint}"
            )
    for name, value, least in (
        ("speakers", speakers, 2),
        ("sentences", sentences, 1),
        ("seed", seed, 0),
    ):
        if value != int(value) or value < least:
            raise ValueError(
                f"{name} must be a whole number of at least {least}, not {value!r}: change {name}"
            )
    return {
        "synthetic": True,
        "version": VERSION,
        "languages": codes,
        "speakers": int(speakers),
        "sentences": int(sentences),
        "seed": int(seed),
    }


def _reusable(folder: Path, arguments: dict[str, Any]) -> bool:
    """Whether ``folder`` has all clips of these arguments; False if it is new or empty.

    Raises
    ------
    ValueError
        If it holds anything else.
    """
    stamp = folder / STAMP
    if not stamp.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(
                f"{folder} must be new, empty or written by an earlier call, but it holds no "
                f"{STAMP}: name a new or empty folder"
            )
        return False
    earlier = json.loads(stamp.read_text(encoding="utf-8"))
    if earlier != arguments:
        keys = [key for key in {**earlier, **arguments} if earlier.get(key) != arguments.get(key)]
        before = ", ".join(f"{key} = {earlier.get(key)!r}" for key in keys)
        now = ", ".join(f"{key} = {arguments.get(key)!r}" for key in keys)
        raise ValueError(
            f"{folder} must hold a synthetic corpus with {now}, not with {before}: "
            "name another folder or delete this one"
        )
    expected = arguments["speakers"] * arguments["sentences"] * len(EMOTIONS)
    for language in arguments["languages"]:
        present = len(list((folder / "audio" / corpus_name(language)).glob("*.wav")))
        if present != expected:
            raise ValueError(
                f"{folder / 'audio' / corpus_name(language)} must hold {expected} clips, not "
                f"{present}: delete {folder} and make it again"
            )
    return True


def _publish(partial: Path, folder: Path, arguments: dict[str, Any]) -> None:
    """Give the complete corpus its name, unless another run has just made the same corpus."""
    partial.chmod(0o755)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    try:
        partial.rename(folder)
    except OSError:
        if not _reusable(folder, arguments):
            raise


def _speak_elsewhere(folder: Path, language: str, speakers: int, sentences: int, seed: int) -> None:
    """Speak one corpus in a new process: the engine's output depends on what it said before."""
    package_root = str(Path(__file__).resolve().parents[2])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "metaser.synthetic", str(folder.resolve()), language]
    command += [str(speakers), str(sentences), str(seed)]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        check=False,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        raise RuntimeError(
            f"eSpeak NG must speak {LANGUAGES[language]}, but it failed (exit status "
            f"{done.returncode}):\n{done.stderr}"
        )


def speak_corpus(folder: Path, language: str, speakers: int, sentences: int, seed: int) -> None:
    """Write the audio and the task folder of one language; run it in a new process.

    Parameters
    ----------
    folder : Path
        Where to write ``audio`` and ``tasks``.
    language : str
        A key of ``LANGUAGES``.
    speakers, sentences, seed : int
        As in ``generate``.
    """
    audio = folder / "audio" / corpus_name(language)
    task = folder / "tasks" / f"{language}_synthetic"
    audio.mkdir(parents=True)
    task.mkdir(parents=True)
    key = [seed, zlib.crc32(language.encode())]
    world = np.random.default_rng([*key, 0])
    situation = draw_situation(world)
    weights = np.exp(world.normal(0, LANGUAGE_SPREAD, len(CUES)))
    means = {
        emotion: weights * (PROTOTYPES[emotion] + world.normal(0, LANGUAGE_BEND))
        for emotion in EMOTIONS
    }
    cast = draw_speakers(world, speakers)
    engine = Engine()
    words, faces = draw_words(key), draw_faces(key, speakers)
    rows: list[list] = []
    transcripts: list[list] = []
    lips: dict[str, Any] = {}  # of arrays; the type of savez_compressed takes no dict of arrays
    grid = itertools.product(range(speakers), range(len(EMOTIONS)), range(sentences))
    for speaker_index, emotion_index, sentence in grid:
        rng = np.random.default_rng([*key, 1, speaker_index, emotion_index, sentence])
        speaker, emotion = cast[speaker_index], EMOTIONS[emotion_index]
        take, text = divmod(sentence, len(TEXTS[language]))
        strength = np.clip(rng.normal(1, CLIP_STRENGTH), 0.2, 1.8)
        mood = rng.normal(0, MOOD) * MOODY
        cues = speaker.style * means[emotion] * strength + mood
        cues += rng.normal(0, CLIP_NOISE, len(CUES))
        speech = say(engine, language, TEXTS[language][text], speaker, cues)
        name = f"{speaker.name}_{emotion}_{text + 1}_{take + 1}.wav"
        clip = record(speech, speaker, cues, situation, rng)
        soundfile.write(audio / name, clip, RATE)
        arousal = AROUSAL[emotion] * strength + 0.25 * mood[0]
        valence = VALENCE[emotion] * strength
        # Random numbers of their own, so that the audio does not depend on text and video.
        other_rng = np.random.default_rng([*key, 2, speaker_index, emotion_index, sentence])
        word = draw_interjection(words, emotion, other_rng)
        face = np.array([arousal, valence]) + other_rng.normal(0, FACE_NOISE, 2)
        transcripts.append([name, f"{word.capitalize()}! {TEXTS[language][text]}"])
        lips[Path(name).stem] = film(clip, face[0], face[1], faces[speaker_index])
        numbers = np.round([arousal, valence, *cues, *face], 3).tolist()
        rows.append([name, emotion, *numbers, word])
    columns = ["arousal", "valence", *CUES, "face_arousal", "face_valence", "interjection"]
    write_table(task / "cues.csv", ["file", "emotion", *columns], rows)
    write_table(audio / "transcripts.csv", ["file", "text"], transcripts)
    np.savez_compressed(audio / "lips.npz", **lips)
    write_task(task, language, cast, len(rows), seed, situation)
