"""Speak a made-up emotional corpus in many languages: synthetic data for tests, demo and notebooks.

**Everything made here is synthetic.** eSpeak NG reads short everyday sentences aloud; four emotions
(angry, happy, neutral, sad) are imitated by prosody alone. Scores on it show that a pipeline learns
and adapts; they say nothing about how people express emotion.

The direction of each cue follows published acoustic correlates of vocal emotion [1]_ [2]_ [3]_
[4]_:

=========  ==========================================================================
angry      higher pitch, wider pitch range, faster, louder, more energy at high frequencies
happy      higher pitch, wider pitch range, mostly faster, louder than neutral
sad        lower pitch, narrower pitch range, slower, softer, less energy at high frequencies
=========  ==========================================================================

The sizes of the effects, and the breath noise, tremor and pitch slope, are choices of this module.
Beside the audio every clip has a transcript and a video of a mouth, with cues of their own, so that
fusion can be tested: an interjection that is written, but not spoken, and of the clip's emotion
with a known probability (``TOLD``); and lips that open with the voice, the wider the higher the
arousal, and whose corners rise with the valence, both with known noise (``FACE_NOISE``).

Each clip draws its own strength for each cue, each speaker leans on cues of their own, each
language weighs and bends the cues in its own way, and each corpus has one recording situation
(level, noise, band limits, reverberation): the classes overlap, and adapting to a language pays.

The engine is a separate, optional program library, loaded at run time and never shipped with
MetaSER (``pip install "metaser[synthetic]"`` brings it through ``espeakng-loader``). The source
headers of eSpeak NG state GPL version 3 or later; the wheel itself carries no licence file.

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

import argparse
import csv
import ctypes
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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

VERSION = 2  # raised whenever the same arguments would make other data
RATE = 16000
STAMP = "synthetic.json"

LANGUAGES = {
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fa": "Persian",
    "fr": "French",
    "id": "Indonesian",
    "it": "Italian",
    "pl": "Polish",
    "tr": "Turkish",
    "ur": "Urdu",
}

# The same eight everyday sentences in each language, with no emotion in their words.
TEXTS = {
    "de": (
        "Die Tischdecke liegt auf dem Tisch.",
        "Der Zug fährt um sieben Uhr ab.",
        "Die Schlüssel sind in der Schublade.",
        "Heute regnet es in der Stadt.",
        "Der Laden ist neben der Schule.",
        "Sie stellte die Bücher ins Regal.",
        "Morgen gehen wir auf den Markt.",
        "Das Fenster im Zimmer ist offen.",
    ),
    "en": (
        "The tablecloth is on the table.",
        "The train leaves at seven o'clock.",
        "The keys are in the top drawer.",
        "It is raining in the city today.",
        "The shop is next to the school.",
        "She put the books on the shelf.",
        "Tomorrow we will go to the market.",
        "The window of the room is open.",
    ),
    "es": (
        "El mantel está sobre la mesa.",
        "El tren sale a las siete.",
        "Las llaves están en el cajón.",
        "Hoy llueve en la ciudad.",
        "La tienda está junto a la escuela.",
        "Puso los libros en el estante.",
        "Mañana iremos al mercado.",
        "La ventana del cuarto está abierta.",
    ),
    "fa": (
        "رومیزی روی میز است.",
        "قطار ساعت هفت حرکت می‌کند.",
        "کلیدها در کشو هستند.",
        "امروز در شهر باران می‌بارد.",
        "مغازه کنار مدرسه است.",
        "او کتاب‌ها را روی قفسه گذاشت.",
        "فردا به بازار می‌رویم.",
        "پنجرهٔ اتاق باز است.",
    ),
    "fr": (
        "La nappe est sur la table.",
        "Le train part à sept heures.",
        "Les clés sont dans le tiroir.",
        "Il pleut en ville aujourd'hui.",
        "Le magasin est à côté de l'école.",
        "Elle a mis les livres sur l'étagère.",
        "Demain nous irons au marché.",
        "La fenêtre de la chambre est ouverte.",
    ),
    "id": (
        "Taplak itu ada di atas meja.",
        "Kereta berangkat pukul tujuh.",
        "Kunci ada di dalam laci.",
        "Hari ini hujan turun di kota.",
        "Toko itu di sebelah sekolah.",
        "Dia menaruh buku di rak.",
        "Besok kami pergi ke pasar.",
        "Jendela kamar itu terbuka.",
    ),
    "it": (
        "La tovaglia è sul tavolo.",
        "Il treno parte alle sette.",
        "Le chiavi sono nel cassetto.",
        "Oggi piove molto in città.",
        "Il negozio è accanto alla scuola.",
        "Ha messo i libri sullo scaffale.",
        "Domani andiamo al mercato.",
        "La finestra della stanza è aperta.",
    ),
    "pl": (
        "Obrus leży na stole w kuchni.",
        "Pociąg odjeżdża o siódmej.",
        "Klucze są w górnej szufladzie.",
        "Dzisiaj w mieście pada deszcz.",
        "Sklep jest obok naszej szkoły.",
        "Położyła książki na półce.",
        "Jutro idziemy na targ.",
        "Okno w pokoju jest otwarte.",
    ),
    "tr": (
        "Masa örtüsü masanın üstünde.",
        "Tren saat yedide kalkıyor.",
        "Anahtarlar çekmecede duruyor.",
        "Bugün şehirde yağmur yağıyor.",
        "Dükkân okulun hemen yanında.",
        "Kitapları yavaşça rafa koydu.",
        "Yarın pazara gideceğiz.",
        "Odanın penceresi açık.",
    ),
    "ur": (
        "میز پوش میز پر ہے۔",
        "گاڑی سات بجے چلتی ہے۔",
        "چابیاں دراز میں ہیں۔",
        "آج شہر میں بارش ہو رہی ہے۔",
        "دکان اسکول کے ساتھ ہے۔",
        "اس نے کتابیں الماری میں رکھیں۔",
        "کل ہم بازار جائیں گے۔",
        "کمرے کی کھڑکی کھلی ہے۔",
    ),
}

EMOTIONS = ("angry", "happy", "neutral", "sad")
AROUSAL = {"angry": 0.8, "happy": 0.6, "neutral": 0.0, "sad": -0.6}
VALENCE = {"angry": -0.7, "happy": 0.8, "neutral": 0.0, "sad": -0.7}

CUES = ("pitch", "range", "rate", "level", "brightness", "breath", "tremor", "slope")
# What one unit of a cue is, in the order of CUES: semitones, octaves of the range setting, octaves
# of speaking rate, dB, dB per octave, dB of breath noise, semitones of depth, semitones end to end.
UNITS = np.array([3.0, 0.7, 0.22, 4.0, 1.5, 5.0, 0.25, 1.5])
PROTOTYPES = {
    "angry": np.array([0.8, 0.7, 0.7, 1.2, 1.2, -0.3, 0.2, 0.4]),
    "happy": np.array([1.0, 1.0, 0.5, 0.6, 0.4, 0.0, 0.0, 0.6]),
    "neutral": np.zeros(len(CUES)),
    "sad": np.array([-0.6, -0.9, -0.9, -1.0, -0.9, 0.5, 0.5, -0.5]),
}
LANGUAGE_SPREAD = 0.3  # log-sd of a language's weight of a cue
LANGUAGE_BEND = np.array([0.5, 0.5, 0.5, 0.5, 0.7, 1.2, 0.6, 0.8])  # sd of what it adds, in units
SPEAKER_SPREAD = 0.35  # log-sd of a speaker's weight of a cue
CLIP_STRENGTH = 0.3  # sd of a clip's overall strength around 1
CLIP_NOISE = 0.3  # sd of each cue from clip to clip, in units
MOOD = 0.3  # sd of what the arousal cues of a clip share, in units
MOODY = np.array([1, 1, 1, 1, 1, 0, 0, 0])  # which cues those are

TOLD = 0.5  # probability that an interjection was chosen for the emotion; else it is any of all
STEMS = {"angry": "gra", "happy": "hi", "neutral": "mo", "sad": "ulu"}  # in all languages alike
ENDINGS = ("n", "k", "s", "ba", "de", "fi", "jo", "ta", "vu", "ze")  # in each language others
INTERJECTIONS = 3  # of each emotion in a language

FPS = 25  # pictures a second
PIXELS = 16  # width and height of a picture
FACE_NOISE = 0.6  # sd of what the face adds to arousal and to valence
MOUTH = (40.0, 150.0)  # grey of the open mouth and of the skin, out of 255

VARIANTS = {
    "F": ("f1", "f2", "f3", "f4", "f5", "linda", "steph", "belinda", "Annie", "shelby"),
    "M": ("m1", "m2", "m3", "m4", "m6", "m7", "max", "robert", "Michael", "paul"),
}
SEMITONES_PER_STEP = 0.245  # of eSpeak NG's pitch setting, 50 being the voice's own pitch
_MISSING = (
    "the made-up languages are spoken by eSpeak NG, and the package espeakng-loader is not "
    'installed. Run: pip install "metaser[synthetic]"'
)


@dataclass(frozen=True)
class Situation:
    """How one corpus was "recorded": dBFS, dB, Hz, Hz, seconds, share of reflected sound."""

    level: float
    snr: float
    low_cut: float
    high_cut: float
    reverberation: float
    wet: float


@dataclass(frozen=True)
class Speaker:
    """One voice: engine variant, habits (in cue units) and style (weight of each cue)."""

    name: str
    gender: str
    variant: str
    tract: float
    habits: np.ndarray
    style: np.ndarray


def generate(
    folder: str | os.PathLike,
    languages: Iterable[str] | None = None,
    speakers: int = 8,
    sentences: int = 6,
    seed: int = 0,
) -> Path:
    """Speak a synthetic corpus per language, with task folders, below ``folder``.

    Writes ``audio/<corpus>/<speaker>_<emotion>_<text>_<take>.wav`` (16 kHz, 16 bit, mono, about 1
    to 3 s), beside them ``transcripts.csv`` and ``lips.npz``, and
    ``tasks/<language>_synthetic/`` with ``task.toml``, ``README.md`` and ``cues.csv``
    (what each clip was made from). The folder takes its name when complete; it is used again for
    the same arguments, and refused for others. The same arguments give the same bytes on one
    machine, whatever other languages or calls there are: each corpus has a fresh process.

    Parameters
    ----------
    folder : path
        Where the corpora go. New, empty, or made by an earlier call.
    languages : iterable of str, optional
        ISO 639 codes out of ``LANGUAGES``, in any order; all of them by default.
    speakers : int
        Speakers per language, at least 2, alternately female and male.
    sentences : int
        Clips of each emotion per speaker, at least 1: the eight texts in turn, then further takes.
    seed : int
        Seed of everything random, at least 0.

    Returns
    -------
    Path
        ``folder``.

    Raises
    ------
    ValueError
        For an unknown language, a number out of range, or a folder that holds something else.
    ModuleNotFoundError
        If ``espeakng-loader`` is not installed.
    """
    folder = Path(folder)
    wanted = _arguments(languages, speakers, sentences, seed)
    if _reusable(folder, wanted):
        return folder
    if importlib.util.find_spec("espeakng_loader") is None:
        raise ModuleNotFoundError(_MISSING)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        for language in wanted["languages"]:
            _speak_elsewhere(partial, language, speakers, sentences, seed)
        (partial / STAMP).write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        _publish(partial, folder, wanted)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _arguments(languages: Iterable[str] | None, speakers: int, sentences: int, seed: int) -> dict:
    """Checked arguments as the stamp holds them."""
    codes = sorted(LANGUAGES) if languages is None else sorted(set(languages))
    if not codes:
        raise ValueError(f"languages is empty; name one or more of: {', '.join(LANGUAGES)}")
    for code in codes:
        if code not in LANGUAGES:
            near = difflib.get_close_matches(code, LANGUAGES, n=1, cutoff=0.1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"no made-up language {code!r}; there are: {', '.join(LANGUAGES)}.{hint}"
            )
    for name, value, least in (
        ("speakers", speakers, 2),
        ("sentences", sentences, 1),
        ("seed", seed, 0),
    ):
        if value != int(value) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return {
        "synthetic": True,
        "version": VERSION,
        "languages": codes,
        "speakers": int(speakers),
        "sentences": int(sentences),
        "seed": int(seed),
    }


def _reusable(folder: Path, wanted: dict) -> bool:
    """Whether ``folder`` is complete and made with the arguments wanted; an error if otherwise."""
    stamp = folder / STAMP
    if not stamp.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(
                f"{folder} exists and holds no {STAMP}, so it was not made here; "
                "name a new or empty folder"
            )
        return False
    found = json.loads(stamp.read_text(encoding="utf-8"))
    if found != wanted:
        differs = [k for k in {**found, **wanted} if found.get(k) != wanted.get(k)]
        was = ", ".join(f"{k} = {found.get(k)!r}" for k in differs)
        now = ", ".join(f"{k} = {wanted.get(k)!r}" for k in differs)
        raise ValueError(
            f"{folder} holds a synthetic corpus made with {was}, and {now} is asked for; "
            "name another folder or delete this one"
        )
    clips = wanted["speakers"] * wanted["sentences"] * len(EMOTIONS)
    for language in wanted["languages"]:
        present = len(list((folder / "audio" / _corpus(language)).glob("*.wav")))
        if present != clips:
            raise ValueError(
                f"{folder / 'audio' / _corpus(language)} should hold {clips} clips and holds "
                f"{present}; delete {folder} and make it again"
            )
    return True


def _publish(partial: Path, folder: Path, wanted: dict) -> None:
    """Give the complete corpus its name; accept the same corpus made meanwhile by another run."""
    partial.chmod(0o755)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    try:
        partial.rename(folder)
    except OSError:
        if not _reusable(folder, wanted):
            raise


def _speak_elsewhere(folder: Path, language: str, speakers: int, sentences: int, seed: int) -> None:
    """Speak one corpus in a fresh process: the engine's output depends on what it said before."""
    package_root = str(Path(__file__).resolve().parent.parent)
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
            f"speaking {LANGUAGES[language]} failed (exit status {done.returncode}):\n{done.stderr}"
        )


