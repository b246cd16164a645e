"""A user's own clips, which are labelled by the folders that they lie in, or by a table."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metaser import audio
from metaser.adaptation.voices import FILE, ONE, compiled, speakers_of
from metaser.files import is_system, users_files
from metaser.naming import nearest, some
from metaser.tasks import clip_checks
from metaser.tasks.identity import is_known, of_nobody, one_spelling, plain_text, same_people
from metaser.tasks.label_tables import read_table
from metaser.tasks.new import find_audio, find_column, from_table

_SESSION = re.compile(
    r"(session|sess|ses|take|day|week|disc|disk|cd|batch|round|recording|rec|set|split|train|test"
    r"|dev|val|validation|eval)[-_ ]?\d*"
)
"""Names of folders that are hardly a person's."""


@dataclass(frozen=True)
class Clips:
    """Labelled clips.

    Attributes
    ----------
    files : tuple of Path
        Audio files, one per clip.
    emotions : tuple of str
        Class of each clip.
    speakers : tuple of str or None
        Who speaks in each clip; None where that is not known.
    """

    files: tuple[Path, ...]
    emotions: tuple[str, ...]
    speakers: tuple[str, ...] | None = None


def labelled_folder(
    folder: str | Path,
    classes: Collection[str],
    mapping: Mapping[str, str] | None = None,
    drop: Collection[str] = (),
    speaker: str | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Clips:
    """Find the clips of a folder whose sub-folders are named by emotion.

    A sub-folder's name is a class, or ``mapping`` tells its class; upper and lower case and the
    spaces around a name do not matter. Folders inside a sub-folder are named by speaker; folders
    inside those do not matter.

    Parameters
    ----------
    folder : str or Path
        A folder with files such as ``angry/ali/01.wav`` or ``angry/01.wav``.
    classes : collection of str
        The model's classes.
    mapping : mapping of str to str, optional
        The class of each sub-folder that is not named by one, such as ``{"wütend": "angry"}``.
    drop : collection of str
        Names of sub-folders to leave out.
    speaker : str, optional
        Who speaks: "one" for one speaker in all files, "file" for another one in each, or a regular
        expression for the names of files, without extension, or, if it has a "/", for their paths
        below ``folder``; its first group is the speaker.
    tell : callable
        Given a sentence about how the speakers were found, where that is not plain.

    Returns
    -------
    Clips
        In the order of sub-folders and files.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If there are no clips, the class of a sub-folder is not known (the nearest one is named), a
        sub-folder holds a file that is not audio, ``speaker`` does not match the name of a file, or
        only some files lie in a speaker's folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the labelled clips must lie in a folder, but {folder} is none: check the path"
        )
    known, dropped = _known_labels(classes, mapping or {}), {plain_text(name) for name in drop}
    subfolders = sorted(p for p in folder.iterdir() if p.is_dir() and not is_system(p.name))
    wanted = [path for path in subfolders if plain_text(path.name) not in dropped]
    unknown = [path.name for path in wanted if plain_text(path.name) not in known]
    if unknown:
        raise ValueError(_unknown_message("sub-folder", unknown, classes))
    files, emotions = [], []
    for path in wanted:
        found = audio.find(path)
        _refuse_others(path, found)
        files += found
        emotions += [known[plain_text(path.name)]] * len(found)
    if not files:
        loose = len(audio.find(folder))
        instead = f"{loose} audio files without a label" if loose else "no audio files"
        raise ValueError(
            f"{folder} must hold a sub-folder with audio files for each emotion "
            f"({', '.join(classes)}), but it holds {instead}: move the clips into such sub-folders"
        )
    outside = [path.name for path in audio.find(folder) if path.parent == folder]
    if outside:
        tell(f"{len(outside)} clips without a label are left out: {some(outside)}")
    return Clips(tuple(files), tuple(emotions), _speakers(folder, files, speaker, tell))


def labelled_table(
    table: str | Path,
    classes: Collection[str],
    mapping: Mapping[str, str] | None = None,
    drop: Collection[str] = (),
    *,
    folder: str | Path | None = None,
    speaker: str | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Clips:
    """Find the clips that a table names, such as the one that ``metaser select`` writes.

    Parameters
    ----------
    table : str or Path
        A table with columns such as file, emotion and speaker: CSV, JSON lines or a spreadsheet.
    classes, mapping, drop, speaker, tell
        As in ``labelled_folder``, for the labels of the table. "" in ``drop`` leaves out the clips
        that have no label.
    folder : str or Path, optional
        Folder of the audio; that of the table if not given.

    Returns
    -------
    Clips
        In the order of the files.

    Raises
    ------
    FileNotFoundError
        If there is no such table, or no such folder.
    ValueError
        If the table lacks a column, names a file that is not there, gives a file two labels, has
        labels that are no class or, for some clips, no label or no speaker.
    """
    table = Path(table)
    folder = table.parent if folder is None else Path(folder)
    frame = read_table(table)
    columns = {what: find_column(frame, what) for what in ("file", "emotion", "speaker")}
    who = columns["speaker"]
    if who is not None and (speaker is not None or not any(map(is_known, frame[who]))):
        columns["speaker"] = None
    alone = columns["speaker"] is None
    found = from_table(folder.absolute(), find_audio(folder), frame, columns, alone)
    silent, nobody = found.lacking["emotion"], found.lacking["speaker"]
    if silent and "" not in drop:
        raise ValueError(
            f"every clip of {table} must have an emotion, but {len(silent)} of {len(frame)} have "
            f"none: {some(silent)}; fill it in, or leave them out by --drop ''"
        )
    if nobody:
        raise ValueError(_some_nameless(nobody, len(frame)))
    known, dropped = _known_labels(classes, mapping or {}), {plain_text(name) for name in drop}
    rows = found.table[~found.table["emotion"].map(plain_text).isin(dropped)]
    unknown = [name for name in rows["emotion"].unique() if plain_text(name) not in known]
    if unknown:
        raise ValueError(_unknown_message("label", unknown, classes))
    files = [folder / name for name in rows["file"]]
    emotions = tuple(known[plain_text(name)] for name in rows["emotion"])
    for person in found.people if not alone else ():
        tell(f"one speaker in several spellings: {person}")
    speakers = None if alone else tuple(rows["speaker"])
    if speaker is not None:
        speakers = _by_pattern(folder, files, speaker)
    return Clips(tuple(files), emotions, speakers)


def _known_labels(classes: Collection[str], mapping: Mapping[str, str]) -> dict[str, str]:
    """Return the class of each label that has one, by the plain text of the label."""
    known = {plain_text(name): name for name in classes}
    return known | {plain_text(name): _known_class(to, classes) for name, to in mapping.items()}


def _some_nameless(nameless: Sequence[str], clips: int) -> str:
    """Return that only some clips have a speaker, and what to do."""
    return (
        f"every clip must say who speaks, or none, but {len(nameless)} of {clips} have no speaker: "
        f"{some(nameless)}; name the speaker of each, leave these clips out, or name nobody"
    )


def known_speakers(
    files: Sequence[str | Path], speakers: Sequence[str] | None
) -> tuple[str, ...] | None:
    """Return who speaks in each clip, each person under one spelling; None if nobody is known.

    Parameters
    ----------
    files : sequence of str or Path
        The clips, for the message.
    speakers : sequence of str, optional
        Who speaks in each; see ``metaser.tasks.identity.is_known``.

    Raises
    ------
    ValueError
        If only some speakers are known; the message names the clips of the others.
    """
    if speakers is None or not any(map(is_known, speakers)):
        return None
    nameless = of_nobody(list(map(str, files)), list(speakers))
    if nameless:
        raise ValueError(_some_nameless(nameless, len(files)))
    return tuple(one_spelling(speakers))


def _known_class(target: str, classes: Collection[str]) -> str:
    name = plain_text(target)
    if name not in classes:
        raise ValueError(
            f"a sub-folder must stand for a class of the model ({', '.join(classes)}), not "
            f"{target!r}.{nearest(name, classes)} Choose one of them"
        )
    return name


def _unknown_message(what: str, names: Sequence[str], classes: Collection[str]) -> str:
    """Return what to do about sub-folders or labels whose class is not known."""
    listed = ", ".join(f"{name!r}{nearest(plain_text(name), classes)}" for name in names)
    first = names[0].strip()
    return (
        f"every {what} must be named by a class of the model ({', '.join(classes)}), not "
        f"{listed}: name its class, such as --label '{first}={min(classes)}', or leave it out by "
        f"--drop '{first}'"
    )


def _refuse_others(folder: Path, found: Sequence[Path]) -> None:
    """Refuse a folder without audio files, or with files that are not audio by their name."""
    if not found:
        raise ValueError(
            f"{folder} must hold audio files ({', '.join(audio.EXTENSIONS)}), but it holds none: "
            "add some, or remove the folder"
        )
    others = sorted(set(users_files(folder)) - set(found))
    if others:
        raise ValueError(
            f"all files among the clips must be audio ({', '.join(audio.EXTENSIONS)}), but "
            f"{len(others)} are not by their name, such as {others[0]}: move them elsewhere, or "
            "convert them"
        )


def _speakers(
    folder: Path, files: Sequence[Path], pattern: str | None, tell: Callable[[str], None]
) -> tuple[str, ...] | None:
    """Return who speaks each clip, by the file's name or by the first folder in the emotion's."""
    if pattern is not None:
        return _by_pattern(folder, files, pattern)
    below = [path.relative_to(folder).parts[1:-1] for path in files]
    names = [path.relative_to(folder).as_posix() for path in files]
    first = [parts[0] if parts else "" for parts in below]
    if not any(first):
        return None
    loose = [name for name, parts in zip(names, below, strict=True) if not parts]
    if loose:
        raise ValueError(
            f"all clips must lie in a folder of their speaker, or none, but {len(loose)} of "
            f"{len(names)} lie in none: {some(loose)}; move them into their speaker's folder, or "
            "say who speaks by --speaker PATTERN, --one-speaker or --one-speaker-per-file"
        )
    people = sorted(set(first))
    if all(_SESSION.fullmatch(plain_text(name)) for name in people):
        raise ValueError(
            f"folders inside an emotion's must be named by speaker, not {some(people)}, which look "
            "like parts of a recording: name the speaker's folder first, say who speaks by "
            "--speaker PATTERN (with '/' it is matched with the path), or move the clips out of "
            "them if nobody knows"
        )
    deeper = sorted({parts[1] for parts in below if len(parts) > 1})
    if deeper:
        tell(f"speakers are {some(people)}; the folders inside theirs are not: {some(deeper)}")
    for person in same_people(first):
        tell(f"one speaker in several spellings: {person}")
    return known_speakers(names, first)


def _by_pattern(folder: Path, files: Sequence[Path], pattern: str) -> tuple[str, ...]:
    """Return who speaks each clip, by a regular expression for names or paths."""
    if pattern in (ONE, FILE):
        return tuple(speakers_of(files, pattern).tolist())
    expression = compiled(pattern)
    speakers = []
    for path in files:
        whole = path.relative_to(folder).with_suffix("").as_posix()
        match = expression.search(whole if "/" in pattern else path.stem)
        if match is None or not match[1]:
            raise ValueError(
                "the pattern of speakers must have a group that matches every file's name, but "
                f"{pattern!r} gives no speaker for {path.name}: write one such as '^([^_]+)_'"
            )
        speakers.append(match[1])
    return tuple(one_spelling(speakers))


def refuse_two_labels(clips: Clips, contents: Sequence[str]) -> None:
    """Refuse clips that are the same audio, with two labels or with one.

    Parameters
    ----------
    clips : Clips
        The clips.
    contents : sequence of str
        Digest of the audio of each clip.

    Raises
    ------
    ValueError
        If two clips are the same audio; the message names them.
    """
    first_rows: dict[str, int] = {}
    for row, content in enumerate(contents):
        before = first_rows.setdefault(content, row)
        if before == row:
            continue
        pair = f"{clips.files[before]} and {clips.files[row]}"
        if clips.emotions[before] != clips.emotions[row]:
            raise ValueError(
                f"each clip must have one label, but {pair} are the same audio with two labels, "
                f"{clips.emotions[before]} and {clips.emotions[row]}: keep the right one"
            )
        raise ValueError(f"all clips must differ, but {pair} are the same audio: keep one of them")


def contradiction(clips: Clips) -> str:
    """Return a warning about clips that hold the same recording with two labels, or "".

    They need not be the same files: one may be louder, cut elsewhere or encoded in another way.
    """
    heard = [clip_checks.listen(path) for path in clips.files]
    rows = [row for row, clip in enumerate(heard) if not clip.error]
    pairs = []
    for first, second, alike in clip_checks.near_duplicates([heard[row] for row in rows]):
        one, other = rows[first], rows[second]
        if clips.emotions[one] != clips.emotions[other]:
            pairs.append(
                f"{clips.files[one]} ({clips.emotions[one]}) = {clips.files[other]} "
                f"({clips.emotions[other]}), {alike:.2f}"
            )
    if not pairs:
        return ""
    return (
        f"{len(pairs)} pairs of clips hold the same recording (correlation of the samples) with "
        f"two labels: {clip_checks.some(pairs)}; keep the right one of each"
    )
