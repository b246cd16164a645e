"""The files of a made-up corpus: its task folder, its tables and its README."""

import csv
from pathlib import Path

from metaser.synthetic.face import FPS, PIXELS
from metaser.synthetic.texts import EMOTIONS, LANGUAGES, TEXTS
from metaser.synthetic.voice import RATE, Situation, Speaker

VERSION = 2  # raised whenever the same arguments would make other data


def corpus_name(language: str) -> str:
    """Return the name of a language's corpus, which is also that of its audio folder."""
    return f"SYNTHETIC-{language.upper()}"


def write_table(path: Path, columns: list[str], rows: list[list]) -> None:
    """Write a CSV file with these column names and rows."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)


def write_task(
    task: Path, language: str, cast: list[Speaker], clips: int, seed: int, situation: Situation
) -> None:
    """Write the files of a task folder like that of any other corpus, marked as synthetic.

    Parameters
    ----------
    task : Path
        The folder, which exists.
    language : str
        A key of ``LANGUAGES``.
    cast : list of Speaker
        The speakers.
    clips : int
        Number of clips.
    seed : int
        The seed of ``generate``.
    situation : Situation
        How the corpus was "recorded".
    """
    corpus = corpus_name(language)
    emotions = "\n".join(f'{emotion} = "{emotion}"' for emotion in EMOTIONS)
    description = f"""# Synthetic speech made by metaser.synthetic: no person speaks here.
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
    (task / "task.toml").write_text(description, encoding="utf-8")
    card = _card(language, cast, clips, seed, situation)
    (task / "README.md").write_text(card, encoding="utf-8")


def _card(language: str, cast: list[Speaker], clips: int, seed: int, situation: Situation) -> str:
    """The README of a task folder."""
    voices = ", ".join(f"{speaker.name} {speaker.variant}" for speaker in cast)
    texts = "\n".join(f"{n}. {text}" for n, text in enumerate(TEXTS[language], start=1))
    recording = (
        f"level {situation.level:.1f} dBFS, noise {situation.snr:.1f} dB below it,\n"
        f"band {situation.low_cut:.0f} to {situation.high_cut:.0f} Hz, "
        f"reverberation {situation.reverberation:.2f} s"
    )
    return f"""# {corpus_name(language)}: synthetic {LANGUAGES[language]}

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
