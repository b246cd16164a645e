"""A user's own clips, which are labelled by the folders that they lie in."""

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metaser import audio
from metaser.adaptation.voices import speakers_of
from metaser.naming import nearest
from metaser.tasks import clip_checks


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
) -> Clips:
    """Find the clips of a folder whose sub-folders are named by emotion.

    A sub-folder's name is a class, or ``mapping`` tells its class; upper and lower case and the
    spaces around a name do not matter. Folders inside a sub-folder are named by speaker.

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
        expression for the names of files, without extension, whose first group is the speaker.

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
        some files lie in folders of speakers and others do not.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the labelled clips must lie in a folder, but {folder} is none: check the path"
        )
    known = {_plain(name): name for name in classes}
    known |= {
        _plain(name): _known_class(target, classes) for name, target in (mapping or {}).items()
    }
    dropped = {_plain(name) for name in drop}
    subfolders = sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    wanted = [path for path in subfolders if _plain(path.name) not in dropped]
    unknown = [path.name for path in wanted if _plain(path.name) not in known]
    if unknown:
        raise ValueError(_unknown_message(unknown, classes))
    files, emotions = [], []
    for path in wanted:
        found = audio.find(path)
        _refuse_others(path, found)
        files += found
        emotions += [known[_plain(path.name)]] * len(found)
    if not files:
        loose = len(audio.find(folder))
        instead = f"{loose} audio files without a label" if loose else "no audio files"
        raise ValueError(
            f"{folder} must hold a sub-folder with audio files for each emotion "
            f"({', '.join(classes)}), but it holds {instead}: move the clips into such sub-folders"
        )
    return Clips(tuple(files), tuple(emotions), _speakers(folder, files, speaker))


def _plain(name: str) -> str:
    """Return a name without what does not tell names apart: case, spaces around it, encoding."""
    return unicodedata.normalize("NFC", name).strip().casefold()


def _known_class(target: str, classes: Collection[str]) -> str:
    name = _plain(target)
    if name not in classes:
        raise ValueError(
            f"a sub-folder must stand for a class of the model ({', '.join(classes)}), not "
            f"{target!r}.{nearest(name, classes)} Choose one of them"
        )
    return name


def _unknown_message(names: Sequence[str], classes: Collection[str]) -> str:
    """Return what to do about sub-folders whose class is not known."""
    listed = ", ".join(f"{name!r}{nearest(_plain(name), classes)}" for name in names)
    first = names[0].strip()
    return (
        f"every sub-folder must be named by a class of the model ({', '.join(classes)}), not "
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
    others = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name[0] != "." and path not in set(found)
    ]
    if others:
        raise ValueError(
            f"all files among the clips must be audio ({', '.join(audio.EXTENSIONS)}), but "
            f"{len(others)} are not by their name, such as {others[0]}: move them elsewhere, or "
            "convert them"
        )


def _speakers(folder: Path, files: Sequence[Path], speaker: str | None) -> tuple[str, ...] | None:
    """Return who speaks each clip; not told, by the folders inside the emotion's, if there are."""
    if speaker is not None:
        found = speakers_of(files, speaker)
        if unknown := [path.name for path, who in zip(files, found) if not who]:
            raise ValueError(
                "the pattern of speakers must have a group that matches every file's name, but "
                f"{speaker!r} gives no speaker for {unknown[0]}: write one such as '^([^_]+)_'"
            )
        return tuple(found.tolist())
    below = ["/".join(path.relative_to(folder).parts[1:-1]) for path in files]
    loose = [path for path, who in zip(files, below) if not who]
    if len(loose) == len(files):
        return None
    if loose:
        raise ValueError(
            f"who speaks must be known of all clips or of none, but {len(loose)} of {len(files)} "
            f"lie in no folder of a speaker, such as {loose[0]}: move them into such folders, or "
            "say who speaks by --speaker, --one-speaker or --one-speaker-per-file"
        )
    return tuple(below)


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