def _corpus(language: str) -> str:
    return f"SYNTHETIC-{language.upper()}"


def _speak_corpus(folder: Path, language: str, speakers: int, sentences: int, seed: int) -> None:
    """Write the audio and the task folder of one language; to be run in a fresh process."""
    audio = folder / "audio" / _corpus(language)
    task = folder / "tasks" / f"{language}_synthetic"
    audio.mkdir(parents=True)
    task.mkdir(parents=True)
    key = [seed, zlib.crc32(language.encode())]
    world = np.random.default_rng([*key, 0])
    situation = _draw_situation(world)
    weights = np.exp(world.normal(0, LANGUAGE_SPREAD, len(CUES)))
    means = {e: weights * (PROTOTYPES[e] + world.normal(0, LANGUAGE_BEND)) for e in EMOTIONS}
    cast = _draw_speakers(world, speakers)
    engine = _Engine()
    words, faces = _draw_words(key), _draw_faces(key, speakers)
    rows, transcripts, lips = [], [], {}
    grid = itertools.product(range(speakers), range(len(EMOTIONS)), range(sentences))
    for one, two, three in grid:
        rng = np.random.default_rng([*key, 1, one, two, three])
        speaker, emotion = cast[one], EMOTIONS[two]
        take, text = divmod(three, len(TEXTS[language]))
        strength = np.clip(rng.normal(1, CLIP_STRENGTH), 0.2, 1.8)
        mood = rng.normal(0, MOOD) * MOODY
        cues = speaker.style * means[emotion] * strength + mood
        cues += rng.normal(0, CLIP_NOISE, len(CUES))
        speech = _say(engine, language, TEXTS[language][text], speaker, cues)
        name = f"{speaker.name}_{emotion}_{text + 1}_{take + 1}.wav"
        clip = _record(speech, speaker, cues, situation, rng)
        soundfile.write(audio / name, clip, RATE)
        arousal = AROUSAL[emotion] * strength + 0.25 * mood[0]
        valence = VALENCE[emotion] * strength
        beside = np.random.default_rng([*key, 2, one, two, three])  # the audio stays as it was
        word = _interjection(words, emotion, beside)
        face = np.array([arousal, valence]) + beside.normal(0, FACE_NOISE, 2)
        transcripts.append([name, f"{word.capitalize()}! {TEXTS[language][text]}"])
        lips[Path(name).stem] = _film(clip, *face, faces[one])
        numbers = np.round([arousal, valence, *cues, *face], 3).tolist()
        rows.append([name, emotion, *numbers, word])
    columns = ["arousal", "valence", *CUES, "face_arousal", "face_valence", "interjection"]
    _write_table(task / "cues.csv", ["file", "emotion", *columns], rows)
    _write_table(audio / "transcripts.csv", ["file", "text"], transcripts)
    np.savez_compressed(audio / "lips.npz", **lips)
    _write_task(task, language, cast, len(rows), seed, situation)


def _write_table(path: Path, columns: list[str], rows: list[list]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)


def _draw_words(key: list[int]) -> dict[str, list[str]]:
    """The interjections of each emotion in one language: the stem that all share, own endings."""
    rng = np.random.default_rng([*key, 3])
    return {
        emotion: [stem + end for end in rng.choice(ENDINGS, INTERJECTIONS, replace=False)]
        for emotion, stem in STEMS.items()
    }


def _interjection(words: dict[str, list[str]], emotion: str, rng: np.random.Generator) -> str:
    """A word of the emotion with probability ``TOLD``, else of an emotion drawn from all."""
    told = emotion if rng.random() < TOLD else EMOTIONS[rng.integers(len(EMOTIONS))]
    return words[told][rng.integers(INTERJECTIONS)]


def _draw_faces(key: list[int], speakers: int) -> np.ndarray:
    """(speakers, 3): half the width of each mouth, its height in the picture, its usual opening."""
    rng = np.random.default_rng([*key, 4])
    return rng.normal([0.7, 0.0, 0.2], [0.08, 0.06, 0.03], (speakers, 3))


def _film(clip: np.ndarray, arousal: float, valence: float, face: np.ndarray) -> np.ndarray:
    """Pictures of a mouth while a clip is spoken, (pictures, ``PIXELS`` ** 2) uint8, row by row.

    The picture is the square [-1, 1]^2, x to the right and y upwards. At time t the mouth is open
    where |y - y0 - valence / 5 (x / w)^2| < a(t) (1 - (x / w)^2), with soft edges; a(t) follows the
    clip's energy, relative to its loudest moment, and grows with the arousal.
    """
    width, height, usual = face
    step = RATE // FPS
    energy = np.sqrt(np.mean(clip[: len(clip) // step * step].reshape(-1, step) ** 2, axis=1))
    opening = (usual + 0.08 * np.clip(arousal, -2, 2)) * (0.3 + energy / energy.max())
    place = np.linspace(-1, 1, PIXELS)
    x, y = (place / width) ** 2, place[::-1, None] - height
    distance = np.abs(y - np.clip(valence, -2.5, 2.5) / 5 * x)
    inside = opening[:, None, None] * (1 - x) - distance
    open_, skin = MOUTH
    grey = skin + (open_ - skin) / (1 + np.exp(-inside / 0.05))
    return np.rint(grey).astype(np.uint8).reshape(len(grey), -1)


def _draw_situation(rng: np.random.Generator) -> Situation:
    return Situation(
        level=rng.uniform(-33, -26),
        snr=rng.uniform(22, 38),
        low_cut=rng.uniform(50, 150),
        high_cut=rng.uniform(4000, 7600),
        reverberation=rng.uniform(0.1, 0.4),
        wet=rng.uniform(0.05, 0.3),
    )


def _draw_speakers(rng: np.random.Generator, count: int) -> list[Speaker]:
    """A cast, alternately female and male, with engine voices in random order."""
    voices = {gender: rng.permutation(names) for gender, names in VARIANTS.items()}
    cast = []
    for number in range(count):
        gender = "FM"[number % 2]
        pool = voices[gender]
        cast.append(
            Speaker(
                name=f"{gender}{number + 1:02d}",
                gender=gender,
                variant=str(pool[number // 2 % len(pool)]),
                tract=rng.uniform(0.97, 1.08),
                habits=rng.normal(0, [0.4, 0.3, 0.3, 0.4, 0.4, 0.4, 0.2, 0.2]),
                style=np.exp(rng.normal(0, SPEAKER_SPREAD, len(CUES))),
            )
        )
    return cast


class _Engine:
    """eSpeak NG, loaded once per process; its output depends on what it has said before."""

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = os.fsencode(espeakng_loader.get_data_path())
        synchronous, no_exit = 2, 0x8000
        self.rate = self._library.espeak_Initialize(synchronous, 0, data, no_exit)
        if self.rate <= 0:
            raise RuntimeError(f"eSpeak NG found no data in {os.fsdecode(data)}")
        if self._library.espeak_ng_SetRandSeed(ctypes.c_long(1)):  # it starts from the clock
            raise RuntimeError("eSpeak NG did not take a seed for its breath noise")
        self._blocks: list[bytes] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        self._callback = kind(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: int | None, count: int, events: int | None) -> int:
        if samples and count > 0:
            self._blocks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def speak(self, voice: str, text: str, words: int, pitch: int, spread: int) -> np.ndarray:
        """Speech of a text as float64 in [-1, 1] at ``self.rate``, quiet edges cut."""
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise RuntimeError(f"eSpeak NG has no voice {voice!r}")
        rate_parameter, pitch_parameter, range_parameter = 1, 3, 4
        self._library.espeak_SetParameter(rate_parameter, words, 0)
        self._library.espeak_SetParameter(pitch_parameter, pitch, 0)
        self._library.espeak_SetParameter(range_parameter, spread, 0)
        self._blocks.clear()
        line, utf8 = text.encode(), 1
        if self._library.espeak_Synth(line, len(line) + 1, 0, 0, 0, utf8, None, None):
            raise RuntimeError(f"eSpeak NG could not speak {text!r}")
        speech = np.frombuffer(b"".join(self._blocks), np.int16) / 32768
        loud = np.flatnonzero(np.abs(speech) > 0.01)
        if len(loud) == 0:
            raise RuntimeError(f"eSpeak NG was silent on {text!r} with the voice {voice!r}")
        return speech[loud[0] : loud[-1] + 1]


def _say(
    engine: _Engine, language: str, text: str, speaker: Speaker, cues: np.ndarray
) -> np.ndarray:
    """Speech at 2 * RATE with the pitch, range, rate, tremor and slope the cues ask for.

    A vocal tract is made longer or shorter by playing the speech at another rate, with pitch and
    speaking rate set to undo that; tremor and slope come from a playing rate that varies.
    """
    pitch, spread, rate, _, _, _, tremor, slope = (cues + speaker.habits) * UNITS
    semitones = pitch - 12 * np.log2(speaker.tract)
    speech = engine.speak(
        f"{language}+{speaker.variant}",
        text,
        words=round(np.clip(170 * 2**rate / speaker.tract, 130, 270)),
        pitch=round(np.clip(55 + semitones / SEMITONES_PER_STEP, 0, 99)),
        spread=round(np.clip(45 * 2**spread, 3, 99)),
    )
    speech = soxr.resample(speech, engine.rate * speaker.tract, 2 * RATE)
    seconds = np.arange(len(speech)) / (2 * RATE)
    shift = np.clip(slope, -3, 3) * (seconds / seconds[-1] - 0.5)
    shift += np.clip(0.15 + tremor, 0, 0.8) * np.sin(2 * np.pi * 5.5 * seconds)
    played = np.cumsum(2 ** (shift / 12))
    return np.interp(np.arange(int(played[-1])), played, speech)


def _record(
    speech: np.ndarray,
    speaker: Speaker,
    cues: np.ndarray,
    situation: Situation,
    rng: np.random.Generator,
) -> np.ndarray:
    """The clip as the corpus holds it: voice quality and loudness, then the recording situation."""
    _, _, _, level, brightness, breath, _, _ = (cues + speaker.habits) * UNITS
    voice = soxr.resample(speech, 2 * RATE, RATE)
    edges = rng.integers(RATE // 20, RATE // 6, 2)
    voice = np.pad(voice, edges)
    voice = _filter(voice, lambda hertz: _tilt(hertz, np.clip(brightness, -5, 5)))
    voice *= 10 ** ((situation.level + np.clip(level, -9, 9)) / 20) / _rms(voice)
    envelope = np.convolve(np.abs(voice), np.ones(160) / 160, "same")
    breathing = _filter(rng.normal(size=len(voice)) * envelope, lambda hertz: hertz > 1500)
    voice += breathing * 10 ** (np.clip(breath - 24, -40, -10) / 20)
    voice = _reverberate(voice, situation, rng)
    voice += rng.normal(0, 10 ** ((situation.level - situation.snr) / 20), len(voice))
    voice = _filter(voice, lambda hertz: _band(hertz, situation))
    return voice * min(1.0, 0.98 / np.abs(voice).max())


def _rms(signal: np.ndarray) -> float:
    return float(np.sqrt(np.mean(signal**2)))


def _fast_size(length: int) -> int:
    """A transform size at or above ``length`` without large prime factors."""
    return -(-length // 4096) * 4096


def _filter(signal: np.ndarray, gain: Callable) -> np.ndarray:
    """Zero-phase filter; ``gain`` maps frequencies in Hz to amplitude factors."""
    size = _fast_size(len(signal) + RATE // 10)
    spectrum = np.fft.rfft(signal, size)
    return np.fft.irfft(spectrum * gain(np.fft.rfftfreq(size, 1 / RATE)), size)[: len(signal)]


def _tilt(hertz: np.ndarray, decibels: float) -> np.ndarray:
    """Gain that changes by so many dB per octave between 250 Hz and 6 kHz, 1 at 1 kHz."""
    return 10 ** (decibels * np.log2(np.clip(hertz, 250, 6000) / 1000) / 20)


def _band(hertz: np.ndarray, situation: Situation) -> np.ndarray:
    """Amplitude response of a low and a high cut, fourth order."""
    low = 1 / np.sqrt(1 + (situation.low_cut / np.maximum(hertz, 1)) ** 8)
    return low / np.sqrt(1 + (hertz / situation.high_cut) ** 8)


def _reverberate(voice: np.ndarray, situation: Situation, rng: np.random.Generator) -> np.ndarray:
    """Add decaying reflections (60 dB in ``reverberation`` seconds), at the level it came with."""
    seconds = np.arange(int(situation.reverberation * RATE)) / RATE
    decay = rng.normal(size=len(seconds)) * 10 ** (-3 * seconds / situation.reverberation)
    size = _fast_size(len(voice) + len(decay))
    reflected = np.fft.irfft(np.fft.rfft(voice, size) * np.fft.rfft(decay, size), size)
    reflected = reflected[: len(voice)]
    mixed = voice + situation.wet * reflected * _rms(voice) / _rms(reflected)
    return mixed * _rms(voice) / _rms(mixed)


def _write_task(
    task: Path, language: str, cast: list[Speaker], clips: int, seed: int, situation: Situation
) -> None:
    """The task folder: what any other corpus has, marked as synthetic."""
    corpus = _corpus(language)
    emotions = "\n".join(f'{emotion} = "{emotion}"' for emotion in EMOTIONS)
    facts = f"""# Synthetic speech made by metaser.synthetic: no person speaks here.
language   = "{language}"
corpus     = "{corpus}"
audio      = "{corpus}"
version    = {VERSION}
synthetic  = true
speakers   = {len(cast)}
utterances = {clips}
licence    = "CC0-1.0 (machine-made)"
homepage   = "https://github.com/espeak-ng/espeak-ng"
reference  = "made by metaser.synthetic, version {VERSION}, seed {seed}"

[files]
pattern = '(?P<speaker>(?P<gender>[FM])\\d+)_(?P<emotion>[a-z]+)_(?P<text>\\d+)_(?P<take>\\d+)'

[[transcripts]]
file = "transcripts.csv"

[vectors.video]
file = "lips.npz"

[emotion]
{emotions}

[ratings]
arousal = [-2, 2]
valence = [-2, 2]

[ratings_table]
file    = "cues.csv"
columns = {{ file = "file", arousal = "arousal", valence = "valence" }}

[examples]
"F01_angry_1_1.wav" = {{ speaker = "F01", emotion = "angry" }}
"""
    (task / "task.toml").write_text(facts, encoding="utf-8")
    card = _card(language, cast, clips, seed, situation)
    (task / "README.md").write_text(card, encoding="utf-8")


def _card(language: str, cast: list[Speaker], clips: int, seed: int, situation: Situation) -> str:
    """README of a task folder."""
    voices = ", ".join(f"{speaker.name} {speaker.variant}" for speaker in cast)
    texts = "\n".join(f"{n}. {text}" for n, text in enumerate(TEXTS[language], start=1))
    recording = (
        f"level {situation.level:.1f} dBFS, noise {situation.snr:.1f} dB below it,\n"
        f"band {situation.low_cut:.0f} to {situation.high_cut:.0f} Hz, "
        f"reverberation {situation.reverberation:.2f} s"
    )
    return f"""# {_corpus(language)}: synthetic {LANGUAGES[language]}

**Synthetic speech.** No person speaks here: eSpeak NG reads everyday sentences, and the emotions
are imitated by prosody (pitch, pitch range, rate, loudness, brightness, breath noise, tremor, pitch
slope). Scores on this corpus say nothing about real emotional speech.

{clips} clips, {len(cast)} made-up speakers (F female, M male), {len(EMOTIONS)} emotions, {RATE} Hz.
File names: `<speaker>_<emotion>_<text>_<take>.wav`. Version {VERSION}, seed {seed}.

Engine voices: {voices}.

Recording situation: {recording}.

Beside the audio lie `transcripts.csv`, in which each sentence follows a made-up interjection that
is not spoken and hints at the emotion, and `lips.npz`, pictures of a mouth ({PIXELS} x {PIXELS},
{FPS} a second).

`cues.csv` holds what each clip was made from: arousal and valence as meant (0 is neutral), its
cues in units of the module `metaser.synthetic`, before the speaker's habits are added, arousal and
valence as the face shows them, and the interjection.

Texts:

{texts}
"""


def _main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Speak one synthetic corpus (used by generate).")
    parser.add_argument("folder", type=Path)
    parser.add_argument("language", choices=sorted(LANGUAGES))
    for name in ("speakers", "sentences", "seed"):
        parser.add_argument(name, type=int)
    _speak_corpus(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    _main()
